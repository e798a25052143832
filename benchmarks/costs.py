"""Predicted against measured FLOPs of random trained sets, and the selector's time.

    python benchmarks/costs.py [--seed 0] [--sets 50] [--only NAME ...] [--out docs/costs.md]

Predicted: ``core.training.flops.profile``, once per model. Measured: torch's ``FlopCounterMode``
around a real forward and backward pass of the model on the meta device (no weights), eager
attention, with exactly the set's tensors trainable. Models have their published sizes, but for
mixtures of experts: which expert a token goes to takes weights, so theirs are small, random and
real, and measured expert by expert. Times are processor time of this process, so that they hold on
a busy machine too. Below the table: what is refused, and the profile's own words
for it. Exits with 1 if any set is off by more than 0.1 %, or if a selection measures more than its
budget.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.architectures import ARCHITECTURES, REFUSED, Architecture
from core.errors import ModelUnsupported
from core.training.flops import FlopsProfile, profile
from core.training.meta_trace import Layout, run_on_shapes
from core.training.pricing import price_steps
from core.training.selector import select, selection_curve

TOLERANCE = 1e-3
RHOS = (0.4, 0.5, 0.7, 0.9)
BATCH, TOKENS, DECODER_TOKENS = 4, 128, 32
# special in no configuration
_TOKEN = 3


def refusal(name: str) -> str:
    """The profile's own words. Raises KeyError for an unknown name, ValueError if it is priced."""
    config, sizes = REFUSED[name]
    model = Architecture(config=config, published=sizes, tiny=sizes).build(sizes)
    try:
        profile(model, batch_for(model, 1, 16, 8))
        price_steps(model)
    except ModelUnsupported as error:
        return str(error).split("; expected version")[0].rstrip(".")
    raise ValueError(f"{name} is priced")


def batch_for(model: Any, rows: int, tokens: int, decoder_tokens: int) -> dict[str, torch.Tensor]:
    ids_BT = torch.full((rows, tokens), _TOKEN)
    is_pair = model.config.is_encoder_decoder
    labels = torch.full((rows, decoder_tokens), _TOKEN) if is_pair else ids_BT
    return {"input_ids": ids_BT, "labels": labels}


def measured_flops(
    model: Any, batch: Mapping[str, torch.Tensor], names: Collection[str]
) -> tuple[int, int]:
    """(forward, backward) FLOPs of one real step that trains ``names``; eager attention."""
    _train_only(model, names)
    with FlopCounterMode(display=False) as forward:
        loss = _loss(model, batch)
    return forward.get_total_flops(), _measured_backward(loss)


class _OnShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs elementwise kernels, which have no FLOPs, once for each layout: half the time on meta.

    Entered outside the counter, which sees every kernel all the same.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layouts: dict[Any, Layout] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run_on_shapes(func, args, kwargs or {}, self._layouts)


def _measured_backward(loss: torch.Tensor) -> int:
    with _OnShapes(), FlopCounterMode(display=False) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    return int(backward.get_total_flops())


def _loss(model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
    device = next(model.parameters()).device
    with _OnShapes():
        return model(**{key: tensor.to(device) for key, tensor in batch.items()}).loss


def _train_only(model: Any, names: Collection[str]) -> None:
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        # an expert at a time, in products that torch's counter knows; some models have no experts
        with contextlib.suppress(ValueError):
            model.set_experts_implementation("eager")
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None


def random_set(costs: FlopsProfile, rng: random.Random) -> list[str]:
    """A set of any size: one tensor, a few, any number, all."""
    n = len(costs.trainable)
    size = rng.choice((1, min(n, 3), rng.randint(1, n), rng.randint(1, n), n))
    return rng.sample(costs.trainable, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    n_tensors: int
    profile_s: float
    forward_error: float
    backward_error: float
    select_ms: float
    curve_ms: float
    worst_budget_use: float

    @property
    def is_good(self) -> bool:
        worst = max(self.forward_error, self.backward_error)
        return worst <= TOLERANCE and self.worst_budget_use <= 1

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.n_tensors} | {self.profile_s:.2f} "
            f"| {100 * self.forward_error:.4f} | {100 * self.backward_error:.4f} "
            f"| {self.select_ms:.0f} | {self.curve_ms:.0f} | {self.worst_budget_use:.4f} |"
        )


HEAD = (
    "| model | tensors | profile, s | forward error, % | backward error, % "
    "| select, ms | all budgets, ms | measured / budget |\n|---|---|---|---|---|---|---|---|"
)


def row_for(name: str, n_sets: int, seed: int) -> Row:
    """Worst relative errors over ``n_sets`` random sets, and over selections at ``RHOS``."""
    rng = random.Random(f"{seed} {name}")
    architecture = ARCHITECTURES[name]
    with torch.device("cpu" if architecture.needs_weights else "meta"):
        model = architecture.build(architecture.published)
    batch = batch_for(model, BATCH, TOKENS, DECODER_TOKENS)
    start = time.process_time()
    costs = profile(model, batch)
    profile_s = time.process_time() - start
    # the forward pass costs the same whatever is trained
    forward, _ = measured_flops(model, batch, set(costs.trainable))
    forward_error = abs(costs.forward_flops - forward) / forward
    backward_error = 0.0
    for _ in range(n_sets):
        names = random_set(costs, rng)
        _train_only(model, set(names))
        backward = _measured_backward(_loss(model, batch))
        backward_error = max(backward_error, abs(costs.backward_flops(names) - backward) / backward)
    importance = {each: rng.gauss(0.5, 1) for each in costs.trainable}
    times_ms, worst_use = [], 0.0
    for rho in (rho for rho in RHOS if rho > costs.min_rho):
        start = time.process_time()
        selection = select(costs, importance, rho * costs.full_flops)
        times_ms.append(1e3 * (time.process_time() - start))
        spent = sum(measured_flops(model, batch, set(selection.names)))
        worst_use = max(worst_use, spent / (rho * costs.full_flops))
    start = time.process_time()
    selection_curve(costs, importance)
    return Row(
        name=name,
        n_tensors=len(costs.names),
        profile_s=profile_s,
        forward_error=forward_error,
        backward_error=backward_error,
        select_ms=statistics.median(times_ms),
        curve_ms=1e3 * (time.process_time() - start),
        worst_budget_use=worst_use,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=50, help="random sets for each model")
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    title = (
        f"Seed {arguments.seed}, {arguments.sets} random sets a model, batch {BATCH}, {TOKENS} "
        f"tokens, {DECODER_TOKENS} decoder tokens, published sizes, meta device.\n\n{HEAD}"
    )
    print(title)
    rows = []
    for name in arguments.only or ARCHITECTURES:
        rows.append(row_for(name, arguments.sets, arguments.seed))
        print(rows[-1], flush=True)
    refused = "\n".join(f"| {name} | {refusal(name)} |" for name in REFUSED)
    refused = f"\n## Refused before training\n\n| model | reason given |\n|---|---|\n{refused}"
    print(refused)
    if arguments.out:
        table = "\n".join(map(str, rows))
        text = f"# Predicted and measured costs\n\n{title}\n{table}\n{refused}\n"
        arguments.out.write_text(text, encoding="utf-8")
    bad = [row.name for row in rows if not row.is_good]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} within {TOLERANCE:.1%}"
        + "".join(f"; off: {b}" for b in bad)
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
