"""What must hold on any device: FLOPs as predicted, a resumed run as if it was never stopped."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.training.hooks import Control
from core.training.step import LossStep
from worker.prepare import Prepared, train

_STEPS = 6
_STOP_AFTER = 3
#: one selection before the stop and one after it
_SELECT_EVERY = 4
_RHO = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeDifference:
    n_tensors: int
    n_different: int
    #: largest difference of a weight, and the largest update of any
    largest: float
    largest_update: float

    @property
    def is_same(self) -> bool:
        return self.n_different == 0

    @property
    def text(self) -> str:
        if self.is_same:
            return f"the same bits in all {self.n_tensors} tensors"
        return (
            f"{self.n_different} of {self.n_tensors} tensors differ, by at most "
            f"{self.largest:.1e} where updates are up to {self.largest_update:.1e}"
        )


def flops_error(prepared: Prepared, names: Collection[str]) -> float:
    """Relative error of the price of the first batch, with ``names`` trained; eager attention,
    which torch's counter can see.
    """
    model = prepared.loaded.model
    before = model.config._attn_implementation  # noqa: SLF001  told nowhere else
    model.set_attn_implementation("eager")
    step = LossStep(model)
    inputs = step.inputs(prepared.feed().batch(0, 0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(step(inputs).loss_sum)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    model.set_attn_implementation(before)
    predicted = prepared.prices.of(names)(inputs.shape)
    return abs(predicted / counter.get_total_flops() - 1)


def resume_difference(prepared: Prepared) -> ResumeDifference:
    """Of the weights of a run of six steps and of one that was stopped after three; the model is
    as before afterwards.
    """
    training = dataclasses.replace(
        prepared.training,
        max_steps=_STEPS,
        selection_interval=_SELECT_EVERY / prepared.steps_per_epoch,
    )
    bare = dataclasses.replace(prepared, training=training, validation_data=None, exam=None)
    base = weights_of(prepared)
    train(bare, rho=lambda _step: _RHO)
    straight = weights_of(prepared)
    restore(prepared, base)
    with tempfile.TemporaryDirectory() as folder:
        asked = 0

        def stop() -> Control:
            nonlocal asked
            asked += 1
            return Control.CHECKPOINT_AND_STOP if asked > _STOP_AFTER else Control.CONTINUE

        train(bare, rho=lambda _step: _RHO, checkpoints=Path(folder), control=stop)
        restore(prepared, base)
        train(bare, rho=lambda _step: _RHO, checkpoints=Path(folder))
    resumed = weights_of(prepared)
    restore(prepared, base)
    gaps = [float((straight[name] - resumed[name]).abs().max()) for name in straight]
    return ResumeDifference(
        n_tensors=len(straight),
        n_different=sum(not torch.equal(straight[name], resumed[name]) for name in straight),
        largest=max(gaps),
        largest_update=max(float((straight[name] - base[name]).abs().max()) for name in straight),
    )


def weights_of(prepared: Prepared) -> dict[str, torch.Tensor]:
    """Copies on the CPU."""
    named = prepared.loaded.model.named_parameters()
    return {name: parameter.detach().cpu().clone() for name, parameter in named}


@torch.no_grad()
def restore(prepared: Prepared, weights: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in prepared.loaded.model.named_parameters():
        parameter.copy_(weights[name])
