"""Fused attention on a CPU in bfloat16 and in float32, by length: where `ShortAttention` pays.

    python benchmarks/short_attention.py [--rounds 9]

The heads of SmolLM2-135M, batches of 4, as under autocast: queries and keys arrive in float32,
values in bfloat16, and gradients leave in the same types. Milliseconds of the processor, medians of
interleaved rounds; forward, and forward with backward.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import machine, table
from core.training.short_attention import ShortAttention

_BATCH, _HEADS, _WIDTH = 4, 9, 64
_LENGTHS = (32, 64, 96, 128, 160, 200, 256)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    titles = ["tokens", "forward bf16", "float32", "with backward bf16", "float32", "ratio"]
    rows = [_row(n_tokens, rounds) for n_tokens in _LENGTHS]
    print(f"{machine()}, torch {torch.__version__}\n\n{table(titles, rows)}")
    return 0


def _row(n_tokens: int, rounds: int) -> list[str]:
    torch.manual_seed(0)
    shape = (_BATCH, _HEADS, n_tokens, _WIDTH)
    tensors = [torch.randn(shape) for _ in range(3)]
    query, key, value = (tensor.requires_grad_() for tensor in tensors)
    upstream = torch.randn(shape).bfloat16()

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.scaled_dot_product_attention(query, key, value.bfloat16(), is_causal=True)

    def both() -> None:
        torch.autograd.grad(forward(), (query, key, value), upstream)

    parts: list[tuple[Callable[[], object], bool]] = [
        (part, is_short) for part in (forward, both) for is_short in (False, True)
    ]
    found: list[list[float]] = [[] for _ in parts]
    for at in range(rounds + 1):
        for (part, is_short), times in zip(parts, found, strict=True):
            with ShortAttention(torch.bfloat16) if is_short else nullcontext():
                started_s = time.process_time()
                part()
                if at:
                    times.append(1e3 * (time.process_time() - started_s))
    ratio = statistics.median(b / a for a, b in zip(found[2], found[3], strict=True))
    return [str(n_tokens), *(f"{statistics.median(t):.2f}" for t in found), f"{ratio:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
