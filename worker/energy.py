"""Energy of the training process on its way into the database."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from core.carbon.account import Overhead
from core.carbon.energy import Attribution, EnergySample, MeteredEnergy, attribute
from core.carbon.intensity import Intensity, IntensitySignal
from core.errors import GreentuneError
from core.jobs import service
from core.jobs.records import Claim, EnergyRecord, OverheadRecord
from core.units import emissions_g
from worker.hooks import Scribe
from worker.reporter import Reporter


class EnergyLog:
    """Receives the meter's samples and warnings; called on the meter's thread.

    Each sample is stored with the intensity of its time. A signal that is away is told once and
    leaves samples without an intensity: it never reads as 0 g and never stops training.

    Args:
        zone: whose grid feeds this host.
        attribution: whose energy the meter counts.
    """

    def __init__(
        self,
        reporter: Reporter,
        scribe: Scribe,
        claim: Claim,
        *,
        signal: IntensitySignal,
        zone: str,
        attribution: Attribution,
    ) -> None:
        self._reporter = reporter
        self._scribe = scribe
        self._claim = claim
        self._signal = signal
        self._zone = zone
        self._is_signal_missing = False
        #: of this attempt so far, for its budgets; grams without the building's share, and at the
        #: last intensity that was known where a sample has none
        self.energy_j = 0.0
        self.emissions_g = 0.0
        #: on the monotonic clock: when the last samples came, which end then
        self._taken_s: float | None = None
        #: of the last sample whose intensity is known; 0 before the first
        self.g_per_joule = 0.0
        job_id, fence = claim.job_id, claim.fence
        reporter.post(
            lambda session, _now: service.record_attribution(session, job_id, fence, attribution)
        )

    @property
    def since_s(self) -> float:
        """Seconds since the last sample; 0 before the first. Whatever the wall clock is set to."""
        return 0.0 if self._taken_s is None else time.monotonic() - self._taken_s

    def take(self, samples: tuple[EnergySample, ...]) -> None:
        usable = [s for s in samples if math.isfinite(s.energy_j) and s.energy_j >= 0]
        if not usable:
            return
        start, end = min(s.started_at for s in usable), max(s.ended_at for s in usable)
        rows = [_record(row) for row in attribute(usable, self._slots(start, end))]
        self._add(rows)
        job_id, fence = self._claim.job_id, self._claim.fence

        def write(session: Session, _now: datetime) -> None:
            service.record_energy(session, job_id, fence, rows)

        self._reporter.post(write)

    def _add(self, rows: Sequence[EnergyRecord]) -> None:
        for row in rows:
            if row.intensity_g_per_kwh is not None:
                self.g_per_joule = emissions_g(1.0, row.intensity_g_per_kwh)
            self.energy_j += row.energy_j
            self.emissions_g += row.energy_j * self.g_per_joule
        self._taken_s = time.monotonic()

    def take_overhead(self, overhead: Overhead) -> None:
        """A time that did not go into training steps; on any thread."""
        job_id, fence = self._claim.job_id, self._claim.fence
        row = OverheadRecord(
            kind=overhead.kind, started_at=overhead.started_at, ended_at=overhead.ended_at
        )
        self._reporter.post(
            lambda session, _now: service.record_overhead(session, job_id, fence, row)
        )

    def warn(self, sentence: str) -> None:
        self._scribe.event(sentence, level="warn", data={"kind": "meter"})

    def _slots(self, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        try:
            slots = self._signal.series(self._zone, start, end)
        except GreentuneError as error:
            if not self._is_signal_missing:
                sentence = f"No carbon intensity for {self._zone}: {error}"
                self._scribe.event(sentence, level="warn", data={"kind": "signal"})
            self._is_signal_missing = True
            return ()
        self._is_signal_missing = False
        return slots


def _record(row: MeteredEnergy) -> EnergyRecord:
    return EnergyRecord(
        device=row.device,
        started_at=row.started_at,
        ended_at=row.ended_at,
        energy_j=row.energy_j,
        method=row.method,
        intensity_g_per_kwh=row.intensity_g_per_kwh,
        intensity_kind=row.intensity_kind,
        intensity_source=row.intensity_source,
        intensity_is_estimated=row.intensity_is_estimated,
        zone=row.zone,
    )
