"""How well a model predicts held-out data, token by token: loss and token accuracy.

How good its own answers are is `core.training.answers`' business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from core.training.step import LossStep, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Means over all label tokens: ``loss`` in nats, ``token_accuracy`` 0..1."""

    loss: float
    token_accuracy: float
    n_tokens: int
    #: of the forward passes: not spent, as `StepOutput.saved_flops`
    saved_flops: float = 0.0


@torch.no_grad()
def evaluate(step: LossStep, batches: Iterable[StepInputs]) -> Evaluation:
    """Loss and accuracy over ``batches`` in evaluation mode; the model's mode is restored."""
    was_training = step.model.training
    step.model.eval()
    loss_sum, n_correct, n_labels, saved_flops = 0.0, 0, 0, 0.0
    try:
        for inputs in batches:
            output = step(inputs)
            loss_sum += float(output.loss_sum)
            n_correct += int(output.n_correct)
            n_labels += inputs.n_labels
            saved_flops += output.saved_flops
    finally:
        step.model.train(was_training)
    return Evaluation(
        loss=loss_sum / n_labels,
        token_accuracy=n_correct / n_labels,
        n_tokens=n_labels,
        saved_flops=saved_flops,
    )
