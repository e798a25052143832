"""The use cases as the tests call them: one transaction each, on a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.jobs import ids, service
from core.jobs.database import Database
from core.jobs.records import (
    Claim,
    EnergyRecord,
    Hyperparameters,
    JobRecord,
    NewCheckpoint,
    NewFile,
)
from core.spec import JobSpec

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE_S = 60.0
MAX_ATTEMPTS = 3
HYPERPARAMETERS = Hyperparameters(n_epochs=2, batch_size=4, learning_rate=2e-5)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@dataclass
class Engine:
    database: Database
    now: datetime = NOW
    tenant: str = "acme"

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def upload(
        self, tenant: str | None = None, *, most_bytes: int | None = None, **changes: object
    ) -> str:
        file_id = ids.new_id(ids.FILE)
        values = {
            "id": file_id,
            "filename": "train.jsonl",
            "purpose": "fine-tune",
            "n_bytes": 10,
            "sha256": "0" * 64,
            "object_key": f"files/{file_id}",
            "status": "processed",
        }
        with self.database.transaction() as session:
            service.create_file(
                session,
                tenant=tenant or self.tenant,
                file=NewFile(**(values | changes)),
                most_bytes=most_bytes,
                now=self.now,
            )
        return file_id

    def submit(
        self, spec: JobSpec | None = None, *, tenant: str | None = None, **changes: object
    ) -> JobRecord:
        tenant = tenant or self.tenant
        if spec is None:
            spec = JobSpec(model="org/tiny", training_file=self.upload(tenant), suffix="mine")
        with self.database.transaction() as session:
            return service.submit(session, tenant=tenant, spec=spec, now=self.now, **changes)

    def claim(self, worker: str = "w1", job_id: str | None = None) -> Claim | None:
        with self.database.transaction() as session:
            return service.claim(
                session,
                worker=worker,
                now=self.now,
                lease_s=LEASE_S,
                max_attempts=MAX_ATTEMPTS,
                job_id=job_id,
            )

    def running(self, worker: str = "w1", job_id: str | None = None) -> Claim:
        claim = self.claim(worker, job_id)
        assert claim is not None
        self.do(service.validated, claim)
        self.do(service.started, claim, hyperparameters=HYPERPARAMETERS)
        return claim

    def do(self, use_case, claim: Claim, *args: object, timeless: bool = False, **words: object):
        """A worker's use case under ``claim``."""
        if not timeless:
            words["now"] = self.now
        with self.database.transaction() as session:
            return use_case(session, claim.job_id, claim.fence, *args, **words)

    def ask(self, use_case, job_id: str, tenant: str | None = None) -> JobRecord:
        """A caller's use case."""
        with self.database.transaction() as session:
            return use_case(session, tenant=tenant or self.tenant, job_id=job_id, now=self.now)

    def sweep(self, **words: object) -> list[str]:
        with self.database.transaction() as session:
            return service.sweep(session, now=self.now, max_attempts=MAX_ATTEMPTS, **words)

    def read(self, query, *args: object, **words: object):
        with self.database.read() as session:
            return query(session, *args, **words)

    def succeed(self, claim: Claim, n_files: int = 1) -> JobRecord:
        files = [result_file(number) for number in range(n_files)]
        return self.do(
            service.succeed,
            claim,
            model_prefix=f"jobs/{claim.job_id}/result",
            model_bytes=100,
            result_files=files,
        )


def result_file(number: int) -> NewFile:
    file_id = ids.new_id(ids.FILE)
    return NewFile(
        id=file_id,
        filename=f"result_{number}.csv",
        purpose="fine-tune-results",
        n_bytes=5,
        sha256="1" * 64,
        object_key=f"files/{file_id}",
        status="processed",
    )


def checkpoint(step: int, *, is_milestone: bool = True) -> NewCheckpoint:
    return NewCheckpoint(
        step=step,
        prefix=f"jobs/x/checkpoints/{step}",
        n_bytes=7,
        metrics={"train_loss": 1.5},
        is_milestone=is_milestone,
    )


def sample(second: float, energy_j: float = 10.0, **changes: object) -> EnergyRecord:
    values = {
        "device": "gpu:0",
        "started_at": at(second),
        "ended_at": at(second + 5),
        "energy_j": energy_j,
        "method": "nvml_counter",
    }
    return EnergyRecord(**(values | changes))
