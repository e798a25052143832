"""The search behind the selector: which stretches of the backward pass to pay for.

The problem. Tensors i with importance v_i > 0 and a price w_i of their own; *shared terms* g, each
needed by a set of tensors, with price f_g. Choose S to maximise sum v_i under

    cost(S) = sum over S of w_i + sum of f_g over the shared terms that some tensor of S needs.

Tensors that need the same shared terms form a *class*; R(c) are the terms of class c.

The search pays for terms step by step; a class whose terms are all paid is *open* and its tensors
enter the frontier as plain knapsack items. At each stage, over the classes not open yet:

1. R(c) contained in every other class's terms: pay it, open c. On a chain this is all there is:
   one sweep from the loss down, a candidate answer at every depth.
2. Terms that all need are paid together. What then falls into parts that share no term is solved
   part after part, each on the frontier of the ones before it.
3. Otherwise two classes a, b of smallest terms meet in D, the classes that need both R(a) and R(b)
   (queries and values meet in everything below them; decoder and encoder in a tied embedding).
   Either nothing of D is trained: solve without D. Or something is, and whatever it is, the terms
   common to all of D are paid: pay those and go on.

Each stage splits the possible sets without losing one and never prices a set below its cost, so
the best answer found is the optimum. The main line is one loop; what branches off it in step 3 is
small in transformers (the deepest block's branches). Graphs made to be hard can branch without end
(the problem is NP-hard); past ``MAX_BRANCHES`` further branches are dropped and the answer, still
within the budget, is marked as not proven.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from core.training.costs import FlopsProfile
from core.training.frontier import Frontier

MAX_BRANCHES = 2_000

F = TypeVar("F", bound=Frontier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """Tensors that need the same shared terms."""

    needs: int
    # (tensor, its own price in FLOPs, importance), price > 0
    items: tuple[tuple[int, float, float], ...]
    # tensors without a price of their own, and their importance together
    free: tuple[int, ...]
    free_value: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The reduced instance: only tensors of positive importance that the loss depends on."""

    classes: tuple[Class, ...]
    # price of shared term g
    shared_flops: tuple[float, ...]

    @property
    def prices(self) -> list[float]:
        """Every price that a sum of costs is made of."""
        own = [flops for each in self.classes for _, flops, _ in each.items]
        return own + list(self.shared_flops)


def reduce(profile: FlopsProfile, importance: Mapping[int, float]) -> Problem:
    """The instance for the tensors (positions in ``profile.names``) of positive ``importance``."""
    wanted = sum(1 << i for i, value in importance.items() if value > 0) & profile.connected
    own: dict[int, float] = {}
    shared: dict[int, float] = {}
    for members, flops in profile.terms:
        inside = members & wanted
        into = own if inside.bit_count() == 1 else shared
        if inside and flops:
            into[inside] = into.get(inside, 0) + flops
    needs = _transposed(list(shared), len(profile.names))
    tensors: dict[int, list[int]] = {}
    for i in sorted(importance):
        if wanted >> i & 1:
            tensors.setdefault(needs[i], []).append(i)
    classes = []
    for terms, members_of_class in tensors.items():
        priced = [i for i in members_of_class if own.get(1 << i)]
        free = tuple(i for i in members_of_class if not own.get(1 << i))
        classes.append(
            Class(
                needs=terms,
                items=tuple((i, own[1 << i], importance[i]) for i in priced),
                free=free,
                free_value=math.fsum(importance[i] for i in free),
                value=math.fsum(importance[i] for i in members_of_class),
            )
        )
    return Problem(classes=tuple(classes), shared_flops=tuple(shared.values()))


def _transposed(columns: Sequence[int], n_rows: int) -> list[int]:
    """Bit matrix transposed: bit g of row i is bit i of ``columns[g]``."""
    if not columns:
        return [0] * n_rows
    n_bytes = (n_rows + 7) // 8
    packed = b"".join(column.to_bytes(n_bytes, "little") for column in columns)
    bits: npt.NDArray[np.uint8] = np.unpackbits(
        np.frombuffer(packed, np.uint8).reshape(len(columns), n_bytes), axis=1, bitorder="little"
    )
    rows = np.packbits(bits.T, axis=1, bitorder="little")
    return [int.from_bytes(rows[i].tobytes(), "little") for i in range(n_rows)]


