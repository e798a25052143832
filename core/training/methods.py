"""Methods of fine-tuning, behind one question: which tensors are trained from here on?

A method is asked at every selection point. It may look at the costs (free) and measure importance
(may cost a backward pass for each probe batch, so it is a callable and only paid when called).
Methods that train adapters get the profile of the model with its adapters on, in which nothing else
can be trained; shares are of full fine-tuning of the model without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from core.errors import InvalidInput, RhoInfeasible, UnsupportedMethod
from core.spec import METHODS, MethodOptions
from core.training.blocks import blocks_from_the_loss
from core.training.costs import FlopsProfile
from core.training.efficient import LEAST_SHARE, NEAR, full_ratio, select_efficient
from core.training.interval import (
    NOTHING_SPARED,
    LearningRate,
    Spared,
    at_one_rate,
    mean_flops,
    min_rho,
    select_over,
)
from core.training.quality import QualityCurve, quality_curve
from core.training.ranking import rank


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPoint:
    """What a method may know when it chooses.

    ``measure_importance`` may be called again and again: it is measured once. ``spared``: over the
    interval that the choice will be in force for. ``overhead``: the part of ``rho`` that measuring
    takes of that interval; steps have what is left. ``paid``: of it, what was spent before, whether
    importance is measured now or not. ``elements``: of every tensor, where importance
    is an expected loss drop and tensors are ranked by what that is worth (`ranking`); empty: by
    importance as it is. ``rate``: at which a share is trained, for comparing shares; where costs
    are no FLOPs, their shares stand in for the FLOPs' in it. ``wants_curve``: importance is to be
    measured even where there is nothing to choose, for what other shares would buy.
    """

    profile: FlopsProfile
    rho: float
    measure_importance: Callable[[], Mapping[str, float]]
    spared: Spared = NOTHING_SPARED
    overhead: float = 0.0
    paid: float = 0.0
    elements: Mapping[str, int] = field(default_factory=dict)
    rate: LearningRate = at_one_rate
    wants_curve: bool = False

    @property
    def step_rho(self) -> float:
        """Share that the mean step may cost."""
        return self.rho - self.overhead

    @property
    def needs_no_importance(self) -> bool:
        """Nothing is left to choose: steps that train all there is keep the share."""
        profile = self.profile
        flops = mean_flops(profile, profile.trainable, self.spared)
        pays_for_everything = flops <= (self.rho - self.paid) * profile.full_flops
        return pays_for_everything and not self.wants_curve

    def rate_of(self, share: float) -> float:
        return float(self.rate(np.array([share]))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    names: tuple[str, ...]
    #: share of full fine-tuning's FLOPs that was asked for, and that the mean step will cost
    rho: float
    rho_planned: float
    #: of ``names``, summed: expected loss drop of one update; None: not measured
    importance: float | None
    #: what choices for intervals of different length are compared by; None: by nothing
    value: float | None = None
    #: full fine-tuning's predicted loss drop per FLOP over the best at this choice's cost; None:
    #: not compared, because the share was asked for
    full_ratio: float | None = None
    #: share that the learning rate belongs to: what the choice would cost were nothing stored,
    #: since the rate depends on how much is trained and not on what is spared; None: ``rho``
    rate_rho: float | None = None


class Method(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def rate_rule(self) -> str:
        """The method whose peak learning rates it takes (`core.training.schedule`)."""

    @property
    def reselects(self) -> bool:
        """Whether a later selection point may choose otherwise."""

    @property
    def ranks(self) -> bool:
        """Whether it chooses by importance."""

    def rho_min(self, profile: FlopsProfile, spared: Spared = NOTHING_SPARED) -> float:
        """Lowest share of full fine-tuning's FLOPs that a mean step of this method can cost."""

    def choose(self, point: SelectionPoint) -> Choice: ...

    def quality(self, point: SelectionPoint) -> QualityCurve:
        """What other shares than the point's would buy; empty where importance plays no part."""


@dataclass(frozen=True, slots=True)
class Everything:
    """Every tensor that may be trained, always; rho is what that costs, whatever was asked.

    ``full``: of the model; ``lora``, ``prefix``: of its adapters.
    """

    name: str
    rate_rule: str
    reselects = False
    ranks = False

    def rho_min(self, profile: FlopsProfile, spared: Spared = NOTHING_SPARED) -> float:
        return mean_flops(profile, profile.trainable, spared) / profile.full_flops

    def choose(self, point: SelectionPoint) -> Choice:
        share = self.rho_min(point.profile, point.spared)
        return Choice(
            names=point.profile.trainable,
            rho=share,
            rho_planned=share,
            importance=None,
            rate_rho=self.rho_min(point.profile),
        )

    def quality(self, _point: SelectionPoint) -> QualityCurve:
        return ()


