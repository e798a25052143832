"""Which of the forms on offer a request wants, by its header ``Accept`` (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"q\s*=\s*([01](?:\.\d{0,3})?)", re.IGNORECASE)


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """The media type of ``offered`` that the header likes best.

    The first of equals; the first of all where the header is absent or likes none: the caller then
    sees what there is.
    """
    wishes = _wishes(accept or "*/*")
    return max(offered, key=lambda media_type: _quality(media_type, wishes))


def _wishes(accept: str) -> dict[str, float]:
    wishes: dict[str, float] = {}
    for entry in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights = [float(m[1]) for p in parameters if (m := _QUALITY.fullmatch(p))]
        wishes[media_range] = min(weights[0], 1.0) if weights else 1.0
    return wishes


def _quality(media_type: str, wishes: dict[str, float]) -> float:
    """By the most specific range that covers the type."""
    family = media_type.partition("/")[0]
    ranges = (media_type, f"{family}/*", "*/*")
    return next((wishes[r] for r in ranges if r in wishes), 0.0)
