"""Fused attention on a CPU by type, route and length: where `CpuAttention` pays.

    python benchmarks/cpu_attention.py [--rounds 9]

The heads of SmolLM2-135M (9, of 3 keys and values), batches of 4, as under autocast: queries and
keys arrive in float32, values in bfloat16, and gradients leave in the same types. Milliseconds of
the processor, medians of interleaved rounds; forward, and forward with backward. "float32": by the
route of the process's float32 products, which is oneDNN's where that is accurate; "own route": as
`CpuAttention` has it. On machines whose route is torch's own anyway these two are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import machine, table
from core.training.cpu_attention import CpuAttention
from core.training.numerics import choose_numerics

_BATCH, _HEADS, _GROUPS, _WIDTH = 4, 9, 3, 64
_LENGTHS = (32, 64, 96, 128, 160, 200, 256)
_TITLES = (
    "tokens",
    "forward bf16",
    "float32",
    "own route",
    "with backward bf16",
    "float32",
    "own route",
    "own route to bf16",
    "to float32",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    numerics = choose_numerics("cpu")
    rows = [_row(n_tokens, rounds) for n_tokens in _LENGTHS]
    print(f"{machine()}, torch {torch.__version__}; {numerics.probe}\n\n{table(_TITLES, rows)}")
    return 0


def _row(n_tokens: int, rounds: int) -> list[str]:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(_BATCH, n_tokens, heads, _WIDTH).transpose(1, 2).requires_grad_()
        for heads in (_HEADS, _GROUPS, _GROUPS)
    )
    upstream = torch.randn(_BATCH, n_tokens, _HEADS, _WIDTH).transpose(1, 2).bfloat16()

    def attend(*, in_float32: bool) -> torch.Tensor:
        # as `CpuAttention` casts, by the route that the process has
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not in_float32):
            last = value if in_float32 else value.bfloat16()
            out = F.scaled_dot_product_attention(query, key, last, is_causal=True, enable_gqa=True)
        return out.bfloat16()

    def by_own_route() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), CpuAttention(torch.bfloat16):
            return F.scaled_dot_product_attention(
                query, key, value.bfloat16(), is_causal=True, enable_gqa=True
            )

    ways: list[Callable[[], torch.Tensor]] = [
        lambda: attend(in_float32=False),
        lambda: attend(in_float32=True),
        by_own_route,
    ]

    def both(way: Callable[[], torch.Tensor]) -> None:
        torch.autograd.grad(way(), (query, key, value), upstream)

    forward, whole = _times(ways, rounds), _times([lambda w=w: both(w) for w in ways], rounds)
    ratios = (
        statistics.median(own / other for own, other in zip(whole[2], times, strict=True))
        for times in whole[:2]
    )
    medians = (f"{statistics.median(times):.2f}" for times in (*forward, *whole))
    return [str(n_tokens), *medians, *(f"{ratio:.2f}" for ratio in ratios)]


def _times(parts: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Milliseconds of each part, round by round; the first warms up."""
    found: list[list[float]] = [[] for _ in parts]
    for at in range(rounds + 1):
        for part, times in zip(parts, found, strict=True):
            started_s = time.process_time()
            part()
            if at:
                times.append(1e3 * (time.process_time() - started_s))
    return found


if __name__ == "__main__":
    sys.exit(main())