class _Open(NamedTuple):
    """A class not open yet and the terms of it that are not paid yet."""

    rest: int
    tensors: Class
    # of all its tensors together
    own_steps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """FLOPs in a frontier's steps: units of ``unit`` FLOPs, rounded up, or FLOPs as they are."""

    unit: float | None

    def steps(self, flops: float) -> float:
        if self.unit is None:
            return flops
        steps = math.ceil(flops / self.unit)
        # the quotient of two floats may round down past a whole number
        return steps if steps * self.unit >= flops else steps + 1


class _Line(Generic[F]):
    """A way down the graph: what was gained so far and the classes still to open.

    Stretches are paid in steps; their sum is rounded up once, not each of them: ``room`` are FLOPs
    that may be spent on top of the steps paid, left over from rounding up. ``unpaid``: at most the
    FLOPs of all terms still to pay.
    """

    def __init__(
        self, frontier: F, classes: list[_Open], scale: Scale, *, room: float, unpaid: float
    ) -> None:
        self.frontier = frontier
        self.classes = classes
        self.room = room
        self.unpaid = unpaid
        self._scale = scale

    def due_steps(self, flops: float) -> float:
        """Steps to pay for ``flops`` more."""
        self.unpaid -= flops
        if self._scale.unit is None:
            return flops
        steps = self._scale.steps(max(flops - self.room, 0))
        self.room += steps * self._scale.unit - flops
        return steps

    def may_beat(self, best: Frontier) -> bool:
        """Whether all classes, were they free, would be worth more than ``best``."""
        return self.frontier.top + math.fsum(c.tensors.value for c in self.classes) > best.top


class Search(Generic[F]):
    """One search over ``problem``.

    Args:
        room: FLOPs of the budget beyond the frontier's capacity in whole steps, under one unit.
        keeps_all: find the answer for every cost, not only for the whole capacity.

    ``is_complete`` tells afterwards whether no branch was dropped.
    """

    def __init__(self, problem: Problem, scale: Scale, *, room: float, keeps_all: bool) -> None:
        self._problem = problem
        self._scale = scale
        self._room = room
        self._keeps_all = keeps_all
        self._n_branches = 0
        self.is_complete = True

    def run(self, empty: F) -> F:
        """Best frontier over all sets, starting from the frontier of the empty set."""
        classes = [
            _Open(each.needs, each, sum(self._scale.steps(flops) for _, flops, _ in each.items))
            for each in self._problem.classes
        ]
        unpaid = math.fsum(self._problem.shared_flops)
        line = _Line(empty, classes, self._scale, room=self._room, unpaid=unpaid)
        return self._sweep(line, empty, keeps_all=self._keeps_all)

    def _sweep(self, line: _Line[F], best: F, *, keeps_all: bool) -> F:
        """Best of ``best`` and all that adding tensors of the line's classes to it gives."""
        # looked at last where only the top counts: most of them cannot beat the main line
        sides: list[_Line[F]] = []
        while True:
            best = self._open_main_line(line, best, keeps_all)
            if not line.classes:
                break
            parts = _parts(line.classes)
            if len(parts) > 1:
                line.classes = parts.pop()
                for part in parts:
                    apart = _Line(line.frontier, part, self._scale, room=0, unpaid=line.unpaid)
                    line.frontier = self._sweep(apart, line.frontier, keeps_all=True)
                best = _best(best, line.frontier, keeps_all)
                continue
            below, others = _meeting(line.classes)
            side = _Line(line.frontier, others, self._scale, room=line.room, unpaid=line.unpaid)
            if keeps_all:
                best = self._branch(side, best, keeps_all)
            else:
                sides.append(side)
            if not self._pay(line, _suffix_intersections(below)[0]):
                break
        while sides:
            best = self._branch(sides.pop(), best, keeps_all)
        return best

    def _branch(self, line: _Line[F], best: F, keeps_all: bool) -> F:
        if not keeps_all and not line.may_beat(best):
            return best
        self._n_branches += 1
        if self._n_branches > MAX_BRANCHES:
            self.is_complete = False
            return best
        return self._sweep(line, best, keeps_all=keeps_all)

    def _open_main_line(self, line: _Line[F], best: F, keeps_all: bool) -> F:
        """Opens class after class while each needs only what all the others need as well.

        The line's classes afterwards are those left, none if nothing better can come of them.
        """
        line.classes.sort(key=lambda each: each.rest.bit_count())
        common = _suffix_intersections(line.classes)
        hopes = _suffix_sums([each.tensors.value for each in line.classes])
        own_steps = [*_suffix_sums([each.own_steps for each in line.classes]), 0]
        paid = 0
        for place, each in enumerate(line.classes):
            if not keeps_all and line.frontier.top + hopes[place] <= best.top:
                break
            due = common[place] & ~paid
            paid |= due
            if not self._pay(line, due, without=False):
                break
            if each.rest & ~paid:
                line.classes = _without_terms(line.classes[place:], paid)
                return best
            line.frontier = self._with_items(line.frontier, each.tensors)
            best = _best(best, line.frontier, keeps_all)
            if not keeps_all:
                to_come = own_steps[place + 1] + self._most_steps(line.unpaid)
                line.frontier = line.frontier.within_reach(to_come)
        line.classes = []
        return best

    def _pay(self, line: _Line[F], terms: int, *, without: bool = True) -> bool:
        """Pays for ``terms`` on ``line``; False if the capacity does not allow it."""
        affordable = line.frontier.pay(line.due_steps(self._price(terms)))
        if affordable is None:
            return False
        line.frontier = affordable
        if without:
            line.classes = _without_terms(line.classes, terms)
        return True

    def _most_steps(self, flops: float) -> float:
        """At most the steps to pay for ``flops`` in any number of stretches: their sum is rounded
        up on each line, and lines part at most where classes do.
        """
        return self._scale.steps(max(flops, 0.0)) + 2 * len(self._problem.classes)

    def _with_items(self, frontier: F, tensors: Class) -> F:
        for item, flops, value in tensors.items:
            frontier = frontier.take(item, self._scale.steps(flops), value)
        if tensors.free:
            frontier = frontier.take_free(tensors.free, tensors.free_value)
        return frontier

    def _price(self, terms: int) -> float:
        total: float = 0
        while terms:
            lowest = terms & -terms
            total += self._problem.shared_flops[lowest.bit_length() - 1]
            terms ^= lowest
        return total


