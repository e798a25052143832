"""Gradients of projections' weights through a narrow projection: what that does to whole runs.

    python benchmarks/gradient_projections.py --data FOLDER [--steps 250] [--seeds 0] [--only LABEL]

FOLDER holds train.jsonl and validation.jsonl; the first 200 held-out examples are judged in
float32. The gradient of a weight W (O, I) is ``dY' X``. Here its shorter side is multiplied by
``r`` orthonormal rows first: ``G = dY' (X A')`` or ``G = (C dY')' X``. AdamW keeps moments of G
alone, and what it would do to G moves W by the rows, scaled so that an element moves as far in the
mean square as it would by itself. Rows are *drawn*, once (Hao et al., arXiv 2402.03293), or those
of the largest singular values of the first two batches' gradient (*own*; Zhao et al., arXiv
2403.03507). Both have the whole gradient computed, to save memory; here it never is, to save work.

All projections of all blocks learn this way, norms as always, the embeddings not. Not in the
product: docs/learning.md says why.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL
from benchmarks.whole_runs import print_runs
from core.training.evaluate import evaluate
from core.training.numerics import as_autocast, choose_numerics
from core.training.schedule import schedule_factor
from core.training.step import LossStep, StepInputs, needs_mask
from worker.prepare import Prepared

_PROBES = 2
_SPARE = 8

Rows = Literal["drawn", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``rank`` 0: full fine-tuning."""

    label: str
    rate: float
    rank: int = 0
    rows: Rows = "drawn"


LINES = (
    Line(label="full", rate=1e-4),
    Line(label="drawn 32", rate=2e-4, rank=32),
    Line(label="drawn 64", rate=2e-4, rank=64),
    Line(label="drawn 128", rate=2e-4, rank=128),
    Line(label="own 32", rate=1e-4, rank=32, rows="own"),
    Line(label="own 64", rate=1e-4, rank=64, rows="own"),
)


class _Projected(torch.autograd.Function):
    """``x W'``, with a gradient for the factor in place of the weight's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, _factor: Tensor, narrow: Narrow) -> Tensor:
        weight_OI = weight.to(x.dtype)
        ctx.save_for_backward(x, weight_OI)
        ctx.narrow = narrow
        return F.linear(x, weight_OI)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        x_grad = upstream[0] @ weight_OI if ctx.needs_input_grad[0] else None
        found = ctx.narrow.gradient(upstream[0].flatten(0, -2), x.flatten(0, -2))
        return x_grad, None, found, None


class Narrow:
    """One weight's: ``factor`` (O, r) or (r, I), zero between steps; ``rows`` (r, shorter side)."""

    def __init__(self, weight: nn.Parameter, rank: int, generator: torch.Generator) -> None:
        n_out, n_in = weight.shape
        short, wide = min(weight.shape), max(weight.shape)
        self._is_of_input = n_in <= n_out
        self._weight, self._scale = weight, math.sqrt(short / rank)
        drawn = torch.randn(short, rank, generator=generator)
        self.rows = torch.linalg.qr(drawn).Q.t().to(weight.device)
        shape = (wide, rank) if self._is_of_input else (rank, wide)
        self.factor = nn.Parameter(torch.zeros(shape, device=weight.device))

    def gradient(self, upstream_RO: Tensor, x_RI: Tensor) -> Tensor:
        rows = self.rows.to(x_RI.dtype)
        if self._is_of_input:
            return (upstream_RO.t() @ F.linear(x_RI, rows)).float()
        return (F.linear(upstream_RO, rows).t() @ x_RI).float()

    def take_own(self, generator: torch.Generator) -> None:
        """The directions of the weight's gradient, by subspace iteration."""
        assert self._weight.grad is not None, "a batch has passed"
        gradient = self._weight.grad if self._is_of_input else self._weight.grad.t()
        start = torch.randn(gradient.shape[1], len(self.rows) + _SPARE, generator=generator)
        basis = start.to(gradient.device)
        for _ in range(3):
            basis = torch.linalg.qr(gradient.t() @ (gradient @ basis)).Q
        right = torch.linalg.svd(gradient @ basis, full_matrices=False).Vh
        self.rows = (right[: len(self.rows)] @ basis.t()).contiguous()

    @torch.no_grad()
    def move(self) -> None:
        moved = self.factor @ self.rows if self._is_of_input else self.rows.t() @ self.factor
        self._weight.add_(moved, alpha=self._scale)
        self.factor.zero_()


