"""Gradient checkpointing: blocks that forget their activations and compute them again.

Chen et al., arXiv 1604.06174. Between the forward and the backward pass a block keeps its input
alone; when the backward pass reaches it, its forward pass runs once more, up to the last tensor
that is needed. Random numbers are drawn as before, so gradients are the same bits. A block in which
nothing needs a gradient is never run again.

Blocks are transformers' own (`GradientCheckpointingLayer`), but their gate is not: that one opens
in training mode alone, and measuring importance runs in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from core.errors import ModelUnsupported


def repeated_blocks(model: Any) -> list[nn.Module]:
    """Those that the model stacks, in its order; transformers tells them by their class."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def blocks_of(model: Any) -> list[nn.Module]:
    """The blocks that can run again, in the model's order.

    Raises:
        ModelUnsupported: it has none.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise ModelUnsupported(
            f"{type(model).__name__} has no blocks that can be computed again; leave "
            "green.training.gradient_checkpointing out.",
            param="green.training.gradient_checkpointing",
        )
    return blocks


@contextmanager
def recomputing(
    model: Any, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """The forward pass inside keeps the inputs of its blocks; the backward pass may come later.

    Only a block's own ``forward`` is repeated: hooks around it run once. ``around``: what the
    caller runs this forward pass in, beside autocast, so that it is there for the repetition too.
    """
    own: list[tuple[nn.Module, Any]] = []
    try:
        for block in blocks_of(model):
            own.append((block, vars(block).get("forward")))
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), around()),
            )
        yield
    finally:
        for block, forward in own:
            del block.forward
            if forward is not None:
                block.forward = forward
