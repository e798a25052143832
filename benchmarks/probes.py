"""How many probe batches importance needs: its ranking of tensors against the true loss change.

    python benchmarks/probes.py [--data FOLDER] [--points 0 50 150] [--tensors 40] [--seed 0]
        [--out docs/probes.md]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here).

At each point of a run of ``green`` at rho .5 (importance at the point, as a job there would take
it, with the Adam moments of the tensors trained until then):

1. importance from single probe batches that training has not seen, each whole, its first two
   samples and its first sample;
2. every tensor is updated, by a few optimiser steps on other batches;
3. one tensor at a time is put back to what it was, and the loss on held-out batches measured: by
   how much it rises is what that tensor's update was worth.

The table gives Spearman's rank correlation of the two over randomly chosen tensors: mean over
disjoint groups of probes, and the lowest group. The last column tells whether there is a truth to
compare with: its correlation on one half of the held-out batches with that on the other.
Losses are computed in float32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import Contender
from benchmarks.data import docstrings_unless
from benchmarks.measure import machine, publish
from core.settings import DEMO_MODEL
from core.training.importance import measure_importance
from core.training.methods import SelectionPoint
from core.training.numerics import choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.schedule import peak_learning_rate
from core.training.step import Batch, LossStep, StepInputs, needs_mask
from worker.prepare import PlannedFeed, Prepared

RHO = 0.5
#: samples of a probe, None: the whole batch -> numbers of probes whose mean is taken
PROBES: Mapping[int | None, tuple[int, ...]] = {1: (1,), 2: (1,), None: (1, 2, 4, 8)}
N_PROBES = 8
#: optimiser steps that make the update whose parts are undone
UPDATE_STEPS = 4
#: small, as a warm-up's: the whole model moves
UPDATE_RATE = 2e-5
MAX_NORM = 1.0

Values = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was found after ``step`` steps: correlations of disjoint groups by kind of probe."""

    step: int
    correlations: Mapping[tuple[int | None, int], Sequence[float]]
    ceiling: float


class Lab:
    """A run that can be stopped at any step to be asked how well importance foretells."""

    def __init__(self, prepared: Prepared, arguments: argparse.Namespace) -> None:
        self._prepared = prepared
        self._feed: PlannedFeed = prepared.feed()
        model = prepared.loaded.model.to(choose_numerics(None, "fp32").device)
        self._step = LossStep(model, keeps_mask=needs_mask(model))
        self._parameters = dict(model.named_parameters())
        self._optimiser = SelectiveAdamW(self._parameters, weight_decay=0.0)
        self._rate = peak_learning_rate(RHO, weight_scale=prepared.loaded.weight_scale)
        draw = random.Random(arguments.seed)
        trainable = sorted(prepared.profile.trainable)
        self._judged = draw.sample(trainable, min(arguments.tensors, len(trainable)))
        held_out = prepared.validation_batches()
        chosen = draw.sample(held_out, arguments.held_out)
        self._held_out = [self._step.inputs(batch) for batch in chosen]
        self._last = max(arguments.points)

    def points(self, steps: Sequence[int]) -> list[Point]:
        found = []
        for step in range(max(steps) + 1):
            if step in steps:
                found.append(self._point(step))
                print(f"step {step}: {found[-1]}", flush=True)
            if step == 0:
                self._optimiser.select(self._selected())
            if step < max(steps):
                self._train(step, self._rate)
        return found

    def _batch(self, number: int) -> Batch:
        """Training batches, the run's first, then those that are kept for points."""
        epoch, index = divmod(number, self._feed.batches_per_epoch)
        return self._feed.batch(epoch, index)

    def _train(self, number: int, rate: float) -> None:
        inputs = self._step.inputs(self._batch(number))
        torch.autograd.backward(self._step(inputs).loss_sum / inputs.n_labels)
        self._optimiser.step(learning_rate=rate, max_grad_norm=MAX_NORM)

    def _selected(self) -> tuple[str, ...]:
        point = SelectionPoint(
            profile=self._prepared.profile,
            rho=RHO,
            measure_importance=lambda: self._importance([self._step.inputs(self._batch(0))]),
            elements={name: parameter.numel() for name, parameter in self._parameters.items()},
        )
        return self._prepared.method.choose(point).names

    def _importance(self, probes: Sequence[StepInputs]) -> Values:
        trainable = {name: self._parameters[name] for name in self._prepared.profile.trainable}
        return measure_importance(
            self._step, probes, trainable, self._optimiser, learning_rate=self._rate
        )

    def _point(self, step: int) -> Point:
        # far from the run's own batches and from one another's
        first = self._last + 1 + step * (N_PROBES + UPDATE_STEPS)
        probes = [self._batch(first + at) for at in range(N_PROBES)]
        single = {
            size: [self._importance([self._step.inputs(_first(p, size))]) for p in probes]
            for size in PROBES
        }
        halves = self._worth(range(first + N_PROBES, first + N_PROBES + UPDATE_STEPS))
        truth = {name: halves[0][name] + halves[1][name] for name in self._judged}
        return Point(
            step=step,
            correlations={
                (size, count): [
                    spearman(_mean(single[size][at : at + count]), truth, self._judged)
                    for at in range(0, N_PROBES, count)
                ]
                for size, counts in PROBES.items()
                for count in counts
            },
            ceiling=spearman(halves[0], halves[1], self._judged),
        )

    def _worth(self, numbers: Sequence[int]) -> tuple[Values, Values]:
        """Rise of the loss on either half of the held-out batches when a tensor's update is undone.
        The run goes on afterwards from where it was.
        """
        names, moments = self._optimiser.names, {}
        if names:
            moments = {k: t.clone() for k, t in self._optimiser.state_tensors().items()}
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._optimiser.select(self._prepared.profile.trainable)
        for number in numbers:
            self._train(number, UPDATE_RATE)
        updated = self._losses()
        rises: tuple[Values, Values] = ({}, {})
        for name in self._judged:
            parameter = self._parameters[name]
            after = parameter.detach().clone()
            _put(parameter, before[name])
            undone = self._losses()
            _put(parameter, after)
            for rise, there, base in zip(rises, undone, updated, strict=True):
                rise[name] = there - base
        for name, parameter in self._parameters.items():
            _put(parameter, before[name])
        self._optimiser = SelectiveAdamW(self._parameters, weight_decay=0.0)
        self._optimiser.select(names)
        self._optimiser.load_state_tensors(moments)
        return rises

    @torch.no_grad()
    def _losses(self) -> tuple[float, float]:
        """Summed over the labels of the even and of the odd held-out batches."""
        losses = [float(self._step(inputs).loss_sum.double()) for inputs in self._held_out]
        return sum(losses[::2]), sum(losses[1::2])


