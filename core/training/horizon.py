"""How long a selection is in force, and which one: interval and depth chosen together.

An interval that the caller set is kept. Left open, it is an epoch, unless hidden states below the
trained tensors are stored: then a longer interval spares more of the forward pass and pays for
deeper sets. Intervals that end with an epoch, each about twice the one before, up to the rest of
the job, are compared by the best value of a step at the same budget; taken is the shortest that
reaches ``_ENOUGH`` of the best, because importance grows old. Only intervals count after which the
rest of the job can still keep the share asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.interval import (
    NOTHING_SPARED,
    LearningRate,
    Spared,
    at_one_rate,
    reused_share,
)
from core.training.methods import Choice, Method, SelectionPoint

_ENOUGH: Final = 0.95
#: the cheapest step must stay affordable where a share is taken apart and put together again
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """When a job may select.

    Attributes:
        reselects: whether it does after the first time.
        interval: epochs between two selections; None: open.
        selections: further steps at which to select.
        spared: what stored hidden states spare a step whose samples are all stored; None: nothing
            may be counted on.
    """

    total_steps: int
    steps_per_epoch: int
    reselects: bool = True
    interval: float | None = None
    selections: frozenset[int] = frozenset()
    spared: Spared | None = None

    def longest(self, step: int) -> int:
        """Steps that a selection made after ``step`` steps may be in force for at most."""
        return self.lengths(step)[-1]

    def lengths(self, step: int) -> list[int]:
        """Numbers of steps that it may be in force for, rising; at least one."""
        left = self.total_steps - step
        if not self.reselects:
            return [left]
        most = min([at - step for at in self.selections if at > step] + [left])
        if self.interval is not None:
            n_interval = max(1, round(self.interval * self.steps_per_epoch))
            return [min(n_interval - step % n_interval, most)]
        n_steps = self.steps_per_epoch - step % self.steps_per_epoch
        if self.spared is None:
            return [min(n_steps, most)]
        found = []
        while n_steps < most:
            found.append(n_steps)
            n_steps += self.steps_per_epoch * 2 ** (len(found) - 1)
        return [*found, most]

    def spared_over(self, step: int, n_steps: int) -> Spared:
        """What the mean one of the next ``n_steps`` steps is spared."""
        if self.spared is None:
            return NOTHING_SPARED
        return self.spared.scaled(reused_share(step, n_steps, self.steps_per_epoch))


def lowest_rho(course: Course, method: Method, profile: FlopsProfile) -> float:
    """Lowest share of full fine-tuning's FLOPs that the job can keep from its first step to its
    last, 0..1: with an open interval one selection lasts the whole job, with a set one the interval
    that can spare the least decides.
    """
    step, found = 0, 0.0
    while step < course.total_steps:
        n_steps = course.longest(step)
        found = max(found, method.rho_min(profile, course.spared_over(step, n_steps)))
        step += n_steps
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """What to train, the point that it was chosen at, and for how many steps.

    Attributes:
        unpaid_share: the part of measuring that rho does not pay for, because the cheapest step
            leaves less: a share of full fine-tuning over ``n_steps``. They exceed rho by it.
    """

    choice: Choice
    point: SelectionPoint
    n_steps: int
    unpaid_share: float = 0.0


def choose(
    course: Course,
    method: Method,
    profile: FlopsProfile,
    measure_importance: Callable[[], Mapping[str, float]],
    *,
    step: int,
    rho: float,
    measuring_steps: float = 0.0,
    measuring_share: float = 0.0,
    elements: Mapping[str, int] = MappingProxyType({}),
    rate: LearningRate = at_one_rate,
    wants_curve: bool = False,
) -> Horizon:
    """Interval and selection after ``step`` steps.

    Args:
        measuring_steps: what measuring importance costs, in full fine-tuning's mean steps. It is
            paid out of rho, as far as a step remains feasible: in short intervals it may not be,
            and the share is then exceeded by the rest.
        measuring_share: what was measured once for the whole job, as a share of its full
            fine-tuning; paid alike.
        elements, rate, wants_curve: as `SelectionPoint`'s.

    Raises:
        RhoInfeasible: no interval pays for anything.
    """
    found: list[Horizon] = []
    measured, lengths = cache(measure_importance), course.lengths(step)
    for n_steps in lengths:
        is_longest = n_steps == lengths[-1]
        after = course.spared_over(step + n_steps, course.total_steps - step - n_steps)
        if not is_longest and method.rho_min(profile, after) > rho:
            continue
        spared = course.spared_over(step, n_steps)
        wanted = measuring_steps / n_steps + measuring_share
        point = SelectionPoint(
            profile=profile,
            rho=rho,
            measure_importance=measured,
            spared=spared,
            overhead=_overhead(method, profile, spared, rho, wanted),
            paid=_overhead(method, profile, spared, rho, measuring_share),
            elements=elements,
            rate=rate,
            wants_curve=wants_curve,
        )
        try:
            choice = method.choose(point)
        except RhoInfeasible:
            if is_longest and not found:
                raise
            continue
        is_measured = choice.importance is not None
        unpaid = wanted - point.overhead if is_measured else measuring_share - point.paid
        unpaid_share = unpaid if rho < 1 else 0.0
        found.append(
            Horizon(choice=choice, point=point, n_steps=n_steps, unpaid_share=unpaid_share)
        )
    return _shortest_of_the_best(found)


def _overhead(
    method: Method, profile: FlopsProfile, spared: Spared, rho: float, wanted: float
) -> float:
    """The part of ``rho`` for measuring: ``wanted``, or what the cheapest step leaves of it. None
    where everything may be trained: that is full fine-tuning, or "efficient", which asks for no
    share.
    """
    if not wanted or rho >= 1:
        return 0.0
    left = rho - method.rho_min(profile, spared) * (1 + _ROUNDING)
    return min(wanted, max(left, 0.0))


def _shortest_of_the_best(found: list[Horizon]) -> Horizon:
    values = [each.choice.value for each in found]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return found[-1]
    most = max(known)
    enough = most * _ENOUGH if most > 0 else most
    return next(each for each, value in zip(found, known, strict=True) if value >= enough)
