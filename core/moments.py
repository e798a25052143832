"""Moments and spans of time as callers may name them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from core.errors import InvalidInput

#: a hundred years: what is further off or takes longer is a mistake, and may end after the calendar
LONGEST: Final = timedelta(days=36_525)
#: in words, as refusals say it
LONGEST_SAID: Final = "100 years"


def as_utc(moment: datetime, *, param: str | None = None) -> datetime:
    """Reject naive datetimes at the border; everything inside is aware UTC.

    Raises:
        InvalidInput: no time zone, or the calendar has no such moment in UTC.
    """
    if moment.tzinfo is None:
        raise InvalidInput(
            f"{moment.isoformat()} has no time zone; write it in UTC, e.g. ...Z.", param=param
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(
            f"{moment.isoformat()} is before the year 1 or after 9999 in UTC; name a moment at "
            f"most {LONGEST_SAID} ahead.",
            param=param,
        ) from None


def check_not_too_far(moment: datetime | None, now: datetime, *, param: str) -> None:
    """Raises InvalidInput for a moment over `LONGEST` after ``now``; both are aware UTC."""
    # not a sum, which the calendar may not have
    if moment is not None and moment - now > LONGEST:
        raise InvalidInput(
            f"{param} must be at most {LONGEST_SAID} ahead; got {moment.isoformat()}.", param=param
        )