@dataclass(frozen=True, slots=True)
class Green:
    """GreenTrainer: the set of largest total importance that costs at most ``rho`` of full, or of
    those the one with the highest predicted loss drop per FLOP.
    """

    is_efficient: bool = False
    name = rate_rule = "green"
    reselects = True
    ranks = True

    def rho_min(self, profile: FlopsProfile, spared: Spared = NOTHING_SPARED) -> float:
        return min_rho(profile, spared)

    def choose(self, point: SelectionPoint) -> Choice:
        """Raises RhoInfeasible when no set fits."""
        if point.needs_no_importance and not self.is_efficient:
            return _everything(point)
        profile, choice = point.profile, _chosen(point, self.is_efficient, LEAST_SHARE)
        is_full_best = choice.full_ratio is not None and choice.full_ratio >= NEAR
        if self.is_efficient and is_full_best and point.rho >= 1:
            importance = point.measure_importance()
            drop = math.fsum(importance.values())
            names = profile.trainable
            return Choice(
                names=names,
                rho=1.0,
                rho_planned=mean_flops(profile, names, point.spared) / profile.full_flops,
                importance=drop,
                value=drop * point.rate_of(1.0) / profile.full_flops,
                full_ratio=1.0,
            )
        return choice

    def quality(self, point: SelectionPoint) -> QualityCurve:
        return _quality(point)


@dataclass(frozen=True, slots=True)
class GreenLora:
    """LoRA adapters on the projections that are worth it: GreenTrainer's choice among adapters.

    Candidates are whole adapters, not their two factors: a factor says nothing alone. At the start
    the second is zero, so the first has no gradient and would never be chosen. The importance of an
    adapter is the sum of its factors', the same first-order loss drop as for ``green`` and of the
    tensors that are really updated: the base projection's own gradient would weigh directions that
    a rank-r update cannot take. Adapters not chosen stay as they are: without effect as long as
    they were never trained.
    """

    is_efficient: bool = False
    name = rate_rule = "green_lora"
    reselects = True
    ranks = True

    def rho_min(self, profile: FlopsProfile, spared: Spared = NOTHING_SPARED) -> float:
        adapters = adapters_of(profile)
        return min_rho(profile.grouped(adapters), spared.grouped(adapters))

    def choose(self, point: SelectionPoint) -> Choice:
        """Raises RhoInfeasible when no adapter fits."""
        if point.needs_no_importance and not self.is_efficient:
            return _everything(point)
        adapters = adapters_of(point.profile)
        chosen = _chosen(self._grouped(point), self.is_efficient)
        taken = {name for adapter in chosen.names for name in adapters[adapter]}
        # training every adapter is not full fine-tuning
        return replace(
            chosen,
            names=tuple(name for name in point.profile.names if name in taken),
            full_ratio=None,
        )

    def quality(self, point: SelectionPoint) -> QualityCurve:
        return _quality(self._grouped(point))

    @staticmethod
    def _grouped(point: SelectionPoint) -> SelectionPoint:
        """With adapters in place of tensors."""
        adapters = adapters_of(point.profile)
        of_tensor = point.measure_importance()
        importance = {
            adapter: math.fsum(of_tensor[name] for name in names)
            for adapter, names in adapters.items()
        }
        elements = {
            adapter: sum(point.elements[name] for name in names)
            for adapter, names in adapters.items()
            if point.elements
        }
        return replace(
            point,
            profile=point.profile.grouped(adapters),
            measure_importance=lambda: importance,
            spared=point.spared.grouped(adapters),
            elements=elements,
        )


