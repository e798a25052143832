"""Cutting one forward pass at a boundary: what is collected there, and what is put in instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from core.training.prefix_layout import Block, Chain, Layout, Station, as_evaluated, taken


@contextmanager
def captured(model: nn.Module, layout: Layout, boundary: int) -> Iterator[list[Tensor]]:
    """Collects the hidden states at every cut of the one forward pass that follows; what runs
    before ``boundary`` runs in evaluation mode.
    """
    hidden: list[Tensor] = []
    with ExitStack() as hooks, as_evaluated(model) as restore:
        for cut in layout.cuts(boundary):
            hooks.enter_context(_at(model, layout, cut, lambda each: hidden.append(each.detach())))
        hooks.enter_context(_at(model, layout, layout.stations[boundary], lambda _: restore()))
        yield hidden


@contextmanager
def put_in(
    model: nn.Module, layout: Layout, boundary: int, hidden: Sequence[Tensor]
) -> Iterator[None]:
    """Skips the blocks before ``boundary`` in the one forward pass that follows.

    Args:
        hidden: at each cut, as `captured` gives them.
    """
    with ExitStack() as changes, as_evaluated(model) as restore:
        for cut, stored in zip(layout.cuts(boundary), hidden, strict=True):
            chain = layout.chains[cut.chain]
            is_end = cut.place == len(chain.blocks)
            for place, block in layout.skipped(cut).items():
                gives = stored if is_end and place == cut.place - 1 else None
                changes.enter_context(
                    _replaced(model.get_submodule(block.path), _passing_on(chain, block, gives))
                )
            if not is_end:
                entry = model.get_submodule(chain.blocks[cut.place].path)
                changes.callback(_feed(entry, chain, stored))
        changes.enter_context(_at(model, layout, layout.stations[boundary], lambda _: restore()))
        yield


@contextmanager
def _at(
    model: nn.Module, layout: Layout, station: Station, act: Callable[[Tensor], None]
) -> Iterator[None]:
    """Calls ``act`` with the hidden states when the pass comes by ``station``."""
    chain = layout.chains[station.chain]
    if station.place < len(chain.blocks):
        handle = model.get_submodule(chain.blocks[station.place].path).register_forward_pre_hook(
            lambda _block, args, kwargs: act(taken(args, kwargs, chain.slot)), with_kwargs=True
        )
    else:
        handle = model.get_submodule(chain.blocks[-1].path).register_forward_hook(
            lambda _block, _args, output: act(output[0] if isinstance(output, tuple) else output)
        )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def _passing_on(chain: Chain, block: Block, gives: Tensor | None) -> Callable[..., Any]:
    """What stands in for a skipped block: hands ``gives``, or what it gets, to the next."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = taken(args, kwargs, chain.slot) if gives is None else gives
        if not block.gives_tuple:
            return hidden
        others = (None if slot is None else taken(args, kwargs, slot) for slot in block.others)
        return (hidden, *others)

    return forward


def _feed(entry: nn.Module, chain: Chain, stored: Tensor) -> Callable[[], None]:
    def replace_hidden(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(chain.slot, int):
            return (*args[: chain.slot], stored, *args[chain.slot + 1 :]), kwargs
        return args, {**kwargs, chain.slot: stored}

    return entry.register_forward_pre_hook(replace_hidden, with_kwargs=True).remove
