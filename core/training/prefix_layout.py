"""Where a model can be cut: its blocks in the order they run, and what each parameter is needed by.

Found by running the model once on a few tokens and looking, not by names. A *chain* is an outermost
``nn.ModuleList`` whose entries run once each, in order, each on the very tensor that the one before
gave: the blocks of a decoder, or of an encoder. The entries of all blocks and the ends of all
chains, in the order they are passed, are the model's *stations*. A parameter's station is the last
one passed before it is first used; a parameter used before the first station, or in a way that no
module call shows, has none. If nothing is trained whose station is before ``s``, everything up to
``s`` depends on the sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.training.step import IGNORED, Batch, LossStep

#: place of an argument: position, or name
Slot = int | str
#: no station: used before the first one, or unseen
NOWHERE = -1
_ROWS, _INPUT_TOKENS, _REPLY_TOKENS = 2, 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    path: str
    gives_tuple: bool
    #: for each output after the hidden states: the argument that it is; None: none of them
    others: tuple[Slot | None, ...]
    #: the next block takes something made here besides (T5's first block: the position bias)
    makes_others: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    blocks: tuple[Block, ...]
    #: where each block takes its hidden states (B, T or U, width)
    slot: Slot
    #: whose tokens the hidden states belong to
    side: Literal["input", "reply"]
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """Entry of block ``place`` of a chain; its end where ``place`` is the number of its blocks."""

    chain: int
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    chains: tuple[Chain, ...]
    stations: tuple[Station, ...]
    #: parameter's name (tied ones once) -> index into ``stations``, or NOWHERE
    first_use: dict[str, int]

    def cuts(self, boundary: int) -> tuple[Station, ...]:
        """Where hidden states must be put in so that nothing before station ``boundary`` matters:
        the ends of earlier chains, and the boundary unless nothing of its chain can be skipped.
        """
        if boundary == NOWHERE:
            return ()
        at = self.stations[boundary]
        ends = [
            Station(chain=place, place=len(self.chains[place].blocks)) for place in range(at.chain)
        ]
        return (*ends, at) if self.skipped(at) else tuple(ends)

    def skipped(self, cut: Station) -> dict[int, Block]:
        """The blocks, by place, that need not run when hidden states are put in at ``cut``: of the
        ones before it those that make nothing else for the blocks above.
        """
        blocks = self.chains[cut.chain].blocks
        is_end = cut.place == len(blocks)
        below = enumerate(blocks[: cut.place])
        return {place: block for place, block in below if is_end or not block.makes_others}


def find_layout(model: Any) -> Layout | None:
    """None where no chain is found, or chains run in one another's midst."""
    lists = _outermost_lists(model)
    watch = _Watch(model, lists)
    step = LossStep(model)
    with as_evaluated(model), torch.no_grad(), watch.on():
        step.logits(step.inputs(probe_batch(model)))
    chains = {at: chain for at in lists if (chain := watch.chain(at)) is not None}
    order = [event for event in watch.events if event[0] in chains]
    sequence = list(dict.fromkeys(at for at, _ in order))
    if not sequence or [at for at, _ in order] != sorted(
        (at for at, _ in order), key=sequence.index
    ):
        return None
    stations = tuple(Station(chain=sequence.index(at), place=place) for at, place in order)
    passed = [0]
    for at, _ in watch.events:
        passed.append(passed[-1] + (at in chains))
    return Layout(
        chains=tuple(chains[at] for at in sequence),
        stations=stations,
        first_use={
            name: passed[watch.first_use[p]] - 1 if p in watch.first_use else NOWHERE
            for name, p in model.named_parameters()
        },
    )


