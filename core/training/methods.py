"""Methods of fine-tuning, behind one question: which tensors are trained from here on?

A method is asked at every selection point. It may look at the costs (free) and measure importance
(may cost a backward pass for each probe batch, so it is a callable and only paid when called).
Methods that train adapters get the profile of the model with its adapters on, in which nothing else
can be trained; shares are of full fine-tuning of the model without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from core.errors import InvalidInput, RhoInfeasible, UnsupportedMethod
from core.spec import METHODS, MethodOptions
from core.training.blocks import blocks_from_the_loss
from core.training.costs import FlopsProfile
from core.training.quality import QualityCurve, quality_curve
from core.training.selector import select


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPoint:
    """What a method may know when it chooses."""

    profile: FlopsProfile
    rho: float
    measure_importance: Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    names: tuple[str, ...]
    #: share of full fine-tuning's FLOPs that was asked for, and that the mean step will cost
    rho: float
    rho_planned: float
    #: expected loss drop of one update of ``names``; None: not measured
    importance: float | None
    #: what other shares would buy, as `quality_curve`; empty: not measured
    quality_curve: QualityCurve = ()


class Method(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def reselects(self) -> bool:
        """Whether a later selection point may choose otherwise."""

    def rho_min(self, profile: FlopsProfile) -> float:
        """Lowest share of full fine-tuning's FLOPs that a step of this method can cost."""

    def choose(self, point: SelectionPoint) -> Choice: ...


@dataclass(frozen=True, slots=True)
class Everything:
    """Every tensor that may be trained, always; rho is what that costs, whatever was asked.

    ``full``: of the model; ``lora``, ``prefix``: of its adapters.
    """

    name: str
    reselects = False

    def rho_min(self, profile: FlopsProfile) -> float:
        return profile.step_flops(profile.trainable) / profile.full_flops

    def choose(self, point: SelectionPoint) -> Choice:
        share = self.rho_min(point.profile)
        return Choice(names=point.profile.trainable, rho=share, rho_planned=share, importance=None)


class Green:
    """GreenTrainer: the set of largest total importance that costs at most ``rho`` of full."""

    name = "green"
    reselects = True

    def rho_min(self, profile: FlopsProfile) -> float:
        return profile.min_rho

    def choose(self, point: SelectionPoint) -> Choice:
        """Raises RhoInfeasible when no set fits."""
        full_flops = point.profile.full_flops
        importance = point.measure_importance()
        chosen = select(point.profile, importance, point.rho * full_flops)
        return Choice(
            names=chosen.names,
            rho=point.rho,
            rho_planned=chosen.flops / full_flops,
            importance=chosen.importance,
            quality_curve=quality_curve(point.profile, importance),
        )


class GreenLora:
    """LoRA adapters on the projections that are worth it: GreenTrainer's choice among adapters.

    Candidates are whole adapters, not their two factors: a factor says nothing alone. At the start
    the second is zero, so the first has no gradient and would never be chosen. The importance of an
    adapter is the sum of its factors', the same first-order loss drop as for ``green`` and of the
    tensors that are really updated: the base projection's own gradient would weigh directions that
    a rank-r update cannot take. Adapters not chosen stay as they are: without effect as long as
    they were never trained.
    """

    name = "green_lora"
    reselects = True

    def rho_min(self, profile: FlopsProfile) -> float:
        return profile.grouped(adapters_of(profile)).min_rho

    def choose(self, point: SelectionPoint) -> Choice:
        """Raises RhoInfeasible when no adapter fits."""
        adapters = adapters_of(point.profile)
        full_flops = point.profile.full_flops
        of_tensor = point.measure_importance()
        importance = {
            adapter: math.fsum(of_tensor[name] for name in names)
            for adapter, names in adapters.items()
        }
        costs = point.profile.grouped(adapters)
        chosen = select(costs, importance, point.rho * full_flops)
        taken = {name for adapter in chosen.names for name in adapters[adapter]}
        return Choice(
            names=tuple(name for name in point.profile.names if name in taken),
            rho=point.rho,
            rho_planned=chosen.flops / full_flops,
            importance=chosen.importance,
            quality_curve=quality_curve(costs, importance),
        )


@dataclass(frozen=True, slots=True)
class LastK:
    """The ``k`` blocks nearest the loss (decoder before encoder), as a whole, and nothing else.

    With ``k`` None: as many as ``rho`` pays for.
    """

    k: int | None = None
    name = "last_k"

    @property
    def reselects(self) -> bool:
        return self.k is None

    def rho_min(self, profile: FlopsProfile) -> float:
        return self._share(profile, self.k or 1)

    def choose(self, point: SelectionPoint) -> Choice:
        """
        Raises:
            RhoInfeasible: not one block fits.
            InvalidInput: the model has fewer than ``k`` blocks.
        """
        k = self.k or self._largest(point.profile, point.rho)
        share = self._share(point.profile, k)
        rho = share if self.k else point.rho
        names = self._names(point.profile, k)
        return Choice(names=names, rho=rho, rho_planned=share, importance=None)

    def _largest(self, profile: FlopsProfile, rho: float) -> int:
        n_blocks = len(blocks_from_the_loss(profile))
        fitting = [k for k in range(1, n_blocks + 1) if self._share(profile, k) <= rho]
        if fitting:
            return fitting[-1]
        rho_min = self._share(profile, 1)
        raise RhoInfeasible(
            f"rho {rho:g} pays for no block: the last one alone costs {rho_min:.1%} of full "
            "fine-tuning's FLOPs.",
            rho_min=rho_min,
        )

    def _share(self, profile: FlopsProfile, k: int) -> float:
        return profile.step_flops(self._names(profile, k)) / profile.full_flops

    def _names(self, profile: FlopsProfile, k: int) -> tuple[str, ...]:
        blocks = blocks_from_the_loss(profile)
        if k > len(blocks):
            raise InvalidInput(
                f"green.options.k is {k}, but the model has {len(blocks)} blocks.",
                param="green.options.k",
            )
        taken = {name for block in blocks[:k] for name in block}
        return tuple(name for name in profile.names if name in taken)


def adapters_of(profile: FlopsProfile) -> dict[str, tuple[str, ...]]:
    """Module that carries an adapter -> the adapter's tensors; PEFT's names are
    ``<module>.lora_A.<adapter>.weight`` and so on.
    """
    adapters: dict[str, tuple[str, ...]] = {}
    for name in profile.trainable:
        module = name.partition(".lora_")[0]
        adapters[module] = (*adapters.get(module, ()), name)
    return adapters


def method_named(name: str, options: MethodOptions | None = None) -> Method:
    """Raises UnsupportedMethod that lists the known ones."""
    k = None if options is None else options.k
    methods: dict[str, Method] = {
        "full": Everything("full"),
        "green": Green(),
        "last_k": LastK(k),
        "lora": Everything("lora"),
        "prefix": Everything("prefix"),
        "green_lora": GreenLora(),
    }
    if name not in methods:
        raise UnsupportedMethod(
            f"Unknown method {name!r}; known: {', '.join(METHODS)}.", param="green.method"
        )
    return methods[name]
