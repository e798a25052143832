"""How much memory a job will take, whether its device has that much, and what is done if not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

import psutil
import torch

from core.errors import ModelUnsupported, OutOfMemory, RhoInfeasible
from core.training.hooks import Hook, StartRecord
from core.training.horizon import choose
from core.training.importance import needs_probes
from core.training.job import FitJob
from core.training.memory import MemoryEstimate, estimate
from core.training.pricing import Shape, price_steps
from core.training.probing import probe_batches
from core.training.step import LossStep
from core.training_options import TrainingOptions
from core.units import bytes_to_gib

#: the estimate was within 10 % of what torch gave out, and its selection is a guess
_CERTAIN: Final = 1.2
#: share of the device's memory above which measuring importance takes no more than it must
_AMPLE: Final = 0.5


def with_memory(job: FitJob, largest: Shape, rho: float) -> FitJob:
    """``job``, told what memory it will take. Where measuring importance is what would take most,
    and much of what there is, blocks run again for it.

    Args:
        largest, rho: as `expected_memory`.
    """
    found = expected_memory(job, largest, rho)
    if found is None:
        return job
    total_bytes = device_bytes(job.numerics.device)
    ample = math.inf if total_bytes is None else _AMPLE * total_bytes
    is_most = found.selecting_bytes > max(found.training_bytes, ample)
    if is_most and not job.training.gradient_checkpointing:
        with suppress(ModelUnsupported):  # no blocks that can run again
            saving = replace(job, probe_prices=price_steps(job.model, recomputes=True))
            found, job = expected_memory(saving, largest, rho, step_of=found) or found, saving
    return replace(job, memory_estimate_bytes=found.peak_bytes)


def expected_memory(
    job: FitJob, largest: Shape, rho: float, *, step_of: MemoryEstimate | None = None
) -> MemoryEstimate | None:
    """Memory of ``job`` with what its method would select at ``rho`` if the loss were as steep in
    every tensor: nothing is measured yet. Stored prefix rows are left out, since they take only
    what is free.

    Args:
        job: its model on the CPU, not yet run.
        largest: shape of the micro-batch that costs most.
        step_of: as of `core.training.memory.estimate`.

    Returns None where it cannot be told: routing among experts, a rho below the minimum.
    """
    candidates = {
        name: math.sqrt(parameter.numel())
        for name, parameter in job.model.named_parameters()
        if parameter.requires_grad and name in set(job.profile.trainable)
    }
    reselects = job.course.longest(0) < job.course.total_steps
    probe: Shape | None = None

    def measure() -> Mapping[str, float]:
        nonlocal probe
        if needs_probes(job.importance):
            probe = _largest_probe(job, largest, reselects=reselects)
        return candidates

    try:
        found = choose(
            job.course,
            job.method,
            job.profile,
            measure,
            step=0,
            rho=rho,
            elements=job.ranked_elements,
            rate=job.peak_learning_rates,
            wants_curve=job.wants_curve,
        )
        return estimate(
            job.model,
            found.choice.names,
            largest,
            autocast_dtype=job.numerics.autocast_dtype,
            recomputes=job.training.gradient_checkpointing,
            accumulates=job.training.gradient_accumulation > 1,
            probe=probe,
            candidates=candidates,
            reselects=reselects,
            device=job.numerics.device,
            keeps_best=job.training.early_stopping_patience is not None,
            lowers_frozen=True,
            probe_recomputes=job.probe_prices is not None,
            step_of=step_of,
        )
    except (ModelUnsupported, RhoInfeasible):
        return None


class RoomHook(Hook):
    """Before the first step: a job that cannot fit its device ends, or is told so.

    Args:
        tell: as `worker.hooks.Scribe.event`; the job goes on, because what runs out of memory is
            split. None: the job ends with `OutOfMemory`.
        total_bytes: of a device; None: not known.
    """

    def __init__(
        self,
        tell: Callable[..., None] | None,
        total_bytes: Callable[[torch.device], int | None] | None = None,
    ) -> None:
        self._tell = tell
        self._total_bytes = total_bytes or device_bytes

    def on_start(self, record: StartRecord) -> None:
        """Raises OutOfMemory."""
        total = self._total_bytes(torch.device(record.device))
        needed = record.memory_estimate_bytes
        if needed is None or total is None or needed <= _CERTAIN * total:
            return
        text = (
            f"This job needs about {bytes_to_gib(needed):.2f} GiB of memory and {record.device} "
            f"has {bytes_to_gib(total):.2f} GiB in all: lower "
            "hyperparameters.batch_size (raising green.training.gradient_accumulation alike) or "
            "green.rho, or turn on green.training.gradient_checkpointing."
        )
        if self._tell is None:
            raise OutOfMemory(text)
        data = {"kind": "memory", "memory_estimate_bytes": needed, "device_bytes": total}
        self._tell(text, level="warn", data=data)


def split(
    training: TrainingOptions, error: OutOfMemory, tell: Callable[..., None]
) -> TrainingOptions:
    """Half the micro-batch, twice the accumulation: the same samples per optimiser step.

    Args:
        error: what it ran into, raised where one sample is left.
        tell: as `worker.hooks.Scribe.event`.
    """
    batch_size = training.batch_size
    if batch_size is None or batch_size == 1:
        raise error
    smaller = replace(
        training,
        batch_size=(batch_size + 1) // 2,
        gradient_accumulation=2 * training.gradient_accumulation,
    )
    tell(
        f"Out of memory with hyperparameters.batch_size {batch_size}; going on with "
        f"{smaller.batch_size} and green.training.gradient_accumulation "
        f"{smaller.gradient_accumulation}",
        level="warn",
        data={"kind": "out_of_memory", "batch_size": smaller.batch_size},
    )
    return smaller


def device_bytes(device: torch.device) -> int | None:
    """All memory of a card, or of the host for the CPU; None: another kind of device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) if device.type == "cpu" else None


def _largest_probe(job: FitJob, largest: Shape, *, reselects: bool) -> Shape:
    """Of the first selection's, or where others follow, of as many rows of the largest batch."""
    drawn = probe_batches(job, 0)
    if reselects:
        B, T, U, N = largest
        n_rows = max(len(batch["labels"]) for batch in drawn)
        return n_rows, T, U, -(-N * n_rows // B)
    step = LossStep(job.model)
    return max((step.inputs(batch).shape for batch in drawn), key=job.prices.forward)