def probe_batch(model: Any, *, is_padded: bool = False) -> Batch:
    """Two short rows, the second padded where asked; replies of another length than inputs."""
    n_tokens = max(2, model.config.vocab_size)
    ids = torch.arange(_ROWS * _INPUT_TOKENS).reshape(_ROWS, _INPUT_TOKENS) % n_tokens
    labels = ids[:, :_REPLY_TOKENS].clone() if model.config.is_encoder_decoder else ids.clone()
    mask = torch.ones_like(ids)
    if is_padded:
        mask[1, -2:] = 0
        labels[1, -2:] = IGNORED
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Every module in evaluation mode; at the end, or when what is given is called, as before."""
    modules = [module for module in model.modules() if module.training]

    def restore() -> None:
        for module in modules:
            module.training = True

    for module in modules:
        module.training = False
    try:
        yield restore
    finally:
        restore()


def taken(args: Sequence[Any], kwargs: dict[str, Any], slot: Slot) -> Any:
    """The argument at ``slot``; None where it was not given."""
    if isinstance(slot, int):
        return args[slot] if slot < len(args) else None
    return kwargs.get(slot)


def _outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not is_inside:
            found[path] = module
    return found


@dataclass(slots=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


@dataclass(slots=True)
class _Watch:
    """What one run of the model shows. Tensors are kept until then: identity must not be reused."""

    model: nn.Module
    lists: dict[str, nn.ModuleList]
    #: (list, place) in the order passed; place = length of the list: its last entry is done
    events: list[tuple[str, int]] = field(default_factory=list)
    calls: dict[str, list[tuple[int, _Call]]] = field(default_factory=dict)
    #: parameter -> events passed when it was first used
    first_use: dict[nn.Parameter, int] = field(default_factory=dict)

    @contextmanager
    def on(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for path, blocks in self.lists.items():
                for place, block in enumerate(blocks):
                    hooks.callback(self._watch_block(path, place, block))
            for module in self.model.modules():
                if own := list(module.parameters(recurse=False)):
                    hooks.callback(self._watch_use(module, own))
            yield

    def _watch_block(self, path: str, place: int, block: nn.Module) -> Callable[[], None]:
        calls = self.calls.setdefault(path, [])
        is_last = place == len(self.lists[path]) - 1

        def enter(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.events.append((path, place))
            calls.append((place, _Call(args, kwargs)))

        def leave(_block: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            calls[-1][1].output = output
            if is_last:
                self.events.append((path, place + 1))

        before = block.register_forward_pre_hook(enter, with_kwargs=True)
        after = block.register_forward_hook(leave, with_kwargs=True)

        def forget() -> None:
            before.remove()
            after.remove()

        return forget

    def _watch_use(self, module: nn.Module, own: list[nn.Parameter]) -> Callable[[], None]:
        def use(*_: Any) -> None:
            for parameter in own:
                self.first_use.setdefault(parameter, len(self.events))

        return module.register_forward_pre_hook(use).remove

    def chain(self, path: str) -> Chain | None:
        """The list as a chain; None if it is none."""
        calls = self.calls[path]
        if [place for place, _ in calls] != list(range(len(self.lists[path]))):
            return None
        hidden = [_first(call.output) for _, call in calls]
        slots = {
            _slot_of(given, call) for given, (_, call) in zip(hidden[:-1], calls[1:], strict=True)
        }
        slot = slots.pop() if len(slots) == 1 else None if slots else 0
        first = None if slot is None else taken(calls[0][1].args, calls[0][1].kwargs, slot)
        sides: dict[int, Literal["input", "reply"]] = {
            _INPUT_TOKENS: "input",
            _REPLY_TOKENS: "reply",
        }
        if slot is None or not all(_is_hidden(each) for each in (first, *hidden)):
            return None
        assert first is not None, "it is hidden states"
        if first.shape[1] not in sides or any(each.shape != first.shape for each in hidden):
            return None
        return Chain(
            blocks=tuple(
                _block(f"{path}.{place}", call, following)
                for (place, call), (_, following) in zip(
                    calls, [*calls[1:], (0, None)], strict=True
                )
            ),
            slot=slot,
            side=sides[first.shape[1]],
            width=first.shape[2],
        )


def _block(path: str, call: _Call, following: _Call | None) -> Block:
    outputs = call.output if isinstance(call.output, tuple) else (call.output,)
    others = tuple(_slot_of(output, call) for output in outputs[1:])
    return Block(
        path=path,
        gives_tuple=isinstance(call.output, tuple),
        others=others,
        makes_others=following is not None
        and any(
            slot is None and _slot_of(output, following) is not None
            for output, slot in zip(outputs[1:], others, strict=True)
        ),
    )


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _slot_of(value: Any, call: _Call) -> Slot | None:
    """The argument of ``call`` that is ``value`` itself; None: there is none."""
    given: list[tuple[Slot, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    return next((slot for slot, each in given if each is value and value is not None), None)


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()
