"""What a training process stands on: database, objects, signal and this host's own figures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from core.carbon.energy import Attribution
from core.carbon.intensity import IntensitySignal
from core.carbon.signal import LiveOptions, open_signal
from core.data.validation import DataLimits
from core.errors import Unavailable
from core.jobs.database import Database, now, open_database
from core.jobs.signal_texts import SignalTexts
from core.objects.opening import open_store
from core.objects.store import ObjectStore
from core.settings import Settings
from worker.metering import attribution_of

logger = logging.getLogger(__name__)

#: training waits no longer for a carbon provider; what it says later counts from then on
SIGNAL_PATIENCE: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What surrounds a training, as the settings name it. Nothing is connected yet."""

    database: Database
    objects: ObjectStore
    signal: IntensitySignal
    #: of this host; None: not known
    zone: str | None
    pue: float
    meter_interval_s: float
    attribution: Attribution
    models: dict[str, str | None]
    limits: DataLimits
    home: Path
    #: how long a write waits for a database that is away
    patience_s: float
    max_attempts: int
    #: of this host; None: not known
    embodied_g_per_hour: float | None = None
    #: how long a job that is due may lie unclaimed while a worker is free
    claim_delay_s: float = 0.0
    #: what plans are made by
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


class DatabaseClock:
    """The database's time, by which holds end: a plan by the clock of a host that is slow would
    hold a job that is due, again and again. Asked for once; from then on the monotonic clock is
    followed, and no step of this host's clock moves a plan. A database that is away when it is
    asked leaves this host's time: training asks before every step and must not wait for it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told: tuple[datetime, float] | None = None

    def __call__(self) -> datetime:
        if self._told is None:
            self._told = self._ask(), time.monotonic()
        moment, told_s = self._told
        return moment + timedelta(seconds=time.monotonic() - told_s)

    def _ask(self) -> datetime:
        try:
            with self._database.read() as session:
                return now(session)
        except Unavailable:
            return datetime.now(UTC)


def open_world(settings: Settings, *, shares_host: bool) -> World:
    database = open_jobs(settings, pool_size=2)
    return World(
        database=database,
        objects=open_store(**settings.objects_access),
        signal=open_signal(
            settings.carbon_signal,
            settings.carbon_traces,
            speed=settings.carbon_trace_speed,
            anchor=settings.carbon_trace_anchor,
            live=LiveOptions(
                **settings.carbon_access,
                store=SignalTexts(database),
                patience=SIGNAL_PATIENCE,
                on_trouble=lambda said: logger.warning("carbon signal: %s", said),
            ),
        ),
        zone=settings.zone,
        pue=settings.pue,
        embodied_g_per_hour=settings.embodied_g_per_hour,
        meter_interval_s=settings.meter_interval_s,
        attribution=attribution_of(shares_host=shares_host),
        models=settings.model_folders,
        limits=DataLimits(
            min_examples=settings.min_examples, max_line_bytes=settings.max_line_bytes
        ),
        home=settings.home.expanduser().absolute(),
        patience_s=2 * settings.lease_s,
        max_attempts=settings.max_attempts,
        claim_delay_s=settings.sweep_every_s,
        clock=DatabaseClock(database),
    )


def open_jobs(settings: Settings, *, pool_size: int = 10) -> Database:
    """The job database, as a worker and its trainings use it; no connection is made.

    A process that is frozen in the middle of a transaction goes on holding the job's row, which
    claims and sweeps pass over while it is locked: the transaction must end before the lease does.
    """
    return open_database(
        settings.resolved_database_url, pool_size=pool_size, idle_timeout_s=settings.lease_s / 2
    )
