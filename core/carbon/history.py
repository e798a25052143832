"""What a job's own events tell its report: which rho when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

#: ``data["kind"]`` of the events meant here
SELECTION = "selection"


class Remark(Protocol):
    """A stored event; ``data`` holds the ``rho`` of a selection."""

    @property
    def created_at(self) -> datetime: ...
    @property
    def data(self) -> Mapping[str, Any] | None: ...


def rho_history(remarks: Iterable[Remark]) -> list[tuple[datetime, float]]:
    """(moment, rho from then on), in the events' order."""
    return [
        (remark.created_at, float(remark.data["rho"]))
        for remark in remarks
        if remark.data is not None and remark.data.get("rho") is not None
    ]
