"""What a finished training hands over: the model, its result files, its emissions, its success."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from core.carbon import report
from core.carbon.account import Baseline, Embodied, EmissionsReport, baseline, full_effort
from core.carbon.energy import Attribution
from core.carbon.history import SELECTION
from core.carbon.intensity import IntensitySignal
from core.errors import GreentuneError
from core.jobs import records, service, store
from core.jobs.records import AttemptRecord, Claim, EnergyRecord, EventRecord, JobRecord, NewFile
from core.objects.folders import put_folder
from core.objects.store import ObjectStore
from core.training.export import EmissionsNote
from core.training.hooks import FitResult
from core.units import SECONDS_PER_HOUR
from worker.ending import Ending
from worker.energy import report_of
from worker.hardware import hardware_name
from worker.prepare import Prepared, export
from worker.reporter import Reporter
from worker.results import metrics_csv, put_archive, put_emissions, put_metrics

_EVENTS_A_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A result that lies in the object store; the row does not know of it yet."""

    result: FitResult
    prefix: str
    n_bytes: int
    archive: NewFile


@dataclass(frozen=True, slots=True, kw_only=True)
class _Story:
    """The job so far, all attempts."""

    job: JobRecord
    attempts: tuple[AttemptRecord, ...]
    energy: tuple[EnergyRecord, ...]
    selections: tuple[EventRecord, ...]
    now: datetime

    @property
    def active(self) -> timedelta:
        return sum(((a.ended_at or self.now) - a.started_at for a in self.attempts), timedelta(0))


class Delivery:
    """Of one claimed job.

    Args:
        zone: whose grid feeds this host.
        pue: power usage effectiveness of its building.
        embodied_g_per_hour: the host's own footprint; None: not known.
        attribution: whose energy the meter counts.
    """

    def __init__(
        self,
        claim: Claim,
        reporter: Reporter,
        objects: ObjectStore,
        *,
        signal: IntensitySignal,
        zone: str,
        pue: float,
        embodied_g_per_hour: float | None,
        attribution: Attribution,
    ) -> None:
        self._claim = claim
        self._reporter = reporter
        self._objects = objects
        self._signal = signal
        self._zone = zone
        self._pue = pue
        self._embodied_g_per_hour = embodied_g_per_hour
        self._attribution: Attribution = attribution

    def deliver(
        self,
        prepared: Prepared,
        result: FitResult,
        scratch: Path,
        *,
        check: Callable[[], None],
    ) -> Trained:
        """Export the model and store it as a folder and as one archive.

        Each attempt stores under a prefix of its own: one that lost its lease cannot touch what its
        successor has delivered.

        Args:
            check: raises if the job must not go on.

        Raises:
            StorageUnavailable: the object store or this host's disk does not take it.
        """
        check()
        name = self._claim.job.model_name
        folder = export(
            prepared,
            scratch / "result" / "model",
            result,
            name=name,
            emissions=self._note(self._report(self._story(), result)[0]),
        )
        check()
        prefix = f"jobs/{self._claim.job_id}/result/{self._claim.fence}/model"
        stored = put_folder(self._objects, prefix, folder)
        check()
        archive = put_archive(self._objects, folder, name.replace(":", "-"))
        return Trained(result=result, prefix=prefix, n_bytes=stored.n_bytes, archive=archive)

    def success(self, trained: Trained) -> Ending:
        """Account for all energy up to here; what is returned makes the result known.

        Raises:
            StorageUnavailable: the object store does not take the small files.
            LeaseLost, Unavailable: as `Reporter.call`.
        """
        claim, story = self._claim, self._story()
        emissions, against = self._report(story, trained.result)
        files = [
            put_metrics(self._objects, metrics_csv(self._events())),
            put_emissions(self._objects, report.to_dict(emissions)),
            trained.archive,
        ]

        def succeed(session: Session, now: datetime) -> JobRecord:
            if against is not None:
                service.set_baseline(
                    session,
                    claim.job_id,
                    claim.fence,
                    records.Baseline(
                        kind=against.kind,
                        energy_j=against.effort.energy_j,
                        emissions_g=against.emissions_g,
                    ),
                )
            return service.succeed(
                session,
                claim.job_id,
                claim.fence,
                model_prefix=trained.prefix,
                model_bytes=trained.n_bytes,
                result_files=files,
                now=now,
            )

        return succeed

    def _story(self) -> _Story:
        """After all that was said before has been written."""
        claim = self._claim

        def read(session: Session, now: datetime) -> _Story:
            return _Story(
                job=store.get_job(session, claim.tenant, claim.job_id),
                attempts=store.list_attempts(session, claim.job_id),
                energy=store.list_energy(session, claim.job_id),
                selections=store.list_remarks(session, claim.job_id, SELECTION),
                now=now,
            )

        return self._reporter.call(read)

    def _events(self) -> list[EventRecord]:
        """Newest first."""
        claim = self._claim

        def read(session: Session, _now: datetime) -> list[EventRecord]:
            events: list[EventRecord] = []
            while True:
                page = store.list_events(
                    session,
                    claim.tenant,
                    claim.job_id,
                    after=events[-1].id if events else None,
                    limit=_EVENTS_A_PAGE,
                )
                events.extend(page.items)
                if not page.has_more:
                    return events

        return self._reporter.call(read)

    def _report(self, story: _Story, result: FitResult) -> tuple[EmissionsReport, Baseline | None]:
        against = self._baseline(story, result)
        emissions = report_of(
            story.job,
            story.attempts,
            story.energy,
            story.selections,
            zone=self._zone,
            pue=self._pue,
            attribution=self._attribution,
            against=against,
            embodied=self._embodied(story),
        )
        return emissions, against

    def _embodied(self, story: _Story) -> Embodied | None:
        if self._embodied_g_per_hour is None:
            return None
        hours = story.active.total_seconds() / SECONDS_PER_HOUR
        return Embodied(g_per_hour=self._embodied_g_per_hour, hours=hours)

    def _baseline(self, story: _Story, result: FitResult) -> Baseline | None:
        """Full fine-tuning started at submission; None where nothing is known to scale from."""
        energy_j = math.fsum(row.energy_j for row in story.energy)
        if not (energy_j and result.flops):
            return None
        effort = full_effort(
            energy_j=energy_j,
            active_s=story.active.total_seconds(),
            spent_flops=result.flops,
            full_flops=result.full_flops,
        )
        start = story.job.created_at
        # at least one slot, whatever the length
        end = start + timedelta(seconds=max(effort.duration_s, 1.0))
        try:
            slots = self._signal.series(self._zone, start, end)
        except GreentuneError:
            return None
        return baseline(effort, submitted_at=start, slots=slots, pue=self._pue)

    def _note(self, emissions: EmissionsReport) -> EmissionsNote:
        """For the model card: up to the last step, as the folder cannot tell of its own upload."""
        entry = report.model_card_entry(emissions, hardware=hardware_name())
        return EmissionsNote(
            emissions_g=emissions.total.emissions_g,
            energy_j=emissions.total.energy_j,
            source=entry["source"],
            zone=entry["geographical_location"],
            hardware=entry["hardware_used"],
        )
