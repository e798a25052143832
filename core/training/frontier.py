"""Best importance for every amount spent, and the way back to the tensors that give it.

A *frontier* holds, for every cost up to a capacity, the largest total importance that some set
reaches at that cost. Sets grow by four moves (take or leave a tensor, take tensors that cost
nothing, pay for a stretch of the graph, choose the better of two frontiers), each a few numpy
operations, each remembered so that the set behind a value can be read back.

Two kinds with the same moves:

- ``GridFrontier``: costs in whole steps of a unit, one cell for each step (Bellman's knapsack
  recursion); O(capacity) a move.
- ``ListFrontier``: exact costs, only the undominated ones (Nemhauser and Ullmann, 1969); as long as
  the number of undominated sets, so for small instances.

Frontiers are never changed in place; a move returns a new one or, where nothing is affordable any
more, None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.intp]


class FrontierTooLongError(Exception):
    """A ListFrontier passed its limit: use a grid."""


class Frontier(Protocol):
    """The moves that the search in ``reach`` is written in. Costs are in the frontier's own steps:
    whole units for a grid, FLOPs for a list.
    """

    @property
    def top(self) -> float:
        """Best importance at the whole capacity."""
        ...

    def take(self, item: int, steps: float, value: float) -> Self:
        """``item`` may be taken for ``steps`` > 0 or left."""
        ...

    def take_free(self, items: tuple[int, ...], value: float) -> Self:
        """``items``, which cost nothing and are worth ``value`` > 0 together, are taken."""
        ...

    def pay(self, steps: float) -> Self | None:
        """Every set from here on costs ``steps`` >= 0 more."""
        ...

    def better(self, other: Self) -> Self:
        """At every cost the better of both."""
        ...

    def within_reach(self, steps: float) -> Self:
        """Without what no best set at the whole capacity can come from, if all moves to come cost
        at most ``steps`` together: they would leave money over, which a dearer entry spends.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Move:
    """How an entry of a frontier came about: from entry ``origin`` of the frontier before it."""

    parent: _Move | None
    # None where entries keep their place
    origin: _Ints | None = None
    items: tuple[int, ...] = ()
    # entries at which ``items`` were taken; None for all
    taken: _Bools | None = None
    # entries that came from another branch instead, at place ``origin`` there
    other: _Move | None = None
    from_other: _Bools | None = None


@dataclass(frozen=True, slots=True)
class ListFrontier:
    """``costs`` and ``values`` rise strictly; ``costs`` are FLOPs up to ``capacity``."""

    costs: _Floats
    values: _Floats
    move: _Move | None
    capacity: float
    limit: int

    @classmethod
    def empty(cls, capacity: float, limit: int) -> ListFrontier:
        return cls(np.zeros(1), np.zeros(1), None, capacity, limit)

    @property
    def top(self) -> float:
        return float(self.values[-1])

    def take(self, item: int, steps: float, value: float) -> ListFrontier:
        n_affordable = int(np.searchsorted(self.costs, self.capacity - steps, side="right"))
        costs = np.concatenate((self.costs, self.costs[:n_affordable] + steps))
        values = np.concatenate((self.values, self.values[:n_affordable] + value))
        places = np.concatenate((np.arange(len(self.costs)), np.arange(n_affordable)))
        kept = _undominated(costs, values, self.limit)
        move = _Move(self.move, origin=places[kept], items=(item,), taken=kept >= len(self.costs))
        return ListFrontier(costs[kept], values[kept], move, self.capacity, self.limit)

    def take_free(self, items: tuple[int, ...], value: float) -> ListFrontier:
        move = _Move(self.move, items=items)
        return ListFrontier(self.costs, self.values + value, move, self.capacity, self.limit)

    def pay(self, steps: float) -> ListFrontier | None:
        costs = self.costs + steps
        n_affordable = int(np.searchsorted(costs, self.capacity, side="right"))
        if not n_affordable:
            return None
        return ListFrontier(
            costs[:n_affordable], self.values[:n_affordable], self.move, self.capacity, self.limit
        )

    def better(self, other: ListFrontier) -> ListFrontier:
        costs = np.concatenate((self.costs, other.costs))
        values = np.concatenate((self.values, other.values))
        places = np.concatenate((np.arange(len(self.costs)), np.arange(len(other.costs))))
        kept = _undominated(costs, values, self.limit)
        move = _Move(
            self.move,
            origin=places[kept],
            other=other.move,
            from_other=kept >= len(self.costs),
        )
        return ListFrontier(costs[kept], values[kept], move, self.capacity, self.limit)

    def within_reach(self, _steps: float) -> ListFrontier:
        # short as it is, and sums of floats would have to be compared
        return self


