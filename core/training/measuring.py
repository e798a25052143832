"""What work costs here, in seconds or joules: a few passes over real batches, before any selection.

Three sets are trained in turn, up to their gradients: the tensor nearest the loss, the one that
needs most activation gradients and has least of its own, and everything. They give the prices of
forward, activation and weight FLOPs in `rates.Rates`, which then predict these three sets exactly;
the optimiser's price is measured on scratch tensors. Where selections count on stored hidden
states, a pass that finds its rows stored is measured as well.

Nothing is left behind: weights, moments, gradients, flags and random state are bit for bit what
they were. Gradients are freed as they arrive, as in measuring importance.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import numpy as np
import torch

from core.training.costs import FlopsProfile
from core.training.importance import freeing_gradients
from core.training.job import FitJob
from core.training.optimiser import SelectiveAdamW
from core.training.rates import Rates
from core.training.step import Batch, LossStep, StepInputs, StepOutput

T = TypeVar("T")

#: batches that prices are the medians of: measuring one takes about two full steps, and a warm-up
#: one more
_ROUNDS: Final = 3
#: shorter jobs have one: three full steps
_STEPS_FOR_ALL: Final = 600
#: elements that the optimiser's price is measured on: past the caches; with gradient and moments
#: 128 MiB
_SCRATCH: Final = 1 << 23
_COLUMNS: Final = 256


def measure_rates(
    job: FitJob, step: LossStep, parameters: Mapping[str, torch.nn.Parameter]
) -> Rates:
    """Prices in the currency of ``job.meter``, which is there.

    Args:
        step: the run's own; what it stores is dropped.
        parameters: all that may ever be trained; none may hold a gradient.
    """
    assert job.meter is not None, "there is a currency to measure in"
    started_s = time.perf_counter()
    trial = _Trial(job, step, parameters)
    n_rounds = _ROUNDS if job.total_steps >= _STEPS_FOR_ALL else 1
    try:
        with left_as_it_was(job, parameters):
            parameter = trial.update_rate()
            found = np.array([trial.rates(draw) for draw in batches_across(job, n_rounds)])
    finally:
        step.forget()
    forward, activation, weight, spared = np.median(found, axis=0).tolist()
    return Rates(
        currency=job.meter.currency,
        unit=job.meter.unit,
        forward=forward,
        activation=activation,
        weight=weight,
        parameter=parameter,
        spared=spared,
        flops=trial.flops,
        duration_s=time.perf_counter() - started_s,
    )


def measured_sets(profile: FlopsProfile) -> tuple[tuple[str, ...], ...]:
    """The three sets: nearest the loss, of the longest way down with least to do there, all."""
    names = profile.trainable
    split = {name: _split(profile, (name,)) for name in names}
    nearest = min(names, key=lambda name: sum(split[name]))
    deepest = max(names, key=lambda name: split[name][0] - split[name][1])
    return (nearest,), (deepest,), names


@contextmanager
def left_as_it_was(job: FitJob, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Afterwards flags, gradients (there must be none) and random state are what they were."""
    assert all(p.grad is None for p in parameters.values()), "gradients must be free"
    flags = {p: p.requires_grad for p in job.model.parameters()}
    device = job.model.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def plain_step(job: FitJob, step: LossStep) -> LossStep:
    """One that computes as ``step`` does and stores nothing."""
    plain = LossStep(
        job.model,
        keeps_mask=step.keeps_mask,
        autocast_dtype=job.numerics.autocast_dtype,
    )
    plain.recomputes = step.recomputes
    return plain


