"""Importance of every tensor: the loss drop that training it would bring, to first order.

GreenTrainer (arXiv 2309.13192, section 3.2): I(k) = -sum(gradient_k * delta_k), with delta_k the
update that the optimiser would make next, from its moments as they are (AdamW: normalised, so
importance is no mere gradient norm).

How we differ from the authors' code: they take two optimiser steps and two backward passes to see
delta, with copies of all weights, and leave the optimiser changed. Here delta is computed from
each gradient in closed form the moment backward delivers it, and the gradient is freed before the
next arrives: one forward and one full backward per probe batch, no second set of gradients, and
weights, optimiser, gradients and random state are bit for bit what they were.

And one flaw of theirs is not ours: with gradient and delta of the same batch, noise counts as
gain. AdamW moves a fresh weight by its gradient's sign, so a tensor whose gradient is all noise
gets the sum of its absolute values, as if the next batch would agree. Ranking therefore takes
probes in pairs (`measure_crossed_importance`): the update from one, the gradient from the other, so
that what does not carry over to other samples cancels. Over several pairs the mean is taken.

What tensors are ranked by is not the drop itself (`ranking`); ``taylor`` ranks by the drop, as the
paper does.

Three other rankings are there to be compared with: ``fisher`` (the tensor's share of the empirical
Fisher information, the sum of squares of the batch's mean gradient; as dear as importance),
``magnitude`` (sum of absolute weights) and ``random`` (uniform on [0, 1), by seed and name), which
cost nothing. All add up over tensors, as the selector needs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final, Protocol, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

from core.spec import ImportanceName
from core.training.optimiser import SelectiveAdamW
from core.training.ranking import is_drop
from core.training.step import LossStep, StepInputs

Probe = TypeVar("Probe")

#: elements of a tensor that are kept between the two probes of a pair (float32: half a MiB): their
#: products' sum is known to a few percent, which ranks tensors that differ by orders of magnitude
_SAMPLED: Final = 1 << 17

#: elements that are judged in one go: what stays in a core's cache; what a card is busy with for as
#: long as it takes to tell it
_AT_ONCE, _AT_ONCE_ON_A_CARD = 1 << 18, 1 << 22

#: torch leaves this method untyped
_watch: Callable[[torch.Tensor, Callable[[torch.Tensor], None]], RemovableHandle] = (
    torch.Tensor.register_post_accumulate_grad_hook
)


def measure_importance(
    step: LossStep,
    probes: Sequence[StepInputs],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: SelectiveAdamW,
    *,
    learning_rate: float,
    clip: float = 1.0,
) -> dict[str, float]:
    """Expected loss drop (nats) of one update of each tensor alone; negative: it would hurt.

    Args:
        probes: batches to average over; at least one.
        parameters: the tensors of interest; a tied weight once, under its first name. None may
            hold a gradient.
        learning_rate: of the next step; scales all importances alike.
        clip: factor of the last step's gradient clipping, 0..1.
    """
    gain = partial(optimiser.expected_gain, learning_rate=learning_rate, clip=clip)
    return sum_over_gradients(step.model, probes, _mean_loss(step), parameters, Summed(gain))


def measure_crossed_importance(
    step: LossStep,
    probes: Sequence[StepInputs],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: SelectiveAdamW,
    *,
    learning_rate: float,
    clip: float = 1.0,
) -> dict[str, float]:
    """Expected loss drop (nats) on other samples than those an update was made from.

    ``(g2 . delta1 + g1 . delta2) / 2`` for each pair of probes: an estimate of the same drop as
    `measure_importance`, without the part that only the update's own samples would see. Large
    tensors are judged by a sample of their elements, so that the gradients kept between the two
    passes stay small.

    Args:
        probes: an even number; the first two make a pair, and so on. Others as
            `measure_importance`.
    """
    assert len(probes) % 2 == 0, "probes come in pairs"
    updates = partial(optimiser.expected_updates, learning_rate=learning_rate, clip=clip)
    crossed = CrossedGain(updates)
    found = sum_over_gradients(step.model, probes, _mean_loss(step), parameters, crossed)
    return {name: 2 * value for name, value in found.items()}


class Tally(Protocol):
    """What `sum_over_gradients` tells of every gradient, before it is freed."""

    def __call__(self, name: str, gradient: torch.Tensor) -> None: ...

    def totals(self) -> Mapping[str, float]:
        """Of each tensor that had a gradient, over all probes; to be asked once."""


class Summed:
    """``gain(name, gradient)``, a scalar tensor, added up."""

    def __init__(self, gain: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._gain = gain
        self._sums: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, gradient: torch.Tensor) -> None:
        found = self._gain(name, gradient)
        before = self._sums.get(name)
        self._sums[name] = found if before is None else before + found

    def totals(self) -> Mapping[str, float]:
        return dict(zip(self._sums, _numbers(list(self._sums.values())), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Of one tensor, the chosen elements of both probes' gradients."""

    name: str
    elements: slice
    first_N: torch.Tensor
    second_N: torch.Tensor
    #: elements that each of the chosen stands for
    weight: float


