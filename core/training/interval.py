"""Selection over a whole interval, in which each sample passes several times.

Where hidden states below the deepest trained tensor are stored (`core.training.prefix`), the first
pass after a selection pays the forward pass in full and fills the store, the later ones skip what
lies below. With p passes between two selections the mean step of set S costs

    cost(S) - (1 - 1/p) * below(boundary(S))

with ``below`` the forward FLOPs under a boundary and ``boundary(S)`` the highest one under which
nothing of S lies. Costs only grow with the set, and ``below`` never falls from one boundary to the
next, so the best set within a budget is exactly the best over all boundaries b of: the best set
among the tensors above b, with a budget enlarged by what b spares. (Any such set costs no more than
that budget, its own boundary being b or higher; and the optimum is among the sets above its own
boundary.) Each of them is an ordinary `select`; those whose fractional bound cannot beat the best
found are left out. With p <= 1 nothing is spared and this is `select`.

No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.selector import Selection, select, selection_curve

# a few roundings of a sum that is split in two and put together again
_HAIR = 1e-13


@dataclass(frozen=True, slots=True, kw_only=True)
class Spared:
    """Forward FLOPs that the mean step is spared where nothing below a boundary is trained.

    Attributes:
        boundary: tensor -> highest boundary that it lies above; -1: above none.
        flops: by boundary; never falling, none negative.
    """

    boundary: Mapping[str, int]
    flops: tuple[float, ...]

    def of(self, names: Collection[str]) -> float:
        """For a step that trains ``names``; 0 for no name."""
        lowest = min((self.boundary.get(name, -1) for name in names), default=-1)
        return self.flops[lowest] if lowest >= 0 else 0.0

    def scaled(self, share: float) -> Spared:
        """Where only ``share`` (0..1) of the steps find their samples stored."""
        return replace(self, flops=tuple(share * flops for flops in self.flops))

    def grouped(self, groups: Mapping[str, Collection[str]]) -> Spared:
        """For tensors that are trained together, as `FlopsProfile.grouped`."""
        lowest = {
            group: min(self.boundary.get(name, -1) for name in names)
            for group, names in groups.items()
        }
        return replace(self, boundary=lowest)

    def levels(self) -> Iterator[tuple[int, float]]:
        """(boundary, FLOPs spared) wherever more is spared than one boundary lower."""
        yield -1, 0.0
        most = 0.0
        for boundary, flops in enumerate(self.flops):
            if flops > most:
                most = flops
                yield boundary, flops

    def above(self, boundary: int, importance: Mapping[str, float]) -> dict[str, float]:
        """The part of ``importance`` that is of tensors above ``boundary``."""
        return {n: v for n, v in importance.items() if self.boundary.get(n, -1) >= boundary}


#: shares of full fine-tuning's cost (0..1) -> the rates that they are trained at; never rising
LearningRate = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def at_one_rate(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For sets that are all trained at the same rate."""
    return np.ones_like(shares)


#: every forward pass is paid in full
NOTHING_SPARED = Spared(boundary={}, flops=())


def mean_flops(profile: FlopsProfile, names: Collection[str], spared: Spared) -> float:
    """FLOPs of the interval's mean step when exactly ``names`` are trained."""
    return profile.step_flops(names) - spared.of(names)


def min_rho(profile: FlopsProfile, spared: Spared) -> float:
    """Lowest feasible share (0..1) of full fine-tuning's FLOPs; 0 if nothing costs.

    Costs only grow with the set, so the cheapest set is a single tensor.
    """
    full = profile.full_flops
    if not full or not profile.connected:
        return 0.0
    return min(mean_flops(profile, (name,), spared) for name in profile.trainable) / full


def reused_share(step: int, n_steps: int, steps_per_epoch: int) -> float:
    """Share of the next ``n_steps`` steps from ``step`` on that surely find their samples stored.

    Every sample has passed when the first whole epoch is over: 1 - 1/p of p passes where an epoch
    begins. Batches are grouped anew each epoch, so until then every step counts as paid in full.
    """
    to_epoch = -step % steps_per_epoch
    n_reused = n_steps - to_epoch - steps_per_epoch
    return max(n_reused, 0) / n_steps if n_steps > 0 else 0.0


