"""Which tensors to train: the largest total importance that a FLOPs budget can pay for.

Source: GreenTrainer (arXiv 2309.13192), section 3.3, but on the cost of the real autograd graph
(``FlopsProfile``) where the original has a chain, and exact where it has a rounded dynamic program.
The search is in ``reach``, the knapsack arithmetic in ``frontier``.

How good the answer is. Costs are never rounded down and the answer's exact cost is checked, so the
budget is never exceeded. Let N be the number of tensors of positive importance:

- N <= ``EXACT_TENSORS``, or costs that are multiples of a common unit that fits into the
  resolution (profiles of transformers are: widths share large factors): the optimum.
- else prices are rounded up to a unit of (budget - forward) / resolution. Proof of the bound: each
  tensor taken is overpriced by less than one unit, and so is each stretch of the graph paid apart
  (their sum along a line is rounded once, so there are at most as many as tensors). The optimal
  set for a budget smaller by 2 N units is hence still affordable after rounding, and the answer is
  worth at least as much: importance >= optimum(budget - 2 N unit). For N = 560 at the default
  resolution that is the optimum of 1.1 % less budget, in the worst case.
- ``Selection.is_complete`` is False where a graph made the search drop branches (see ``reach``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from core.errors import InvalidInput, RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.frontier import (
    FrontierTooLongError,
    GridFrontier,
    ListFrontier,
    items_of_grid,
    items_of_list,
)
from core.training.reach import Problem, Scale, Search, reduce

EXACT_TENSORS: Final = 24
# relative difference at which two sums of floats are taken for the same cost
_ROUNDING: Final = 1e-12
# a few times the rounding of one division
_HAIR: Final = 1e-14
# relative difference up to which two estimates are of one unit
_SAME_UNIT: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to train.

    Attributes:
        names: trained parameters, in the profile's order.
        flops: predicted cost of the step, the forward pass included; at most the budget.
        importance: total importance of ``names``.
        is_complete: False where the search dropped branches, so that the bound does not hold.
    """

    names: tuple[str, ...]
    flops: float
    importance: float
    is_complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCurve:
    """The best importance for every budget, from one search.

    Attributes:
        budgets_flops: rising; the budgets at which the best importance changes, forward included.
        values: rising; best importance at each. The first point is the cheapest feasible set.
        is_complete: as in ``Selection``.
    """

    budgets_flops: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    is_complete: bool
    _profile: FlopsProfile = field(repr=False)
    _importance: Mapping[int, float] = field(repr=False)
    _solved: _Solved = field(repr=False)
    # of each point: place in the frontier, or -1 - place in ``_listed``
    _places: npt.NDArray[np.intp] = field(repr=False)
    _listed: tuple[tuple[int, ...], ...] = field(repr=False)

    def value(self, budget_flops: float) -> float:
        """Best importance within ``budget_flops``. Raises RhoInfeasible below the first point."""
        return self.selection(budget_flops).importance

    def selection(self, budget_flops: float) -> Selection:
        """The set behind ``value(budget_flops)``. Raises RhoInfeasible below the first point."""
        reachable = budget_flops * (1 + _ROUNDING)
        point = int(np.searchsorted(self.budgets_flops, reachable, side="right"))
        while point > 0:
            point -= 1
            place = int(self._places[point])
            items = self._listed[-1 - place] if place < 0 else self._solved.items(place)
            found = _selection(self._profile, self._importance, items, self.is_complete)
            if found.flops <= budget_flops:
                return found
        raise _infeasible(self._profile, self._importance, budget_flops)


def select(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    budget_flops: float,
    *,
    resolution: int = 100_000,
) -> Selection:
    """The set of largest total importance whose step costs at most ``budget_flops``.

    Tensors of importance <= 0 are never taken, with one exception: where nothing affordable has
    positive importance, a profile of a model (``forward_flops`` > 0) yields the single affordable
    tensor of highest importance (the cheapest of equals), because a step must train something. A
    hand-made chain yields the empty set.

    Args:
        profile: cost of every set.
        importance: candidate tensors; those not named are not trained. Finite numbers.
        budget_flops: for forward and backward of one step.
        resolution: units into which the budget is divided where costs share no larger unit.

    Raises:
        RhoInfeasible: the budget does not pay for any candidate; carries the lowest rho.
        InvalidInput: unknown name, importance or budget that is no number, nothing to choose from.
    """
    valued = _checked(profile, importance, resolution)
    if not budget_flops >= profile.forward_flops:
        raise _infeasible(profile, valued, budget_flops)
    everything = _selection(profile, valued, _gainful(valued), is_complete=True)
    if everything.names and everything.flops <= budget_flops:
        return everything
    return _search(profile, valued, budget_flops, resolution)