@dataclass(frozen=True, slots=True)
class LastK:
    """The ``k`` blocks nearest the loss (decoder before encoder), as a whole, and nothing else.

    With ``k`` None: as many as ``rho`` pays for.
    """

    k: int | None = None
    name = rate_rule = "last_k"
    ranks = False

    @property
    def reselects(self) -> bool:
        return self.k is None

    def rho_min(self, profile: FlopsProfile, spared: Spared = NOTHING_SPARED) -> float:
        return self._share(profile, self.k or 1, spared)

    def choose(self, point: SelectionPoint) -> Choice:
        """
        Raises:
            RhoInfeasible: not one block fits.
            InvalidInput: the model has fewer than ``k`` blocks.
        """
        profile, spared = point.profile, point.spared
        k = self.k or self._largest(profile, point.rho, spared)
        share = self._share(profile, k, spared)
        rho = share if self.k else point.rho
        names = self._names(profile, k)
        return Choice(names=names, rho=rho, rho_planned=share, importance=None)

    def quality(self, _point: SelectionPoint) -> QualityCurve:
        return ()

    def _largest(self, profile: FlopsProfile, rho: float, spared: Spared) -> int:
        n_blocks = len(blocks_from_the_loss(profile))
        fitting = [k for k in range(1, n_blocks + 1) if self._share(profile, k, spared) <= rho]
        if fitting:
            return fitting[-1]
        rho_min = self._share(profile, 1, spared)
        raise RhoInfeasible(
            f"rho {rho:g} pays for no block: the last one alone costs {rho_min:.1%} of full "
            "fine-tuning.",
            rho_min=rho_min,
        )

    def _share(self, profile: FlopsProfile, k: int, spared: Spared) -> float:
        return mean_flops(profile, self._names(profile, k), spared) / profile.full_flops

    def _names(self, profile: FlopsProfile, k: int) -> tuple[str, ...]:
        blocks = blocks_from_the_loss(profile)
        if k > len(blocks):
            raise InvalidInput(
                f"green.options.k is {k}, but the model has {len(blocks)} blocks.",
                param="green.options.k",
            )
        taken = {name for block in blocks[:k] for name in block}
        return tuple(name for name in profile.names if name in taken)


def _quality(point: SelectionPoint) -> QualityCurve:
    return quality_curve(point.profile, point.measure_importance(), point.spared, point.rate)


def _everything(point: SelectionPoint) -> Choice:
    """Without a look at importance, which would have to be paid for."""
    profile = point.profile
    share = mean_flops(profile, profile.trainable, point.spared) / profile.full_flops
    return Choice(
        names=profile.trainable,
        rho=point.rho,
        rho_planned=share,
        importance=None,
        # no interval can be worth more
        value=math.inf,
    )


def _chosen(point: SelectionPoint, is_efficient: bool, least_share: float = 0.0) -> Choice:
    """What importance chooses within the point's share, whatever the names stand for.

    "Efficient" weighs drops, to find how much to spend, from ``least_share`` of full fine-tuning
    up; what it is spent on is ranked as always.
    """
    profile, spared, importance = point.profile, point.spared, point.measure_importance()
    full_flops, ratio = profile.full_flops, None
    budget_flops = point.step_rho * full_flops
    if is_efficient:
        least_flops = least_share * full_flops
        best = select_efficient(
            profile, importance, budget_flops, spared, point.rate, least_flops=least_flops
        )
        ratio = full_ratio(profile, importance, best, spared, point.rate)
        budget_flops = best.flops
    ranked = importance
    if point.elements:
        ranked = rank(profile, importance, point.elements, budget_flops, spared)
    found = select_over(profile, ranked, budget_flops, spared)
    asked = found.flops / full_flops if is_efficient else point.rho
    rate_rho = min(asked + spared.of(found.names) / full_flops, 1.0)
    value = found.importance * point.rate_of(rate_rho)
    return Choice(
        names=found.names,
        rho=asked,
        rho_planned=found.flops / full_flops,
        importance=math.fsum(importance[name] for name in found.names),
        value=value / found.flops if is_efficient else value,
        full_ratio=ratio,
        rate_rho=rate_rho,
    )


def adapters_of(profile: FlopsProfile) -> dict[str, tuple[str, ...]]:
    """Module that carries an adapter -> the adapter's tensors; PEFT's names are
    ``<module>.lora_A.<adapter>.weight`` and so on.
    """
    adapters: dict[str, tuple[str, ...]] = {}
    for name in profile.trainable:
        module = name.partition(".lora_")[0]
        adapters[module] = (*adapters.get(module, ()), name)
    return adapters


def method_named(
    name: str, options: MethodOptions | None = None, *, is_efficient: bool = False
) -> Method:
    """
    Args:
        is_efficient: of those that select: rho is the most to spend, and the highest predicted loss
            drop per FLOP decides.

    Raises:
        UnsupportedMethod: lists the known ones.
    """
    options = options or MethodOptions()
    # adapters on every projection want the rates of adapters that were chosen among these
    lora_rule = "green_lora" if options.target_modules == "all-linear" else "lora"
    methods: dict[str, Method] = {
        "full": Everything("full", rate_rule="full"),
        "green": Green(is_efficient),
        "last_k": LastK(options.k),
        "lora": Everything("lora", rate_rule=lora_rule),
        "prefix": Everything("prefix", rate_rule="prefix"),
        "green_lora": GreenLora(is_efficient),
    }
    if name not in methods:
        raise UnsupportedMethod(
            f"Unknown method {name!r}; known: {', '.join(METHODS)}.", param="green.method"
        )
    return methods[name]
