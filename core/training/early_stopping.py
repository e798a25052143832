"""Early stopping: training ends when validation loss has not fallen for a while, and the model gets
the weights of its best step.

Prechelt, "Early stopping - but when?" (1998): the criterion UP over whole epochs, patience being
how many. What a run knows of it is in its `TrainState`; here are the rule and the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from core.training.checkpoint import TrainState
from core.training.evaluate import Evaluation


class EarlyStopping:
    """The rule, and copies in the host's memory of all that was ever trained.

    They are of the best step; there are none before the first validation after training. A tensor
    that is trained for the first time after that step was the base model's until then, so its copy
    is taken the moment before (`cover`).

    Args:
        parameters: of the model, by name.
        patience: steps without a lower validation loss; None: training never ends early, and
            nothing is kept.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], patience: int | None) -> None:
        self._parameters = parameters
        self._patience = patience
        self._kept: dict[str, torch.Tensor] = {}

    def note(self, state: TrainState, found: Evaluation) -> None:
        """``found`` is of the weights as they are; the base model's does not count."""
        if self._patience is None or state.step == 0:
            return
        if state.best_step is None or state.best_loss is None or found.loss < state.best_loss:
            state.best_step, state.best_loss = state.step, found.loss
            state.best_token_accuracy = found.token_accuracy
            self._take(state.ever_trained)
        else:
            state.is_over = state.step - state.best_step >= self._patience

    def cover(self, names: Iterable[str]) -> None:
        """``names`` will be trained from here on; nothing happens before there is a best step."""
        if self._kept:
            self._copy(name for name in names if name not in self._kept)

    @torch.no_grad()
    def put_back(self, state: TrainState) -> bool:
        """Make the model what it was at the best step; whether it was something else."""
        if _is_best(state):
            return False
        for name, weight in self._kept.items():
            self._parameters[name].copy_(weight)
        state.kept_step, state.validated_at = state.best_step, state.step
        state.validation_loss = state.best_loss
        state.validation_token_accuracy = state.best_token_accuracy
        return True

    def tensors(self, state: TrainState) -> Mapping[str, torch.Tensor]:
        """What a checkpoint must hold beside the weights; nothing where these are the best."""
        return {} if _is_best(state) else self._kept

    def restore(self, state: TrainState, tensors: Mapping[str, torch.Tensor]) -> None:
        """``tensors``: of the checkpoint of ``state``, whose weights the model has by now."""
        if tensors:
            self._kept = dict(tensors)
        elif state.best_step is not None:
            self._take(state.ever_trained)

    def _take(self, names: Iterable[str]) -> None:
        self._kept.clear()
        self._copy(names)

    def _copy(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._kept[name] = self._parameters[name].detach().to("cpu", copy=True)


def _is_best(state: TrainState) -> bool:
    """Whether the model's weights are those of the best step so far, or there is none."""
    return state.best_step in (None, state.step) or state.kept_step is not None
