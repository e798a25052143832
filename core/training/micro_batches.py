"""A step's micro-batches on the model's device, made while the card works on the step before, and
the gradients that they add up to.

Batches are a pure function of the step (`core.training.job.Feed`), so which of them are made early
changes no number: a run that goes on from a checkpoint makes the same ones again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from core.training.job import FitJob
from core.training.step import LossStep, StepInputs


@dataclass(slots=True, kw_only=True)
class StepSums:
    """Of a step whose gradients are there and whose update is not."""

    #: means over its label tokens: cross-entropy in nats, and share predicted right, 0..1
    loss: float
    token_accuracy: float
    n_tokens: int
    shapes: list[tuple[int, int, int, int]]
    #: of the forward passes, as `StepOutput.saved_flops`
    saved_flops: float
    started_s: float


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

    def gradients(self, step: int) -> StepSums:
        """Add to what is trained the gradients of the mean loss over all label tokens of step
        ``step``.
        """
        started_s = time.perf_counter()
        batches = self.of(step)
        n_labels = sum(inputs.n_labels for inputs in batches)
        device = self._job.model.device
        loss_sum = torch.zeros((), device=device)
        n_correct = torch.zeros((), dtype=torch.long, device=device)
        saved_flops = 0.0
        for inputs in batches:
            output = self._step(inputs)
            torch.autograd.backward(output.loss_sum / n_labels)
            loss_sum += output.loss_sum.detach()
            n_correct += output.n_correct
            saved_flops += output.saved_flops
        self.make_ahead(step + 1)
        return StepSums(
            loss=float(loss_sum) / n_labels,
            token_accuracy=int(n_correct) / n_labels,
            n_tokens=sum(inputs.n_tokens for inputs in batches),
            shapes=[inputs.shape for inputs in batches],
            saved_flops=saved_flops,
            started_s=started_s,
        )

    def make_ahead(self, step: int) -> None:
        """Of step ``step``, if the job has one. To be called when all work of the step before is
        queued, and before its numbers are read: reading waits for the card.
        """
        if step < self._job.total_steps:
            self._ahead = step, self.of(step)
