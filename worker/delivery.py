"""What a finished training hands over: the model, its result files, its emissions, its success."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from core.carbon import report
from core.carbon.account import EmissionsReport
from core.carbon.compose import JobFacts, compose
from core.carbon.intensity import IntensitySignal
from core.jobs import ids, records, service, store
from core.jobs.records import Claim, EventRecord, JobRecord, NewFile
from core.objects.folders import folder_keys, put_folder
from core.objects.store import ObjectStore
from core.training.export import EmissionsNote
from core.training.hooks import FitResult
from worker.ending import Ending
from worker.hardware import hardware_name
from worker.prepare import Prepared, export
from worker.reporter import Reporter
from worker.results import file_key, metrics_csv, put_archive, put_emissions, put_metrics

_EVENTS_A_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A result that lies in the object store; the row does not know of it yet."""

    result: FitResult
    prefix: str
    n_bytes: int
    archive: NewFile


class Delivery:
    """Of one claimed job.

    Args:
        signal: for the baseline.
        pue: power usage effectiveness of its building.
        embodied_g_per_hour: the host's own footprint; None: not known.
    """

    def __init__(
        self,
        claim: Claim,
        reporter: Reporter,
        objects: ObjectStore,
        *,
        signal: IntensitySignal,
        pue: float,
        embodied_g_per_hour: float | None,
    ) -> None:
        self._claim = claim
        self._reporter = reporter
        self._objects = objects
        self._signal = signal
        self._pue = pue
        self._embodied_g_per_hour = embodied_g_per_hour

    def deliver(
        self,
        prepared: Prepared,
        result: FitResult,
        scratch: Path,
        *,
        check: Callable[[], None],
    ) -> Trained:
        """Export the model and store it as a folder and as one archive.

        Each attempt stores under keys of its own: one that lost its lease cannot touch what its
        successor has delivered. They are announced first, so that nothing stays of one that breaks
        off.

        Args:
            check: raises if the job must not go on.

        Raises:
            StorageUnavailable: the object store or this host's disk does not take it.
            LeaseLost, Unavailable: as `Reporter.call`.
        """
        check()
        name = self._claim.job.model_name
        folder = export(
            prepared,
            scratch / "result" / "model",
            result,
            name=name,
            emissions=_note(self._report()),
        )
        check()
        prefix = f"jobs/{self._claim.job_id}/result/{self._claim.fence}/model"
        archive_id = ids.new_id(ids.FILE)
        self._announce([*folder_keys(prefix, folder), file_key(archive_id)])
        stored = put_folder(self._objects, prefix, folder)
        check()
        archive = put_archive(self._objects, archive_id, folder, name.replace(":", "-"))
        return Trained(result=result, prefix=prefix, n_bytes=stored.n_bytes, archive=archive)

    def success(self, trained: Trained) -> Ending:
        """Account for all energy up to here; what is returned makes the result known.

        Raises:
            StorageUnavailable: the object store does not take the small files.
            LeaseLost, Unavailable: as `Reporter.call`.
        """
        claim, emissions = self._claim, self._report()
        against = emissions.baseline
        metrics_id, emissions_id = ids.new_id(ids.FILE), ids.new_id(ids.FILE)
        self._announce([file_key(metrics_id), file_key(emissions_id)])
        files = [
            put_metrics(self._objects, metrics_id, metrics_csv(self._events())),
            put_emissions(self._objects, emissions_id, report.to_dict(emissions)),
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

    def _announce(self, keys: Collection[str]) -> None:
        job_id, fence = self._claim.job_id, self._claim.fence
        self._reporter.call(
            lambda session, _now: service.announce_objects(session, job_id, fence, keys)
        )

    def _report(self) -> EmissionsReport:
        """After all that was said before has been written."""
        claim = self._claim

        def read(session: Session, _now: datetime) -> EmissionsReport:
            return compose(
                JobFacts.of(
                    store.get_job(session, claim.tenant, claim.job_id),
                    pue=self._pue,
                    embodied_g_per_hour=self._embodied_g_per_hour,
                ),
                store.list_energy(session, claim.job_id),
                store.list_attempts(session, claim.job_id),
                store.list_overheads(session, claim.job_id),
                signal=self._signal,
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


def _note(emissions: EmissionsReport) -> EmissionsNote:
    """For the model card: up to the last step, as the folder cannot tell of its own upload."""
    entry = report.model_card_entry(emissions, hardware=hardware_name())
    return EmissionsNote(
        emissions_g=emissions.total.emissions_g,
        energy_j=emissions.total.energy_j,
        source=entry["source"],
        zone=entry["geographical_location"],
        hardware=entry["hardware_used"],
    )
