"""A live provider as an `IntensitySignal` that always has an answer and says which one.

Order of answers for a moment: the provider's slot; the last value known, for as long as the stated
staleness; the zone's static average; the world's. Never 0 g, never an exception but for a zone
that nobody knows. A failed request is not repeated within ``retry``. Threads that ask for the same
share one request and wait for it together; one that takes longer than ``patience`` goes on by
itself, and until it is answered there is what was known before. The reason why a value stands in
is part of its source.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from core.carbon.forecast import expect
from core.carbon.intensity import (
    STAND_IN,
    STATIC_AVERAGE,
    WORLD,
    Intensity,
    IntensitySignal,
    normal_zone,
)
from core.carbon.providers.port import Provider
from core.carbon.slot_cache import Known, MemoryStore, TextStore, merged
from core.carbon.static import StaticSignal
from core.errors import InvalidInput, SignalUnavailable

logger = logging.getLogger(__name__)

#: regions of WattTime begin with the market's name
_MARKETS = {
    "CAISO": "US-CA",
    "ERCOT": "US-TX",
    "ISONE": "US",
    "MISO": "US",
    "NYISO": "US-NY",
    "PJM": "US",
    "SPP": "US",
}
#: what the habits of `core.carbon.forecast` learn from
_MEMORY = timedelta(days=21)
#: providers replace their estimates within days
_UNSURE = timedelta(days=3)
#: of five minutes: a week
_MOST_SLOTS = 2_016
#: characters of a reason in a source, which is stored with every sample
_MOST_SAID = 120


@dataclass(frozen=True, slots=True)
class _Request:
    """One that is under way.

    Args:
        meanwhile: what is known until it is answered.
        sent_s: on the monotonic clock.
    """

    meanwhile: Known
    answer: Future[Known] = field(default_factory=Future)
    sent_s: float = field(default_factory=time.monotonic)

    def known(self, patience: timedelta | None) -> Known:
        """Its answer; what is known meanwhile where that takes longer than the patience."""
        if patience is None:
            return self.answer.result()
        left_s = self.sent_s + patience.total_seconds() - time.monotonic()
        try:
            return self.answer.result(max(left_s, 0.0))
        except TimeoutError:
            return self.meanwhile


class LiveSignal:
    """Args:
    provider: whose requests may fail in every way.
    store: shared cache.
    staleness: how long a last known value may stand in.
    refresh: least time between two requests for the past and present of a zone.
    forecast_refresh: the same for forecasts.
    retry: the same after a failure.
    patience: how long a caller waits for a request; None: until it is answered or refused.
    fallback: for moments nothing is known of.
    on_trouble: told one sentence whenever a request fails.
    clock: the moment now, aware UTC.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        store: TextStore | None = None,
        staleness: timedelta = timedelta(hours=3),
        refresh: timedelta = timedelta(minutes=5),
        forecast_refresh: timedelta = timedelta(minutes=30),
        retry: timedelta = timedelta(minutes=1),
        patience: timedelta | None = None,
        fallback: IntensitySignal | None = None,
        on_trouble: Callable[[str], None] = lambda _: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._provider = provider
        self._name = type(provider).__name__
        self._store = store or MemoryStore()
        self._staleness = staleness
        self._refresh = refresh
        self._forecast_refresh = forecast_refresh
        self._retry = retry
        self._patience = patience
        self._fallback = fallback or StaticSignal()
        self._on_trouble = on_trouble
        self._clock = clock
        #: spares the store's round trip between two requests
        self._local: dict[str, Known] = {}
        #: of this process, by key; while there is one, it alone changes the key's `_local`
        self._under_way: dict[str, _Request] = {}
        self._lock = threading.Lock()

    def at(self, zone: str, moment: datetime) -> Intensity:
        known = self._recent(normal_zone(zone), moment)
        for slot in reversed(known.slots):
            if slot.moment <= moment and (slot.until is None or moment < slot.until):
                return slot
        shortest = timedelta(microseconds=1)
        (stand_in, *_) = self._stand_in(zone, moment, moment + shortest, known)
        return replace(stand_in, until=None)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        known = self._recent(normal_zone(zone), start)
        slots: list[Intensity] = []
        at = start
        for slot in known.slots:
            until = slot.until or end
            if until <= at or slot.moment >= end:
                continue
            if slot.moment > at:
                slots += self._stand_in(zone, at, slot.moment, known)
                at = slot.moment
            slots.append(slot.clipped(at, end))
            at = min(until, end)
        if at < end:
            slots += self._stand_in(zone, at, end, known)
        return tuple(slots)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        area = normal_zone(zone)
        known = self._recent(area, now)
        present = self.at(zone, now)
        told = self._cached(
            "forecast", area, self._forecast_refresh, lambda: self._provider.forecast(area, now)
        )
        coming = [s for s in told.slots if s.until is not None and s.until > now]
        covered = bool(coming) and coming[0].moment <= now and coming[0].kind == present.kind
        history = (*(s for s in known.slots if s.moment < present.moment), present)
        return expect(now, end, forecast=coming if covered else (), history=history)

    def _recent(self, area: str, start: datetime) -> Known:
        """Past and present: three weeks at first, then from the newest known slot on."""
        now = self._clock()

        def ask() -> tuple[Intensity, ...]:
            before = Known.from_text(self._store.load(self._key("recent", area)))
            since = max((s.moment for s in before.slots), default=min(start, now - _MEMORY))
            # estimates give way to what was measured: asked for again, for as long as that happens
            guessed = (
                s.moment for s in before.slots if s.is_estimated and s.moment > now - _UNSURE
            )
            since = min((since, *guessed))
            past = self._provider.history(area, since, now)
            latest = past[-1] if past and past[-1].until and past[-1].until > now else None
            return (*past, latest or self._provider.current(area, now))

        return self._cached("recent", area, self._refresh, ask)

    def _cached(
        self, what: str, area: str, refresh: timedelta, ask: Callable[[], tuple[Intensity, ...]]
    ) -> Known:
        key = self._key(what, area)
        now = self._clock()
        with self._lock:
            request = self._under_way.get(key)
            is_ours = request is None
            if request is None:
                known, text = self._look(key, refresh, now)
                if self._is_fresh(known, refresh, now):
                    self._local[key] = known
                    return known
                # said before asking: another process that comes meanwhile takes what there is
                trouble = f"{self._name} has not answered yet."
                waiting = replace(known, asked_at=now, trouble=trouble, is_pending=True)
                request = self._under_way[key] = _Request(waiting)
                self._local[key] = waiting
        if is_ours:
            known = replace(known, is_pending=False)
            since = (text, request.meanwhile)
            self._send(key, request, lambda: self._asked(what, area, known, ask, since=since))
        return request.known(self._patience)

    def _look(self, key: str, refresh: timedelta, now: datetime) -> tuple[Known, str | None]:
        """What is known, and the stored text if that had to be read."""
        known, text = self._local.get(key, Known()), None
        if known.is_pending or not self._is_fresh(known, refresh, now):
            text = self._store.load(key)
            stored = Known.from_text(text)
            if not known.is_pending or stored.asked_at is not None:
                known = stored
        return known, text

    def _asked(
        self,
        what: str,
        area: str,
        known: Known,
        ask: Callable[[], tuple[Intensity, ...]],
        *,
        since: tuple[str | None, Known],
    ) -> Known:
        """What is known after one request, for everybody.

        Args:
            since: the stored text as it was, and what it is until the answer is there.
        """
        key, now = self._key(what, area), self._clock()
        text, waiting = since
        if not self._store.swap(key, text, waiting.to_text()):
            # another process was faster by a hair: its answer is ours
            return Known.from_text(self._store.load(key))
        try:
            fresh = self._accepted(self._answer(ask), area)
        except (InvalidInput, SignalUnavailable) as error:
            if isinstance(error, InvalidInput) and not known.slots:
                # an unknown zone is the caller's matter, each time
                self._local[key] = known
                self._store.save(key, known.to_text())
                raise
            self._on_trouble(error.message)
            known = replace(known, asked_at=now, trouble=error.message)
        else:
            older = known.slots if what == "recent" else ()
            slots = merged(older, fresh, now - _MEMORY)[-_MOST_SLOTS:]
            known = Known(slots=slots, asked_at=now, fetched_at=now)
        self._local[key] = known
        self._store.save(key, known.to_text())
        return known

    def _answer(self, ask: Callable[[], tuple[Intensity, ...]]) -> tuple[Intensity, ...]:
        """What the provider tells. Its words may break an adapter in a way that nobody foresaw:
        that is the provider's outage too, and no reason for a training to end.
        """
        try:
            return ask()
        except (InvalidInput, SignalUnavailable):
            raise
        except Exception as error:
            logger.exception("%s: an answer broke its adapter", self._name)
            raise SignalUnavailable(
                f"{self._name} told what cannot be read ({type(error).__name__})."
            ) from error

    def _send(self, key: str, request: _Request, ask: Callable[[], Known]) -> None:
        """Answers the request, in a thread of its own where callers may run out of patience."""

        def work() -> None:
            try:
                known = ask()
            except BaseException as error:  # noqa: BLE001  raised where the answer is taken
                answered = partial(request.answer.set_exception, error)
            else:
                answered = partial(request.answer.set_result, known)
            with self._lock:
                del self._under_way[key]
            answered()

        if self._patience is None:
            work()
        else:
            threading.Thread(target=work, name="carbon-signal", daemon=True).start()

    def _is_fresh(self, known: Known, refresh: timedelta, now: datetime) -> bool:
        pause = self._retry if known.trouble else refresh
        return known.asked_at is not None and now < known.asked_at + pause

    def _key(self, what: str, area: str) -> str:
        return f"intensity/{self._name}/{what}/{area}"

    def _accepted(self, slots: tuple[Intensity, ...], area: str) -> tuple[Intensity, ...]:
        for slot in slots:
            if slot.zone != area:
                raise SignalUnavailable(f"{self._name} told zone {slot.zone!r} for {area!r}.")
        newest = max((slot.until for slot in slots if slot.until is not None), default=None)
        if newest is not None and newest < self._clock() - self._staleness:
            raise SignalUnavailable(f"{self._name}'s newest value of {area} ended {newest:%F %R}.")
        return slots

    def _stand_in(
        self, zone: str, start: datetime, end: datetime, known: Known
    ) -> tuple[Intensity, ...]:
        """The last known value while it is fresh enough, then the static average."""
        before = [s for s in known.slots if s.until is not None and s.until <= start]
        if not before:
            return self._average(zone, start, end, known)
        last = before[-1]
        assert last.until is not None
        limit = min(last.until + self._staleness, end)
        if limit <= start:
            return self._average(zone, start, end, known)
        held = replace(
            last,
            moment=start,
            until=limit,
            source=f"{last.source}, {STAND_IN} (of {last.moment:%F %R} UTC){_because(known)}",
            is_estimated=True,
        )
        return (held, *(self._average(zone, limit, end, known) if limit < end else ()))

    def _average(
        self, zone: str, start: datetime, end: datetime, known: Known
    ) -> tuple[Intensity, ...]:
        area = normal_zone(zone)
        market = _MARKETS.get(area.partition("_")[0], area)
        for candidate in (market, WORLD):
            try:
                slots = self._fallback.series(candidate, start, end)
            except InvalidInput:
                continue
            note = "" if candidate == area else f" ({candidate})"
            said = f"{STATIC_AVERAGE}{note}: "
            return tuple(
                replace(s, zone=area, source=said + s.source + _because(known)) for s in slots
            )
        raise SignalUnavailable(f"Neither {self._name} nor the fallback has a value for {zone}.")


def _because(known: Known) -> str:
    return f"; {known.trouble[:_MOST_SAID].rstrip('.')}" if known.trouble else ""
