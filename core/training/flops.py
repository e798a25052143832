"""FLOPs of one training step of any Hugging Face model, for any set of trained tensors.

``profile`` measures a model once, on shapes alone; the ``FlopsProfile`` then prices any set of
trained parameters without touching the model again. See ``costs`` for the cost model and ``graph``
for how it is read off the autograd graph. Not covered: FLOPs outside matrix products and
convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from core.training.costs import FlopsProfile
from core.training.graph import Loss, trace

__all__ = ["FlopsProfile", "Loss", "profile"]


def profile(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    recomputes: bool = False,
    is_checked: bool = True,
) -> FlopsProfile:
    """Cost of a training step of ``model`` on ``batch``, as a function of the trained set.

    Equals ``torch.utils.flop_counter.FlopCounterMode`` around a real step with eager attention.
    Attention is counted as plain products whatever implementation the model is set to. Needs no
    weights: neither those of a real model (they are not read) nor any at all (meta device).

    Args:
        model: left untouched: its weights, flags, mode and attention implementation stay.
        batch: what ``model(**batch)`` takes, with labels. Shapes count; values only where the
            model's or the loss's own shapes depend on them, and then they must be real.
        loss: (model, batch) -> scalar loss, default ``model(**batch).loss``. Called once, with a
            copy of the model that has shapes but no data, and with the batch on the CPU.
        recomputes: with gradient checkpointing (`core.training.recompute`): what runs again in the
            backward pass counts there, for every set, full fine-tuning's included.
        is_checked: hold the account against a backward pass. False only for a model that was
            checked at another shape.

    Raises:
        ModelUnsupported: an operator whose cost is not known, quantised weights, or a model whose
            shapes depend on the values of its weights; names the operator or the parameter.
        InvalidInput: no loss, or one that does not depend on the model.
    """
    return trace(model, batch, loss or _own_loss, recomputes=recomputes, is_checked=is_checked)


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    return model(**batch).loss  # type: ignore[no-any-return]