def _search(
    profile: FlopsProfile, valued: Mapping[int, float], budget_flops: float, resolution: int
) -> Selection:
    problem = reduce(profile, valued)
    room = budget_flops - profile.forward_flops
    # A set whose cost is the budget may come out a rounding error above it in one order of
    # summation and not in another: allowed at first, then checked, then ruled out.
    for slack in (_ROUNDING, 0.0, -_ROUNDING):
        solved = _solve(problem, room * (1 + slack), resolution, keeps_all=False)
        items = solved.items(len(solved.frontier.values) - 1)
        if not items and profile.forward_flops:
            return _least_bad(profile, valued, budget_flops)
        selection = _selection(profile, valued, items, solved.is_complete)
        if selection.flops <= budget_flops:
            return selection
    raise AssertionError("a selection exceeds its budget by more than rounding")


def selection_curve(
    profile: FlopsProfile, importance: Mapping[str, float], *, resolution: int = 100_000
) -> ValueCurve:
    """What every budget buys; ``resolution`` divides the cost of training all candidates.

    Raises InvalidInput as ``select`` does.
    """
    valued = _checked(profile, importance, resolution)
    solved = _solve(reduce(profile, valued), math.inf, resolution, keeps_all=True)
    everything = _selection(profile, valued, _gainful(valued), is_complete=True)
    found = solved.frontier.values
    budgets = profile.forward_flops + solved.costs()
    # rounded prices may put the whole above its cost: it is listed apart
    is_point = (np.diff(found, prepend=-1.0) > 0) & (budgets < everything.flops)
    if profile.forward_flops:
        is_point &= found > 0
    places = np.flatnonzero(is_point)
    listed = (
        []
        if profile.forward_flops and not everything.names
        else [(everything.flops, everything.importance, tuple(_gainful(valued)))]
    )
    if profile.forward_flops:
        # a model must train something: the least bad tensor for budgets below the first gain
        gains = [*budgets[places[:1]].tolist(), *(flops for flops, _, _ in listed)]
        listed = _least_bad_steps(profile, valued, min(gains, default=math.inf)) + listed
    all_budgets = np.concatenate((budgets[places], [flops for flops, _, _ in listed]))
    order = np.argsort(all_budgets, kind="stable")
    return ValueCurve(
        budgets_flops=all_budgets[order],
        values=np.concatenate((found[places], [value for _, value, _ in listed]))[order],
        is_complete=solved.is_complete,
        _profile=profile,
        _importance=valued,
        _solved=solved,
        _places=np.concatenate((places, -1 - np.arange(len(listed))))[order],
        _listed=tuple(items for _, _, items in listed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    frontier: ListFrontier | GridFrontier
    unit: float
    is_complete: bool

    def items(self, place: int) -> list[int]:
        if isinstance(self.frontier, ListFrontier):
            return items_of_list(self.frontier, place)
        return items_of_grid(self.frontier, place)

    def costs(self) -> npt.NDArray[np.float64]:
        """FLOPs at most spent at each place of a frontier that was solved for every cost."""
        if isinstance(self.frontier, ListFrontier):
            return self.frontier.costs
        return np.arange(len(self.frontier.values), dtype=np.float64) * np.float64(self.unit)


def _solve(problem: Problem, capacity: float, resolution: int, *, keeps_all: bool) -> _Solved:
    capacity = min(capacity, math.fsum(problem.prices) * (1 + _ROUNDING))
    n_tensors = sum(len(each.items) for each in problem.classes)
    if n_tensors <= EXACT_TENSORS or not capacity:
        exact = Search[ListFrontier](problem, Scale(unit=None), room=0.0, keeps_all=keeps_all)
        with contextlib.suppress(FrontierTooLongError):
            listed = exact.run(ListFrontier.empty(capacity, resolution))
            return _Solved(frontier=listed, unit=0.0, is_complete=exact.is_complete)
    unit = _unit(problem, capacity / resolution)
    # for every cost the places are whole units; for one the last unit may be a part
    n_steps = round(capacity / unit) if keeps_all else math.floor(capacity / unit)
    room = 0.0 if keeps_all else max(capacity - n_steps * unit, 0.0)
    search = Search[GridFrontier](problem, Scale(unit=unit), room=room, keeps_all=keeps_all)
    frontier = search.run(GridFrontier.empty(n_steps))
    return _Solved(frontier=frontier, unit=unit, is_complete=search.is_complete)


def _unit(problem: Problem, smallest: float) -> float:
    """The unit of a grid, at least ``smallest``: exact for all prices, or for the tensors' own."""
    unit = common_unit(problem.prices, smallest)
    if unit is None:
        own = [flops for each in problem.classes for _, flops, _ in each.items]
        unit = common_unit(own, smallest)
        if unit is None:
            return smallest
        # as fine as the resolution allows, since stretches of the graph are still rounded; and a
        # hair wider, so that whole multiples do not come out one larger
        unit = unit / math.floor(unit / smallest) * (1 + _HAIR)
    return unit


def common_unit(prices: Sequence[float], smallest: float) -> float | None:
    """The largest unit of which all ``prices`` are whole multiples, None if below ``smallest``.

    Prices that are means of whole numbers are multiples up to rounding; the unit returned is then
    the largest of the estimates, so that multiples are never below the prices.
    """
    if all(isinstance(price, int) or price.is_integer() for price in prices):
        whole = math.gcd(*(int(price) for price in prices))
        return whole if whole >= smallest else None
    unit = 0.0
    for price in prices:
        rest = price
        while rest > smallest / 2:
            unit, rest = rest, math.remainder(unit, rest)
            rest = abs(rest)
    if unit < smallest or min(prices) < unit / 2:
        return None
    estimates = [price / round(price / unit) for price in prices]
    if max(estimates) > min(estimates) * (1 + _SAME_UNIT):
        return None
    return max(estimates) * (1 + _ROUNDING)


def _checked(
    profile: FlopsProfile, importance: Mapping[str, float], resolution: int
) -> dict[int, float]:
    """Importance by position, of the tensors that can be trained."""
    if resolution < 1:
        raise InvalidInput(f"resolution must be at least 1; got {resolution}.", param="resolution")
    profile.members(importance)
    for name, value in importance.items():
        if not math.isfinite(value):
            raise InvalidInput(
                f"the importance of {name} is {value}; it must be a finite number.",
                param="importance",
            )
    valued = {
        i: float(importance[name])
        for i, name in enumerate(profile.names)
        if name in importance and profile.connected >> i & 1
    }
    if not valued:
        raise InvalidInput(
            "no parameter to choose from: none that importance names is part of the loss.",
            param="importance",
        )
    return valued


def _gainful(valued: Mapping[int, float]) -> list[int]:
    return [i for i, value in valued.items() if value > 0]


def _selection(
    profile: FlopsProfile, valued: Mapping[int, float], items: Iterable[int], is_complete: bool
) -> Selection:
    items = sorted(items)
    names = tuple(profile.names[i] for i in items)
    return Selection(
        names=names,
        flops=profile.step_flops(names),
        importance=math.fsum(valued[i] for i in items),
        is_complete=is_complete,
    )


def _singles(profile: FlopsProfile, valued: Mapping[int, float]) -> list[tuple[float, float, int]]:
    """(cost of the step, importance, position) of every candidate alone, the cheapest first."""
    return sorted((profile.step_flops((profile.names[i],)), v, i) for i, v in valued.items())


def _least_bad(
    profile: FlopsProfile, valued: Mapping[int, float], budget_flops: float
) -> Selection:
    affordable = [each for each in _singles(profile, valued) if each[0] <= budget_flops]
    if not affordable:
        raise _infeasible(profile, valued, budget_flops)
    _, _, best = max(affordable, key=lambda each: each[1])
    return _selection(profile, valued, [best], is_complete=True)


def _least_bad_steps(
    profile: FlopsProfile, valued: Mapping[int, float], below_flops: float
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Where the least bad affordable tensor changes: (cost, importance, that tensor)."""
    steps: list[tuple[float, float, tuple[int, ...]]] = []
    for flops, value, item in _singles(profile, valued):
        if flops < below_flops and (not steps or value > steps[-1][1]):
            if steps and steps[-1][0] == flops:
                steps.pop()
            steps.append((flops, value, (item,)))
    return steps


def _infeasible(
    profile: FlopsProfile, valued: Mapping[int, float], budget_flops: float
) -> RhoInfeasible:
    full = profile.full_flops or 1.0
    lowest = _singles(profile, valued)[0][0] if profile.forward_flops else 0.0
    rho_min = lowest / full
    # rounded up, so that the number in the message is feasible
    shown = math.ceil(rho_min * 1e4) / 1e4
    return RhoInfeasible(
        f"rho {budget_flops / full:.4f} is below the lowest feasible one, {shown:.4f}: the forward "
        "pass and the cheapest tensor to train already cost that share of full fine-tuning.",
        rho_min=rho_min,
    )