class CrossedGain:
    """Pairs of probes: of each pair, the gain of one's update on the other, both ways, halved.

    A card waits for its host at every small operation: several tensors are judged at once.

    Args:
        updates: of tensors by name, which of their elements, and these elements' gradients: what
            the optimiser would take off them, one after the other.
    """

    def __init__(
        self,
        updates: Callable[[Sequence[str], Sequence[slice], Sequence[torch.Tensor]], torch.Tensor],
    ) -> None:
        self._updates = updates
        self._first: dict[str, torch.Tensor] = {}
        self._waiting: dict[torch.device, list[_Pair]] = defaultdict(list)
        #: what was judged: names, what their elements stand for, and the sums over these
        self._judged: list[tuple[str, float]] = []
        self._gains: list[torch.Tensor] = []

    def __call__(self, name: str, gradient: torch.Tensor) -> None:
        elements = sampled_elements(gradient)
        chosen_N = gradient.detach().reshape(-1)[elements].to(torch.float32, copy=True)
        first_N = self._first.pop(name, None)
        if first_N is None:
            self._first[name] = chosen_N
            return
        waiting = self._waiting[gradient.device]
        weight = gradient.numel() / chosen_N.numel()
        waiting.append(
            _Pair(name=name, elements=elements, first_N=first_N, second_N=chosen_N, weight=weight)
        )
        most = _AT_ONCE_ON_A_CARD if gradient.is_cuda else _AT_ONCE
        if sum(pair.second_N.numel() for pair in waiting) >= most:
            self._judge(waiting)

    def totals(self) -> Mapping[str, float]:
        for waiting in self._waiting.values():
            self._judge(waiting)
        found: dict[str, float] = defaultdict(float)
        for (name, weight), gain in zip(self._judged, _numbers(self._gains), strict=True):
            found[name] += weight * gain / 2
        return found

    def _judge(self, waiting: list[_Pair]) -> None:
        if not waiting:
            return
        names, elements = [pair.name for pair in waiting], [pair.elements for pair in waiting]
        firsts, seconds = [pair.first_N for pair in waiting], [pair.second_N for pair in waiting]
        gains_N = torch.cat(seconds).mul_(self._updates(names, elements, firsts))
        gains_N.addcmul_(torch.cat(firsts), self._updates(names, elements, seconds))
        sizes = [pair.first_N.numel() for pair in waiting]
        for pair, gain_N in zip(waiting, torch.split(gains_N, sizes), strict=True):
            self._judged.append((pair.name, pair.weight))
            self._gains.append(gain_N.sum())
        waiting.clear()


def _numbers(scalars: Sequence[torch.Tensor]) -> list[float]:
    """In one transfer: a card would be waited for at each of hundreds."""
    if not scalars:
        return []
    device = scalars[0].device
    found: list[float] = torch.stack([each.to(device) for each in scalars]).tolist()
    return found


def sampled_elements(tensor: torch.Tensor) -> slice:
    """Evenly over the flattened tensor, at most ``_SAMPLED``, and over every column alike."""
    stride = max(1, math.ceil(tensor.numel() / _SAMPLED))
    columns = tensor.shape[-1] if tensor.ndim else 1
    while math.gcd(stride, columns) != 1:
        stride += 1
    return slice(None, None, stride)


def rank_tensors(
    kind: ImportanceName,
    step: LossStep,
    probes: Sequence[StepInputs],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: SelectiveAdamW,
    *,
    learning_rate: float,
    clip: float,
    seed: int,
) -> dict[str, float]:
    """Importance of each tensor by ``kind``, for a method to choose by; arguments as
    `measure_importance`.

    Args:
        probes: for ``importance`` in pairs, two halves of a batch one after the other.
        seed: of ``random``, with the tensor's name.
    """
    if kind == "random":
        # a str seeds by its bytes, the same in every process
        return {name: Random(f"{seed} {name}").random() for name in parameters}  # noqa: S311
    if kind == "magnitude":
        with torch.no_grad():
            return {name: float(p.abs().sum(dtype=torch.float64)) for name, p in parameters.items()}
    if kind == "fisher":
        squares = Summed(_squares)
        return sum_over_gradients(step.model, probes, _mean_loss(step), parameters, squares)
    measure = measure_importance if len(probes) == 1 else measure_crossed_importance
    return measure(step, probes, parameters, optimiser, learning_rate=learning_rate, clip=clip)


def needs_probes(kind: ImportanceName) -> bool:
    """Whether ranking by ``kind`` takes a backward pass."""
    return kind == "fisher" or is_drop(kind)


def sum_over_gradients(
    model: Any,
    probes: Sequence[Probe],
    loss: Callable[[Probe], torch.Tensor],
    parameters: Mapping[str, torch.nn.Parameter],
    tally: Tally,
) -> dict[str, float]:
    """The mean over ``probes`` of what ``tally`` counts; each gradient is freed at once.

    Args:
        probes: at least one.
        parameters: none may hold a gradient.
    """
    assert probes, "importance needs a probe batch"
    assert all(p.grad is None for p in parameters.values()), "gradients must be free"
    flags = {p: p.requires_grad for p in model.parameters()}
    was_training = model.training

    def take(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after accumulation"
        tally(name, parameter.grad)
        parameter.grad = None

    for parameter in flags:
        parameter.requires_grad_(False)
    handles = [
        _watch(parameter.requires_grad_(True), partial(take, name))
        for name, parameter in parameters.items()
    ]
    model.eval()
    try:
        for probe in probes:
            torch.autograd.backward(loss(probe))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            if not flag:
                parameter.grad = None
    totals = tally.totals()
    return {name: totals.get(name, 0.0) / len(probes) for name in parameters}


@contextmanager
def freeing_gradients(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, a gradient is freed as soon as it is whole."""

    def free(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [_watch(p, free) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_loss(step: LossStep) -> Callable[[StepInputs], torch.Tensor]:
    return lambda inputs: step(inputs).loss_sum / inputs.n_labels


def _squares(_name: str, gradient: torch.Tensor) -> torch.Tensor:
    return gradient.float().square().sum()
