"""Byte ranges of a download (RFC 9110, section 14): one range at a time, so that a broken transfer
of a large archive can go on where it ended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# more digits are no position in any file
_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``start`` to ``end``, excluded, of a file."""

    start: int
    end: int


class Unsatisfiable(Exception):
    """The range begins beyond the file's end, or asks for its last 0 bytes."""


def part_of(header: str | None, n_bytes: int) -> Part | None:
    """What the header ``Range`` asks for of a file of ``n_bytes``.

    Returns:
        None for the whole file: without the header, and, as the standard wants it, with one that
        is not understood or asks for several ranges.

    Raises:
        Unsatisfiable: a range of which the file has nothing.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = (int(digits) if digits else None for digits in found.groups())
    if first is None:
        assert last is not None
        start, end = max(n_bytes - last, 0), n_bytes
    else:
        if last is not None and last < first:
            return None
        start, end = first, n_bytes if last is None else min(last + 1, n_bytes)
    if start >= end:
        raise Unsatisfiable
    return Part(start, end)