def _best(one: F, other: F, keeps_all: bool) -> F:
    if keeps_all:
        return one.better(other)
    return one if one.top >= other.top else other


def _without_terms(classes: Sequence[_Open], paid: int) -> list[_Open]:
    return [_Open(each.rest & ~paid, each.tensors, each.own_steps) for each in classes]


def _suffix_intersections(classes: Sequence[_Open]) -> list[int]:
    """For each place the terms that all classes from there on need."""
    common: list[int] = []
    for each in reversed(classes):
        common.append(each.rest & common[-1] if common else each.rest)
    return common[::-1]


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """For each place the sum of all values from there on."""
    return list(itertools.accumulate(reversed(values)))[::-1]


def _parts(classes: Sequence[_Open]) -> list[list[_Open]]:
    """Classes grouped so that groups share no term; the largest group last."""
    groups: list[tuple[int, list[_Open]]] = []
    for each in classes:
        terms, members = each.rest, [each]
        apart = []
        for group in groups:
            if group[0] & terms:
                terms |= group[0]
                members = group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (terms, members)]
    return sorted((members for _, members in groups), key=len)


def _meeting(classes: Sequence[_Open]) -> tuple[list[_Open], list[_Open]]:
    """Classes (sorted by number of terms, no term common to all) split at a meeting point: those
    that need the terms of two of the smallest classes, and the others; both non-empty.
    """
    smallest: list[int] = []
    for each in classes:
        if all(terms & ~each.rest for terms in smallest):
            smallest.append(each.rest)
    joins = {a | b for i, a in enumerate(smallest) for b in smallest[:i]}
    # where no two meet: below one of the smallest alone
    for candidates in (joins, smallest):
        counted = [(sum(not j & ~each.rest for each in classes), j) for j in candidates]
        n_below, join = min((c for c in counted if c[0]), default=(0, 0))
        if n_below:
            break
    below = [each for each in classes if not join & ~each.rest]
    return below, [each for each in classes if join & ~each.rest]