def spearman(one: Mapping[str, float], other: Mapping[str, float], names: Sequence[str]) -> float:
    """Rank correlation over ``names``, -1..1; ties are as good as absent among measured losses."""
    ranks = [np.argsort(np.argsort([values[name] for name in names])) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def _mean(values: Sequence[Values]) -> Values:
    return {name: statistics.fmean(each[name] for each in values) for name in values[0]}


def _first(batch: Batch, size: int | None) -> Batch:
    return {name: tensor[:size] for name, tensor in batch.items()}


@torch.no_grad()
def _put(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    parameter.copy_(value)


def page(points: Sequence[Point], arguments: argparse.Namespace) -> str:
    names = {1: "first sample", 2: "first two samples", None: "batches"}
    heads = [
        f"{count} {names[size]}".removesuffix("es" if size is None and count == 1 else "")
        if size is None
        else names[size]
        for size, counts in PROBES.items()
        for count in counts
    ]
    lines = [
        "# Probe batches",
        "",
        (
            f"`benchmarks/probes.py`, seed {arguments.seed}: {arguments.model}, batch of "
            f"{arguments.batch_size}, {arguments.tensors} tensors drawn at random, "
            f"{arguments.held_out} held-out batches, update of {UPDATE_STEPS} steps at "
            f"{UPDATE_RATE:g}, {machine()}."
        ),
        "",
        (
            "Spearman's rank correlation of importance with the rise of the held-out loss when a "
            "tensor's update is undone: mean over disjoint probes (lowest)."
        ),
        "",
        f"| step | {' | '.join(heads)} | half against half of the truth |",
        f"|---|{'---|' * len(heads)}---|",
    ]
    for point in points:
        cells = [f"{statistics.fmean(c):.2f} ({min(c):.2f})" for c in point.correlations.values()]
        lines.append(f"| {point.step} | {' | '.join(cells)} | {point.ceiling:.2f} |")
    lines += [
        "",
        (
            "A row counts only where the last column is well above 0: else the two halves of the "
            "held-out batches do not agree on what the updates were worth, and the row's numbers "
            "say nothing of probes."
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--points", type=int, nargs="+", default=[0, 50, 150])
    parser.add_argument("--tensors", type=int, default=40, help="updates undone, one at a time")
    parser.add_argument("--held-out", type=int, default=6, help="batches; at least 2")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        data = docstrings_unless(arguments.data, Path(scratch))
        task = Task(
            model=arguments.model, data=data, batch_size=arguments.batch_size, n_questions=0
        )
        contender = Contender(method="green", rho=RHO)
        n_steps = max(1, *arguments.points)
        prepared = prepared_for(task, contender, n_steps=n_steps, rate=None, seed=arguments.seed)
        points = Lab(prepared, arguments).points(arguments.points)
    text = page(points, arguments)
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
