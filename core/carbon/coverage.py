"""Where the record of a job's energy has holes: time of its attempts without any sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from core.carbon.account import AttemptRow
from core.carbon.energy import Device, MeteredRow, MeterGap

#: shorter holes are the meter's own starting, reading and stopping
_NOTICEABLE = timedelta(seconds=1)
_DEVICES: tuple[Device, ...] = ("cpu", "gpu", "ram")


def uncovered(rows: Sequence[MeteredRow], attempts: Sequence[AttemptRow]) -> tuple[MeterGap, ...]:
    """Holes of a second and more, oldest first, devices with the same hole together.

    A device counts in every attempt if any attempt has metered it: a host where it could not be
    read shows up as a hole. The end of an attempt that still runs is not judged.

    Args:
        rows: single samples of all attempts, not merged ones.
        attempts: all of the job's.
    """
    devices = [d for d in _DEVICES if any(r.device == d for r in rows)] or list(_DEVICES)
    holes: dict[tuple[datetime, datetime, str], list[Device]] = {}
    for attempt in attempts:
        mine = [r for r in rows if r.attempt == attempt.number]
        for device in devices:
            for start, end, reason in _holes([r for r in mine if r.device == device], attempt):
                holes.setdefault((start, end, reason), []).append(device)
    return tuple(
        MeterGap(started_at=start, ended_at=end, devices=tuple(found), reason=reason)
        for (start, end, reason), found in sorted(holes.items())
    )


def missing_s(gaps: Iterable[MeterGap]) -> float:
    """Seconds that lie in at least one of them."""
    total, until = timedelta(0), None
    for gap in sorted(gaps, key=lambda g: g.started_at):
        begin = gap.started_at if until is None else max(gap.started_at, until)
        if gap.ended_at > begin:
            total += gap.ended_at - begin
            until = gap.ended_at
    return total.total_seconds()


def _holes(
    rows: Iterable[MeteredRow], attempt: AttemptRow
) -> Iterable[tuple[datetime, datetime, str]]:
    at, reason = attempt.started_at, "before the first sample"
    for row in sorted(rows, key=lambda r: r.started_at):
        if row.started_at - at >= _NOTICEABLE:
            yield at, row.started_at, reason
        at, reason = max(at, row.ended_at), "between samples"
    if attempt.ended_at is not None and attempt.ended_at - at >= _NOTICEABLE:
        is_empty = reason == "before the first sample"
        yield at, attempt.ended_at, "no samples" if is_empty else "after the last sample"
