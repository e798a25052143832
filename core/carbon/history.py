"""What a job's own events tell its report: which rho when, and what selecting tensors took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from core.carbon.account import Overhead

#: ``data["kind"]`` of the events meant here
SELECTION = "selection"


class Remark(Protocol):
    """A stored event; ``data`` holds ``rho`` and ``duration_s`` of a selection."""

    @property
    def created_at(self) -> datetime: ...
    @property
    def data(self) -> Mapping[str, Any] | None: ...


def selections(remarks: Iterable[Remark]) -> list[Overhead]:
    """The times that went into choosing tensors: told when they end."""
    return [
        Overhead(
            kind=SELECTION,
            started_at=remark.created_at - timedelta(seconds=remark.data["duration_s"]),
            ended_at=remark.created_at,
        )
        for remark in remarks
        if remark.data is not None and remark.data.get("duration_s")
    ]


def rho_history(remarks: Iterable[Remark]) -> list[tuple[datetime, float]]:
    """(moment, rho from then on), in the events' order."""
    return [
        (remark.created_at, float(remark.data["rho"]))
        for remark in remarks
        if remark.data is not None and remark.data.get("rho") is not None
    ]
