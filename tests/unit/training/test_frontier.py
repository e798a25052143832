"""Grid frontiers against a dense table that keeps every set at every cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.training.frontier import GridFrontier, items_of_grid

#: (kind, steps, worth) of a move
moves = st.lists(
    st.tuples(
        st.sampled_from(["take", "free", "pay", "better"]), st.integers(1, 9), st.integers(1, 20)
    ),
    max_size=8,
)


def _played(
    played: list[tuple[str, int, int]], capacity: int, trim: Callable[[int], int]
) -> tuple[GridFrontier | None, list[tuple[frozenset[int], int, int]]]:
    """The frontier after ``played`` and every (set, cost, worth) that the moves can make."""
    frontier = GridFrontier.empty(capacity)
    sets: list[tuple[frozenset[int], int, int]] = [(frozenset(), 0, 0)]
    for item, (kind, steps, worth) in enumerate(played):
        grown = [(names | {item}, cost + steps, value + worth) for names, cost, value in sets]
        if kind == "take":
            frontier, sets = frontier.take(item, steps, worth), sets + grown
        elif kind == "free":
            frontier = frontier.take_free((item,), worth)
            sets = [(names | {item}, cost, value + worth) for names, cost, value in sets]
        else:
            paid = frontier.pay(steps)
            if paid is None:
                return None, []
            # a stretch that may be paid for, with an item beyond it, or else left
            beyond = paid.take(item, 1, worth)
            later = [(names, cost + steps, value) for names, cost, value in sets]
            taken = [(names | {item}, cost + 1, value + worth) for names, cost, value in later]
            if kind == "pay":
                frontier, sets = beyond, later + taken
            else:
                frontier, sets = frontier.better(beyond), sets + later + taken
        frontier = frontier.within_reach(trim(item))
    return frontier, sets


@given(moves, st.integers(0, 40))
def test_every_cost_has_its_best_set(played: list[tuple[str, int, int]], capacity: int) -> None:
    frontier, sets = _played(played, capacity, trim=lambda _: capacity)
    if frontier is None:
        return
    # the same set may come with a stretch paid and without
    found = {(names, value): cost for names, cost, value in sorted(sets, key=lambda s: -s[1])}
    for place, value in enumerate(frontier.values):
        cost = frontier.start + place
        assert value == max(v for _, c, v in sets if c <= cost)
        names = frozenset(items_of_grid(frontier, place))
        assert found[names, value] <= cost
    assert frontier.top == max(v for _, c, v in sets if c <= capacity)


@given(moves, st.integers(0, 40))
def test_what_cannot_be_spent_any_more_is_dropped_without_loss(
    played: list[tuple[str, int, int]], capacity: int
) -> None:
    # a stretch and the item beyond it cost one step more
    to_come = [sum(steps + 1 for _, steps, _ in played[item + 1 :]) for item in range(len(played))]
    kept, _ = _played(played, capacity, trim=lambda item: to_come[item])
    whole, _ = _played(played, capacity, trim=lambda _: capacity)
    if kept is None or whole is None:
        assert kept is whole
        return
    assert kept.top == whole.top
    assert len(kept.values) <= len(whole.values)


def test_a_frontier_is_no_longer_than_what_may_be_spent() -> None:
    frontier = GridFrontier.empty(100_000)
    for item in range(3):
        frontier = frontier.take(item, 10, 1.0)
    assert frontier.values.tolist() == np.repeat([0.0, 1.0, 2.0, 3.0], [10, 10, 10, 1]).tolist()
    assert items_of_grid(frontier, len(frontier.values) - 1) == [2, 1, 0]
    # with 99,985 steps to come, one of 15 or less stays, and what is worth more
    assert GridFrontier.empty(100_000).within_reach(99_985).start == 0
    assert frontier.within_reach(99_985).start == 15
