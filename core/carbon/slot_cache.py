"""What is known of a zone, shared by everybody who plans: one request per zone and slot.

The store is a port of two methods over plain text, so that a table, Redis or a dictionary serves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Protocol, Self

from core.carbon.intensity import Intensity


class TextStore(Protocol):
    """Shared by processes; the last write wins, which is the newest knowledge."""

    def load(self, key: str) -> str | None: ...

    def save(self, key: str, text: str) -> None: ...

    def swap(self, key: str, old: str | None, new: str) -> bool:
        """Save ``new`` if ``old`` is still what is stored; whether that was so. True where it
        cannot be told.
        """
        ...


class MemoryStore:
    """For one process, such as ``greentune run``."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._lock = threading.Lock()

    def load(self, key: str) -> str | None:
        with self._lock:
            return self._texts.get(key)

    def save(self, key: str, text: str) -> None:
        with self._lock:
            self._texts[key] = text

    def swap(self, key: str, old: str | None, new: str) -> bool:
        with self._lock:
            if self._texts.get(key) != old:
                return False
            self._texts[key] = new
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Slots of one zone with the moment they were fetched, or tried to be.

    Args:
        asked_at: of the last request, successful or not: nobody asks again too soon.
        fetched_at: of the last good answer; None: there was none yet.
        trouble: why the last request failed; empty: it did not.
        is_pending: the last request has not been answered yet.
    """

    slots: tuple[Intensity, ...] = ()
    asked_at: datetime | None = None
    fetched_at: datetime | None = None
    trouble: str = ""
    is_pending: bool = False

    def to_text(self) -> str:
        return json.dumps(
            {
                "slots": [_plain(slot) for slot in self.slots],
                "asked_at": None if self.asked_at is None else self.asked_at.isoformat(),
                "fetched_at": None if self.fetched_at is None else self.fetched_at.isoformat(),
                "trouble": self.trouble,
                "is_pending": self.is_pending,
            }
        )

    @classmethod
    def from_text(cls, text: str | None) -> Self:
        """Unreadable text, such as another release's, is nothing known."""
        try:
            raw = json.loads(text or "{}")
            return cls(
                slots=tuple(_slot(entry) for entry in raw.get("slots", ())),
                asked_at=_moment(raw.get("asked_at")),
                fetched_at=_moment(raw.get("fetched_at")),
                trouble=raw.get("trouble", ""),
                is_pending=raw.get("is_pending", False),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


def _plain(slot: Intensity) -> dict[str, Any]:
    raw = asdict(slot)
    raw["moment"] = slot.moment.isoformat()
    raw["until"] = None if slot.until is None else slot.until.isoformat()
    return raw


def _slot(raw: dict[str, Any]) -> Intensity:
    values = {field.name: raw[field.name] for field in fields(Intensity)}
    values["moment"] = datetime.fromisoformat(raw["moment"])
    values["until"] = _moment(raw["until"])
    return Intensity(**values)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def merged(
    older: Iterable[Intensity], newer: Iterable[Intensity], since: datetime
) -> tuple[Intensity, ...]:
    """By their beginnings, the newer one winning; what ended before ``since`` is dropped."""
    by_moment = {slot.moment: slot for slot in older} | {slot.moment: slot for slot in newer}
    kept = [s for s in by_moment.values() if s.until is None or s.until > since]
    return tuple(sorted(kept, key=lambda s: s.moment))
