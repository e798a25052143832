"""Gradients of projections from some of a batch's tokens (rows): what that does to whole runs.

    python benchmarks/gradient_rows.py --data FOLDER [--steps 250] [--seeds 0] [--only LABEL ...]

FOLDER holds train.jsonl and validation.jsonl; the first 200 held-out examples are judged in
float32. The gradient of a projection's weight is the sum over rows of an outer product. It is taken
from a share of the rows: those with the largest products of norms (*ranked*), or half of these and
the rest drawn by their products of norms and scaled so that the sum stays unbiased (*drawn*:
WTA-CRS, arXiv 2305.15265). ``inputs``: the gradient of a projection's input, too, is computed for
this share of its rows alone, those with the largest gradients.

FLOPs are the profile's, with a projection's weight at that share of its price; where tensors are
selected, they are selected at that price. Not in the product: docs/learning.md says why.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.whole_runs import print_runs
from core.training.costs import FlopsProfile
from core.training.evaluate import evaluate
from core.training.hooks import Hook, SelectionRecord
from core.training.step import LossStep, needs_mask
from worker.prepare import train


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Shares of rows, 0..1, for the gradients of weights and of inputs."""

    weights: float = 1.0
    inputs: float = 1.0
    is_drawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    label: str
    contender: Contender
    rate: float
    rows: Rows = dataclasses.field(default_factory=Rows)


_GREEN_7, _GREEN_5 = Contender(method="green", rho=0.7), Contender(method="green", rho=0.5)
LINES = (
    Line(label="full", contender=FULL, rate=1e-4),
    Line(label="green .7", contender=_GREEN_7, rate=2e-4),
    Line(label="green .5", contender=_GREEN_5, rate=3e-4),
    Line(label="full, ranked .1", contender=FULL, rate=1e-4, rows=Rows(weights=0.1)),
    Line(label="full, drawn .1", contender=FULL, rate=1e-4, rows=Rows(weights=0.1, is_drawn=True)),
    Line(
        label="full, ranked .1, inputs .2",
        contender=FULL,
        rate=1e-4,
        rows=Rows(weights=0.1, inputs=0.2),
    ),
    Line(
        label="green .7, drawn .3",
        contender=_GREEN_7,
        rate=1.4e-4,
        rows=Rows(weights=0.3, is_drawn=True),
    ),
    Line(
        label="green .5, drawn .2",
        contender=_GREEN_5,
        rate=2e-4,
        rows=Rows(weights=0.2, is_drawn=True),
    ),
)


class _Projection(torch.autograd.Function):
    """``input @ weight.T`` with gradients from some rows."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, dtype: torch.dtype, rows: Rows) -> Tensor:
        given_rows, matrix = given.to(dtype), weight.to(dtype)
        ctx.save_for_backward(given_rows, matrix)
        ctx.rows, ctx.types = rows, (given.dtype, weight.dtype)
        return given_rows @ matrix.t()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given, matrix = ctx.saved_tensors
        given_RI, upstream_RO = given.flatten(0, -2), upstream[0].flatten(0, -2)
        norms_R = torch.linalg.vector_norm(upstream_RO, dim=1, dtype=torch.float32)
        input_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            input_grad = _to_some(upstream_RO, matrix, norms_R, ctx.rows.inputs).view_as(given)
            input_grad = input_grad.to(ctx.types[0])
        if ctx.needs_input_grad[1]:
            products_R = norms_R * torch.linalg.vector_norm(given_RI, dim=1, dtype=torch.float32)
            chosen, scale = _chosen(products_R, ctx.rows)
            scaled = upstream_RO[chosen] * scale[:, None].to(upstream_RO.dtype)
            weight_grad = (scaled.t() @ given_RI[chosen]).to(ctx.types[1])
        return input_grad, weight_grad, None, None


def _to_some(upstream_RO: Tensor, matrix: Tensor, norms_R: Tensor, share: float) -> Tensor:
    n_rows = max(1, int(share * len(norms_R)))
    if n_rows == len(norms_R):
        return upstream_RO @ matrix
    chosen = norms_R.topk(n_rows, sorted=False).indices
    found = upstream_RO.new_zeros(len(norms_R), matrix.shape[1])
    found[chosen] = upstream_RO[chosen] @ matrix
    return found


def _chosen(products_R: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows, and what each counts."""
    n_rows = max(1, int(rows.weights * len(products_R)))
    if n_rows == len(products_R):
        return torch.arange(n_rows), torch.ones(n_rows)
    if not rows.is_drawn:
        return products_R.topk(n_rows, sorted=False).indices, torch.ones(n_rows)
    n_sure = n_rows // 2
    sure = products_R.topk(n_sure).indices
    # padding has no gradient; it may be drawn where nothing else is left, and adds nothing
    odds_R = products_R + 1e-9
    odds_R[sure] = 0
    odds_R = odds_R / odds_R.sum()
    n_drawn = n_rows - n_sure
    drawn = torch.multinomial(odds_R, n_drawn, replacement=True)
    scale = torch.cat([torch.ones(n_sure), 1 / (n_drawn * odds_R[drawn])])
    return torch.cat([sure, drawn]), scale


def _projections(model: Any) -> dict[str, nn.Linear]:
    """By their weight's name; the output layer's rows are the labels' alone as it is."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.bias is None
    }


def _patch(model: Any, rows: Rows) -> None:
    def forward(module: nn.Linear, given: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not (module.weight.requires_grad or given.requires_grad):
            return nn.functional.linear(given, module.weight)
        on = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if on else given.dtype
        return _Projection.apply(given, module.weight, dtype, rows)  # type: ignore[no-untyped-call]

    for module in _projections(model).values():
        module.forward = functools.partial(forward, module)


def cheaper(profile: FlopsProfile, names: set[str], rows: Rows) -> FlopsProfile:
    """With the weights ``names`` at their share of rows; a share of full fine-tuning stays one."""
    own = {profile.members((name,)) for name in names}
    terms = tuple(
        (members, flops * rows.weights if members in own else flops)
        for members, flops in profile.terms
    )
    return dataclasses.replace(profile, terms=terms, reference_flops=profile.full_flops)


class _Chosen(Hook):
    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()

    def on_selection(self, record: SelectionRecord) -> None:
        self.names = record.names


def measured(task: Task, line: Line, n_steps: int, seed: int) -> tuple[float, float, float]:
    """As `whole_runs.Measure`."""
    prepared = prepared_for(task, line.contender, n_steps=n_steps, rate=line.rate, seed=seed)
    model = prepared.loaded.model
    plain, profile = prepared.profile, prepared.profile
    if line.rows != Rows():
        profile = cheaper(plain, set(_projections(model)), line.rows)
        _patch(model, line.rows)
    chosen, rho = _Chosen(), line.contender.rho
    bare = dataclasses.replace(prepared, profile=profile, validation_data=None)
    started_s = time.process_time()
    train(bare, rho=lambda _step: rho if isinstance(rho, float) else 1.0, hooks=[chosen])
    spent_s = time.process_time() - started_s
    judge = LossStep(model, keeps_mask=needs_mask(model))
    loss = evaluate(judge, map(judge.inputs, prepared.validation_batches())).loss
    share = profile.step_flops(chosen.names) / plain.full_flops
    # the gradients of inputs are the part of full fine-tuning's that no weight pays alone
    if line.rows.inputs < 1:
        shared = sum(flops for members, flops in plain.terms if members.bit_count() > 1)
        share -= (1 - line.rows.inputs) * shared / plain.full_flops
    return share, loss, spent_s


if __name__ == "__main__":
    sys.exit(print_runs(__doc__ or "", LINES, measured))