def _patched(model: Any, rank: int, generator: torch.Generator) -> dict[nn.Linear, Narrow]:
    """Every projection but the output layer's, and what it learns through; nothing else but norms
    is trained.
    """
    head, found = model.get_output_embeddings(), {}
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.bias is None:
            found[module] = Narrow(module.weight, rank, generator)
            module.forward = functools.partial(_forward, module.weight, found[module])
        elif "norm" in name:
            module.requires_grad_(True)
    return found


def _forward(weight: Tensor, narrow: Narrow, given: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.linear(given, weight)
    return _Projected.apply(as_autocast(given), weight, narrow.factor, narrow)  # type: ignore[no-untyped-call,no-any-return]


def _take_own(
    step: LossStep, batches: list[StepInputs], found: dict[nn.Linear, Narrow], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    patched = {module: module.forward for module in found}
    for module in found:
        module.weight.requires_grad_(True)
        module.forward = functools.partial(nn.Linear.forward, module)
    for inputs in batches:
        torch.autograd.backward(step(inputs).loss_sum / inputs.n_labels)
    for module, narrow in found.items():
        narrow.take_own(generator)
        module.weight.requires_grad_(False)
        module.forward = patched[module]
    step.model.zero_grad(set_to_none=True)


def _share(prepared: Prepared, found: dict[nn.Linear, Narrow]) -> float:
    """Of full fine-tuning's FLOPs, moving the weights included."""
    profile, model = prepared.profile, prepared.loaded.model
    names = {p: name for name, p in model.named_parameters()}
    if not found:
        return 1.0
    terms, flops = (
        dict(profile.terms),
        profile.step_flops(
            [name for p, name in names.items() if "norm" in name]
            + [names[module.weight] for module in found]
        ),
    )
    for module, narrow in found.items():
        n_out, n_in = module.weight.shape
        rank = len(narrow.rows)
        own = terms[profile.members((names[module.weight],))]
        flops -= own * (1 - rank * (n_out + n_in) / (n_out * n_in))
        flops += 2 * rank * n_out * n_in
    return flops / profile.full_flops


def measured(task: Task, line: Line, n_steps: int, seed: int) -> tuple[float, float, float]:
    """As `whole_runs.Measure`."""
    prepared = prepared_for(task, FULL, n_steps=n_steps, rate=line.rate, seed=seed)
    numerics = choose_numerics()
    model = prepared.loaded.model.to(numerics.device)
    keeps_mask, feed = needs_mask(model), prepared.feed()
    generator = torch.Generator().manual_seed(seed)
    found = _patched(model, line.rank, generator) if line.rank else {}
    step = LossStep(model, keeps_mask=keeps_mask, autocast_dtype=numerics.autocast_dtype)

    def inputs_of(at: int) -> StepInputs:
        return step.inputs(feed.batch(*divmod(at, feed.batches_per_epoch)))

    if line.rows == "own":
        _take_own(step, [inputs_of(at) for at in range(_PROBES)], found, seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    trained += [narrow.factor for narrow in found.values()]
    adamw = torch.optim.AdamW(trained, lr=line.rate, weight_decay=0.0, fused=True)
    options, started_s = prepared.training, time.process_time()
    model.train()
    for at in range(n_steps):
        inputs = inputs_of(at)
        torch.autograd.backward(step(inputs).loss_sum / inputs.n_labels)
        torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
        factor = schedule_factor(options.schedule, at, n_steps, options.warmup_ratio)
        for group in adamw.param_groups:
            group["lr"] = line.rate * factor
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        for narrow in found.values():
            narrow.move()
    spent_s = time.process_time() - started_s
    model.eval()
    judge = LossStep(model, keeps_mask=keeps_mask)
    loss = evaluate(judge, map(judge.inputs, prepared.validation_batches())).loss
    return _share(prepared, found), loss, spent_s


if __name__ == "__main__":
    sys.exit(print_runs(__doc__ or "", LINES, measured))
