"""A step's micro-batches on the model's device, made while the card works on the step before.

Batches are a pure function of the step (`core.training.job.Feed`), so which of them are made early
changes no number: a run that goes on from a checkpoint makes the same ones again.
"""

from __future__ import annotations

from core.training.job import FitJob
from core.training.step import LossStep, StepInputs


class MicroBatches:
    """Those of ``job``, as ``step`` takes them."""

    def __init__(self, job: FitJob, step: LossStep) -> None:
        self._job = job
        self._step = step
        self._ahead: tuple[int, list[StepInputs]] | None = None

    def of(self, step: int) -> list[StepInputs]:
        """Of step ``step`` (from 0); each call makes them anew unless they were made ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        return [self._step.inputs(batch) for batch in self._job.batches(step)]

    def make_ahead(self, step: int) -> None:
        """Of step ``step``, if the job has one. To be called when all work of the step before is
        queued, and before its numbers are read: reading waits for the card.
        """
        if step < self._job.total_steps:
            self._ahead = step, self.of(step)