def _undominated(costs: _Floats, values: _Floats, limit: int) -> _Ints:
    """Places of the entries worth more than every cheaper one, in rising order of cost."""
    order = np.lexsort((-values, costs))
    ordered = values[order]
    is_better = np.empty(len(order), np.bool_)
    is_better[0] = True
    is_better[1:] = ordered[1:] > np.maximum.accumulate(ordered)[:-1]
    kept = order[is_better]
    if len(kept) > limit:
        raise FrontierTooLongError
    return kept


@dataclass(frozen=True, slots=True)
class GridFrontier:
    """``values[i]`` is the best importance at a cost of at most ``start + i`` steps; the last one
    holds for all higher costs, up to ``end``: nothing more can be had yet.
    """

    start: int
    values: _Floats
    move: _GridMove | None
    end: int

    @classmethod
    def empty(cls, capacity: int) -> GridFrontier:
        return cls(0, np.zeros(1), None, capacity)

    @property
    def top(self) -> float:
        return float(self.values[-1])

    def take(self, item: int, steps: float, value: float) -> GridFrontier:
        shift, n_old = int(steps), len(self.values)
        n_all = self.end - self.start + 1
        if shift >= n_all:
            return self
        n_new = min(n_old + shift, n_all)
        values = np.empty(n_new)
        values[:n_old] = self.values
        values[n_old:] = self.values[-1]
        with_item = self.values[: n_new - shift] + value
        without = values[shift:]
        taken = with_item > without
        np.maximum(without, with_item, out=without)
        move = _GridMove(self.move, self.start + shift, items=(item,), shift=shift, taken=taken)
        return GridFrontier(self.start, values, move, self.end)

    def take_free(self, items: tuple[int, ...], value: float) -> GridFrontier:
        move = _GridMove(self.move, self.start, items=items)
        return GridFrontier(self.start, self.values + value, move, self.end)

    def pay(self, steps: float) -> GridFrontier | None:
        shift = int(steps)
        start = self.start + shift
        if start > self.end:
            return None
        if not shift:
            return self
        move = _GridMove(self.move, start, shift=shift)
        return GridFrontier(start, self.values[: self.end - start + 1], move, self.end)

    def better(self, other: GridFrontier) -> GridFrontier:
        if other.start < self.start:
            return other.better(self)
        n_new = max(self.start + len(self.values), other.start + len(other.values)) - self.start
        values = np.full(n_new, self.values[-1])
        values[: len(self.values)] = self.values
        shared = values[other.start - self.start :]
        others = np.full(len(shared), other.values[-1])
        others[: len(other.values)] = other.values
        from_other = others > shared
        np.maximum(shared, others, out=shared)
        move = _GridMove(self.move, other.start, taken=from_other, other=other.move, is_choice=True)
        return GridFrontier(self.start, values, move, self.end)

    def within_reach(self, steps: float) -> GridFrontier:
        # the last value stands for all higher costs, so it stays
        n_useless = min(self.end - int(steps) - self.start, len(self.values) - 1)
        if n_useless <= 0:
            return self
        start = self.start + n_useless
        return GridFrontier(start, self.values[n_useless:], self.move, self.end)


@dataclass(frozen=True, slots=True)
class _GridMove:
    """How the entries from cost ``start`` on came about; entries below kept their place."""

    parent: _GridMove | None
    start: int
    items: tuple[int, ...] = ()
    shift: int = 0
    # entries at which the move was made, the last for all higher costs; None for all
    taken: _Bools | None = None
    other: _GridMove | None = None
    is_choice: bool = False


def items_of_list(frontier: ListFrontier, place: int) -> list[int]:
    """The items behind entry ``place`` of ``frontier``."""
    items: list[int] = []
    move = frontier.move
    while move is not None:
        is_from_other = move.from_other is not None and bool(move.from_other[place])
        if move.taken is None or move.taken[place]:
            items.extend(move.items)
        if move.origin is not None:
            place = int(move.origin[place])
        move = move.other if is_from_other else move.parent
    return items


def items_of_grid(frontier: GridFrontier, place: int) -> list[int]:
    """The items behind entry ``place`` of ``frontier``."""
    items: list[int] = []
    cost = frontier.start + place
    move = frontier.move
    while move is not None:
        is_made = cost >= move.start
        if is_made and move.taken is not None:
            cost = min(cost, move.start + len(move.taken) - 1)
            is_made = bool(move.taken[cost - move.start])
        if is_made:
            items.extend(move.items)
            cost -= move.shift
        move = move.other if is_made and move.is_choice else move.parent
    return items
