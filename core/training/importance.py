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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

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
    return sum_over_gradients(step.model, probes, _mean_loss(step), parameters, gain)


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
    update = partial(optimiser.expected_update, learning_rate=learning_rate, clip=clip)
    crossed = CrossedGain(update)
    found = sum_over_gradients(step.model, probes, _mean_loss(step), parameters, crossed)
    return {name: 2 * value for name, value in found.items()}


class CrossedGain:
    """For `sum_over_gradients` over pairs of probes: 0 at a pair's first, its gain at the second.

    Args:
        update: of a tensor by name, its gradient's chosen elements, and which they are: what the
            optimiser would take off these elements.
    """

    def __init__(self, update: Callable[[str, torch.Tensor, slice], torch.Tensor]) -> None:
        self._update = update
        self._first: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        elements = sampled_elements(gradient)
        flat_N = gradient.detach().reshape(-1)[elements].float()
        first_N = self._first.pop(name, None)
        if first_N is None:
            self._first[name] = flat_N.clone()
            return torch.zeros((), device=gradient.device)
        there = torch.dot(flat_N, self._update(name, first_N, elements))
        back = torch.dot(first_N, self._update(name, flat_N, elements))
        return (there + back) / 2 * (gradient.numel() / flat_N.numel())


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
        return sum_over_gradients(step.model, probes, _mean_loss(step), parameters, _squares)
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
    gain: Callable[[str, torch.Tensor], torch.Tensor],
) -> dict[str, float]:
    """The mean over ``probes`` of ``gain(name, gradient)``; each gradient is freed at once.

    Args:
        probes: at least one.
        parameters: none may hold a gradient.
    """
    assert probes, "importance needs a probe batch"
    assert all(p.grad is None for p in parameters.values()), "gradients must be free"
    device = next(iter(parameters.values())).device
    sums = {name: torch.zeros((), device=device) for name in parameters}
    flags = {p: p.requires_grad for p in model.parameters()}
    was_training = model.training

    def take(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after accumulation"
        sums[name] += gain(name, parameter.grad).to(device)
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
    # one transfer: a card would be waited for at each of hundreds of tensors
    totals = torch.stack(tuple(sums.values())).tolist()
    return {name: total / len(probes) for name, total in zip(sums, totals, strict=True)}


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