def select_over(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    budget_flops: float,
    spared: Spared = NOTHING_SPARED,
) -> Selection:
    """The set of largest total importance whose mean step costs at most ``budget_flops``.

    ``Selection.flops`` is the mean step's. Tensors of importance <= 0 as in `select`.

    Raises:
        RhoInfeasible, InvalidInput: as `select`.
    """
    if not any(spared.flops):
        return select(profile, importance, budget_flops)
    best: Selection | None = None
    levels = [
        (boundary, flops, among)
        for boundary, flops in spared.levels()
        if (among := spared.above(boundary, importance))
    ]
    bounds = [_bound(profile, among, budget_flops + more) for _, more, among in levels]
    for at in sorted(range(len(levels)), key=lambda at: -bounds[at]):
        if best is not None and bounds[at] < best.importance:
            continue
        found = select_within(profile, levels[at][2], budget_flops, levels[at][1], spared)
        if found is not None and (best is None or _is_better(found, best)):
            best = found
    if best is None:
        raise _infeasible(profile, importance, budget_flops, spared)
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCurve:
    """What is worth most at every budget among the tensors above one boundary.

    Attributes:
        among: their importance.
        spared_flops: what the mean step is spared there.
        budgets_flops: of the mean step; rising.
        values: best importance within each, times the learning rate of what it trains.
    """

    among: Mapping[str, float]
    spared_flops: float
    budgets_flops: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


def curves_by_level(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    spared: Spared = NOTHING_SPARED,
    *,
    rate: LearningRate = at_one_rate,
    resolution: int = 100_000,
) -> Iterator[LevelCurve]:
    """The value curve above every boundary; a set's own boundary is the one where it costs least.

    The rate is that of a set's cost before anything is spared: it depends on how much is trained.
    """
    for boundary, flops in spared.levels():
        if among := spared.above(boundary, importance):
            curve = selection_curve(profile, among, resolution=resolution)
            shares = np.minimum(curve.budgets_flops / (profile.full_flops or 1.0), 1.0)
            yield LevelCurve(
                among=among,
                spared_flops=flops,
                budgets_flops=curve.budgets_flops - flops,
                values=curve.values * rate(shares),
            )


def curve_over(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    spared: Spared = NOTHING_SPARED,
    *,
    rate: LearningRate = at_one_rate,
    resolution: int = 100_000,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(budgets, best value at each) for the interval's mean step; both strictly rising."""
    curves = [*curves_by_level(profile, importance, spared, rate=rate, resolution=resolution)]
    budgets = np.concatenate([curve.budgets_flops for curve in curves])
    values = np.concatenate([curve.values for curve in curves])
    order = np.lexsort((-values, budgets))
    budgets, values = budgets[order], values[order]
    best_before = np.maximum.accumulate(np.append(-np.inf, values[:-1]))
    is_point = values > best_before
    return budgets[is_point], values[is_point]


def select_within(
    profile: FlopsProfile,
    among: Mapping[str, float],
    budget_flops: float,
    more_flops: float,
    spared: Spared,
) -> Selection | None:
    """The best of ``among``, which lie where ``more_flops`` are spared; None: none affordable."""
    for slack in (0.0, _HAIR):
        try:
            found = select(profile, among, (budget_flops + more_flops) * (1 - slack))
        except RhoInfeasible:
            return None
        flops = mean_flops(profile, found.names, spared)
        if flops <= budget_flops:
            return replace(found, flops=flops)
    return None


def _is_better(one: Selection, other: Selection) -> bool:
    return (one.importance, -one.flops) > (other.importance, -other.flops)


def _bound(profile: FlopsProfile, among: Mapping[str, float], budget_flops: float) -> float:
    """At least the best importance: every tensor pays its own product alone, in parts if need be.

    Infinite where nothing of ``among`` is worth anything, for then one must be taken all the same.
    """
    own = dict.fromkeys(among, 0.0)
    for members, flops in profile.terms:
        if members.bit_count() == 1 and (name := profile.names[members.bit_length() - 1]) in own:
            own[name] += flops
    gains = [(value, own[name]) for name, value in among.items() if value > 0]
    if not gains:
        return math.inf
    room, total = budget_flops - profile.forward_flops, 0.0
    gains.sort(key=lambda each: each[1] / each[0])
    for value, flops in gains:
        part = min(1.0, max(room, 0.0) / flops) if flops else 1.0
        total += part * value
        room -= flops
        if room <= 0:
            break
    # one tensor is taken whatever it is worth
    return total * (1 + _HAIR) if total > 0 else math.inf


def _infeasible(
    profile: FlopsProfile, importance: Mapping[str, float], budget_flops: float, spared: Spared
) -> RhoInfeasible:
    full = profile.full_flops
    known = [name for name in importance if name in set(profile.trainable)]
    rho_min = min(mean_flops(profile, (name,), spared) for name in known) / full
    shown = math.ceil(rho_min * 1e4) / 1e4
    return RhoInfeasible(
        f"rho {budget_flops / full:.4f} is below the lowest feasible one, {shown:.4f}: the forward "
        "pass, stored where it can be, and the cheapest tensor to train already cost that share of "
        "full fine-tuning.",
        rho_min=rho_min,
    )
