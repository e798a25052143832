"""Which samples a selection looks at before it chooses, and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch

from core.training.importance import needs_probes, rank_tensors
from core.training.job import FitJob
from core.training.low_rank import fuse
from core.training.optimiser import SelectiveAdamW
from core.training.step import Batch, LossStep, StepInputs, first_samples

#: a selection may cost one pair of probes, 1.1 full steps, for so many steps that it is in force:
#: half a percent of their time where they take only .3 of a full step's; for fewer steps the probes
#: have fewer samples
_STEPS_PER_PAIR: Final = 800
_MAX_PAIRS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """``flops``: of measuring importance on all of them; ``full_steps``: the same in steps of full
    fine-tuning, the mean one.
    """

    inputs: list[StepInputs]
    flops: float
    full_steps: float


def draw_probes(job: FitJob, loss_step: LossStep, step: int) -> Probes:
    """For a selection after ``step`` steps; none where the method's ranking takes none."""
    drawn = probe_batches(job, step) if job.method.ranks and needs_probes(job.importance) else []
    inputs = [loss_step.inputs(batch) for batch in drawn]
    price = (job.probe_prices or job.prices).of(job.profile.trainable)
    flops = math.fsum(price(each.shape) for each in inputs)
    full_step_flops = job.profile.full_flops * job.training.gradient_accumulation
    return Probes(inputs=inputs, flops=flops, full_steps=flops / full_step_flops)


def measure(
    job: FitJob,
    loss_step: LossStep,
    probes: Probes,
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: SelectiveAdamW,
    *,
    step: int,
    learning_rate: float,
    clip: float,
) -> dict[str, float]:
    """Of every tensor that may be trained, what the job's method ranks it by.

    Args:
        parameters: of the model, by name.
        step: steps done.
        learning_rate, clip: as `core.training.importance.measure_importance`.
    """
    with nullcontext() if job.probe_prices is None else _running_again(loss_step):
        return rank_tensors(
            job.importance,
            loss_step,
            probes.inputs,
            {name: parameters[name] for name in job.profile.trainable},
            optimiser,
            learning_rate=learning_rate,
            clip=clip,
            seed=job.seed + step,
        )


@contextmanager
def _running_again(loss_step: LossStep) -> Iterator[None]:
    """Blocks keep their inputs alone, in steps that do otherwise."""
    assert not loss_step.recomputes, "they have prices of their own"
    loss_step.recomputes = True
    fuse(loss_step.model, is_fused=False)
    try:
        yield
    finally:
        loss_step.recomputes = False
        fuse(loss_step.model, is_fused=True)


def probe_batches(job: FitJob, step: int) -> list[Batch]:
    """Probes for a selection after ``step`` steps, spread evenly over the steps that it will be in
    force for; in pairs, because importance is what one says of the other's update.
    """
    in_force = job.course.longest(step)
    n_probes = 2 * min(_MAX_PAIRS, max(1, in_force // _STEPS_PER_PAIR))
    ahead = [in_force * (2 * probe + 1) // (2 * n_probes) for probe in range(n_probes)]
    share = in_force * job.training.gradient_accumulation / _STEPS_PER_PAIR / 2
    return [first_samples(next(job.batches(step + steps)), share) for steps in ahead]
