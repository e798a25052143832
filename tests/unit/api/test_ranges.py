"""Ranges against brute force over the bytes themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ranges import Part, Unsatisfiable, part_of

COUNT = st.integers(0, 20)


@pytest.mark.parametrize(
    ("header", "n_bytes", "part"),
    [
        (None, 10, None),
        ("bytes=0-0", 10, Part(0, 1)),
        ("bytes=2-5", 10, Part(2, 6)),
        ("bytes=9-", 10, Part(9, 10)),
        ("bytes=-3", 10, Part(7, 10)),
        ("bytes=-30", 10, Part(0, 10)),
        ("bytes=5-999", 10, Part(5, 10)),
        ("Bytes = 1 - 2", 10, Part(1, 3)),
        # not understood, or several: the whole file
        ("bytes=5-4", 10, None),
        ("bytes=-", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("items=0-1", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=٣-٤", 10, None),
        ("bytes=" + "9" * 40 + "-", 10, None),
        ("", 10, None),
    ],
)
def test_ranges_by_hand(header: str | None, n_bytes: int, part: Part | None) -> None:
    assert part_of(header, n_bytes) == part


@given(n_bytes=COUNT, first=st.none() | COUNT, last=st.none() | COUNT)
def test_ranges_by_brute_force(n_bytes: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is None:
        wanted = [n for n in range(n_bytes) if last is not None and n >= n_bytes - last]
    else:
        wanted = [n for n in range(n_bytes) if n >= first and (last is None or n <= last)]
    is_range = (first, last) != (None, None) and not (
        first is not None and last is not None and last < first
    )
    if not is_range:
        assert part_of(header, n_bytes) is None
    elif not wanted:
        with pytest.raises(Unsatisfiable):
            part_of(header, n_bytes)
    else:
        assert part_of(header, n_bytes) == Part(wanted[0], wanted[-1] + 1)
