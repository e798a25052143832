"""What a step costs in seconds or joules: the FLOPs profile, each kind of work at its own price.

A FLOP is not a FLOP: the forward pass, the activation gradients and the weight gradients run at
different speeds, and clipping and the optimiser, which take no FLOPs that count, move every trained
parameter through memory. Measured on the job's own model and batches (`measuring`) they are

    cost(S) = forward + activation * (products that several tensors need)
            + sum over S of (weight * the tensor's own products + parameter * its elements)

which has the form of `FlopsProfile`'s cost, so selector, interval, horizon and "efficient" work on
it as they are. Everything beside the matrix products (normalisation, attention's softmax, the loss,
memory traffic, waiting) is in these prices, spread over the FLOPs that it accompanies.

No torch here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from core.spec import Currency
from core.training.costs import FlopsProfile, add_term
from core.training.interval import Spared

#: of what rho is a share, and what a predicted drop is divided by
NOUNS: Final[Mapping[Currency, str]] = {"flops": "FLOPs", "seconds": "time", "joules": "energy"}
UNITS: Final[Mapping[Currency, str]] = {"flops": "FLOP", "seconds": "second", "joules": "joule"}

#: full fine-tuning's step costs about so many parts. Whole parts have a common unit, which is what
#: the selector is exact for; a part is far below what can be measured
_PARTS: Final = 1 << 16


Unit = Literal["seconds", "joules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """How costs in a currency other than FLOPs are read.

    Attributes:
        read: a running total of ``unit``.
        least_s: what is measured is repeated for so long, by ``clock``, where the total moves in
            steps.
    """

    currency: Currency
    unit: Unit = "seconds"
    read: Callable[[], float] = time.perf_counter
    least_s: float = 0.0
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices on one machine, none negative; part of a run's state, so that a job that is continued
    decides as it would have.

    Attributes:
        unit: what the prices are in. Seconds where the currency is joules: power is only modelled
            there, so that energy goes with time.
        forward, activation, weight: per FLOP.
        parameter: per element of a trained tensor, once a step.
        spared: per FLOP of the forward pass that stored hidden states spare.
        flops, duration_s: what measuring took.
    """

    currency: Currency
    unit: Unit
    forward: float
    activation: float
    weight: float
    parameter: float
    spared: float
    flops: float = 0.0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Elements of every tensor, and micro-batches (whose mean a profile is of) to a step."""

    elements: Mapping[str, int]
    micro_batches: int = 1


def step_cost(
    profile: FlopsProfile,
    rates: Rates,
    sizes: Sizes,
    names: Collection[str],
    spared_flops: float = 0.0,
) -> float:
    """Predicted cost of a mean micro-batch that trains exactly ``names``, its part of the
    optimiser's step included, in the rates' unit.

    Args:
        profile: in FLOPs.
    """
    trained = profile.members(names)
    forward = rates.forward * profile.forward_flops - rates.spared * spared_flops
    products = sum(
        _rate(rates, members) * flops for members, flops in profile.terms if members & trained
    )
    updates = sum(sizes.elements[name] for name in names) * rates.parameter / sizes.micro_batches
    return forward + products + updates


def priced(profile: FlopsProfile, rates: Rates, sizes: Sizes) -> FlopsProfile:
    """``profile`` in the rates' currency: every ``*_flops`` of the result is in whole parts of full
    fine-tuning's step (about 65,536 of them), each term rounded to the nearest.

    Args:
        profile: in FLOPs, of a model without adapters.
    """
    assert profile.reference_flops is None, "full fine-tuning is another model's"
    part = part_of(profile, rates, sizes)
    terms: dict[int, float] = {}
    for members, flops in profile.terms:
        add_term(terms, members, _rate(rates, members) * flops)
    for name in profile.trainable:
        update = rates.parameter * sizes.elements[name] / sizes.micro_batches
        add_term(terms, profile.members((name,)), update)
    parts = {members: float(round(cost / part)) for members, cost in terms.items()}
    return replace(
        profile,
        forward_flops=rates.forward * profile.forward_flops / part,
        terms=tuple((members, cost) for members, cost in parts.items() if cost),
    )


def priced_spared(spared: Spared, profile: FlopsProfile, rates: Rates, sizes: Sizes) -> Spared:
    """``spared`` in the parts of ``priced(profile, rates, sizes)``."""
    price = rates.spared / part_of(profile, rates, sizes)
    return replace(spared, flops=tuple(price * flops for flops in spared.flops))


def part_of(profile: FlopsProfile, rates: Rates, sizes: Sizes) -> float:
    """What one part costs, in the rates' unit."""
    return step_cost(profile, rates, sizes, profile.trainable) / _PARTS


def rates_from(stored: Mapping[str, Any] | None) -> Rates | None:
    """From a checkpoint's JSON; None: nothing was measured."""
    return None if stored is None else Rates(**stored)


def _rate(rates: Rates, members: int) -> float:
    """Of a product: one that a single tensor needs is its own gradient."""
    return rates.weight if members.bit_count() == 1 else rates.activation