def wait_for(device: torch.device) -> None:
    """Until a card has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batches_across(job: FitJob, n_batches: int) -> list[Callable[[], Batch]]:
    """Micro-batches of the first epoch, evenly spread, made as training makes them."""
    places = [job.steps_per_epoch * (2 * at + 1) // (2 * n_batches) for at in range(n_batches)]
    return [partial(_first_batch, job, place) for place in places]


def _first_batch(job: FitJob, step: int) -> Batch:
    return next(job.batches(step))


class _Trial:
    """Attributes: ``flops``: spent so far."""

    def __init__(
        self, job: FitJob, step: LossStep, parameters: Mapping[str, torch.nn.Parameter]
    ) -> None:
        assert job.meter is not None, "there is a currency to measure in"
        self._job = job
        self._meter = job.meter
        self._reusing = step
        self._plain = plain_step(job, step)
        self._parameters = dict(parameters)
        self._sets = measured_sets(job.profile)
        self._is_warm = False
        self.flops = 0.0

    def rates(self, draw: Callable[[], Batch]) -> tuple[float, float, float, float]:
        """Prices of a FLOP (forward, activation, weight, spared) from one batch."""
        if not self._is_warm:
            self._pass(self._plain, draw, self._sets[-1])
            self._is_warm = True
        costs, rows = [], []
        for names in self._sets:
            run = partial(self._pass, self._plain, draw, names)
            cost, (inputs, _) = self._spent(run)
            profile = self._job.prices.mean_profile([inputs.shape])
            costs.append(cost)
            rows.append((profile.forward_flops, *_split(profile, names)))
        forward, activation, weight = _solved(rows, costs)
        spared = self._spared_rate(draw, costs[0], most=forward * rows[0][0])
        return forward, activation, weight, forward if spared is None else spared

    def update_rate(self) -> float:
        """Clipping, AdamW and the gradient's memory, by element."""
        n_elements = min(_SCRATCH, sum(p.numel() for p in self._parameters.values()))
        n_columns = min(_COLUMNS, n_elements)
        device = self._job.model.device
        scratch = torch.nn.Parameter(torch.ones(n_elements // n_columns, n_columns, device=device))
        optimiser = SelectiveAdamW({"": scratch}, weight_decay=self._job.training.weight_decay)
        optimiser.select([""])

        def update() -> None:
            scratch.grad = torch.ones_like(scratch)
            optimiser.step(learning_rate=1e-6, max_grad_norm=self._job.training.max_grad_norm)

        update()  # makes the moments
        found = [self._spent(update)[0] for _ in range(_ROUNDS)]
        return statistics.median(found) / scratch.numel()

    def _spared_rate(self, draw: Callable[[], Batch], paid: float, *, most: float) -> float | None:
        """What a pass nearest the loss that finds its rows stored costs less than ``paid``, by
        FLOP; None: nothing is counted on, or this batch is not stored.
        """
        spared = self._job.course.spared
        if spared is None or not any(spared.flops):
            return None
        self._reusing.forget()
        run = partial(self._pass, self._reusing, draw, self._sets[0])
        run()
        cost, (_, output) = self._spent(run)
        saved = output.saved_flops
        return min(max(paid - cost, 0.0), most) / saved if saved else None

    def _pass(
        self, step: LossStep, draw: Callable[[], Batch], names: Collection[str]
    ) -> tuple[StepInputs, StepOutput]:
        """From the batch to the gradients of ``names``, which are freed."""
        trained = set(names)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in trained)
        inputs = step.inputs(draw())
        with freeing_gradients([self._parameters[name] for name in names]):
            output = step(inputs)
            torch.autograd.backward(output.loss_sum / inputs.n_labels)
        self.flops += self._job.prices.of(names)(inputs.shape) - output.saved_flops
        return inputs, output

    def _spent(self, run: Callable[[], T]) -> tuple[float, T]:
        """What ``run`` costs, the mean of as many times as the meter needs."""
        device = self._job.model.device
        wait_for(device)
        before, started_s, n_runs = self._meter.read(), self._meter.clock(), 0
        while True:
            found = run()
            wait_for(device)
            n_runs += 1
            if self._meter.clock() - started_s >= self._meter.least_s:
                return (self._meter.read() - before) / n_runs, found


def _split(profile: FlopsProfile, names: Collection[str]) -> tuple[float, float]:
    """FLOPs of the backward pass of ``names``: what several tensors need, and what one does."""
    trained, shared, own = profile.members(names), 0.0, 0.0
    for members, flops in profile.terms:
        if members & trained:
            if members.bit_count() == 1:
                own += flops
            else:
                shared += flops
    return shared, own


def _solved(rows: Sequence[Sequence[float]], costs: Sequence[float]) -> tuple[float, float, float]:
    """Prices of forward, activation and weight FLOPs under which ``rows`` cost ``costs``; none
    below 0, which noise could make them.
    """
    matrix = np.array(rows, np.float64)
    scale = matrix.max() or 1.0
    forward, activation, weight = (
        np.linalg.lstsq(matrix / scale, np.array(costs))[0] / scale
    ).tolist()
    # what goes back nearest the loss went forward before: the forward pass is half of it or more
    least = costs[0] / 2 / rows[0][0]
    return max(forward, least), max(activation, 0.0), max(weight, 0.0)
