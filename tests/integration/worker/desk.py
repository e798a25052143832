"""One worker's world without processes: what a job comes to, run inside the test."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import migrations
from core.carbon.static import StaticSignal
from core.data.validation import DataLimits
from core.jobs import ids, service, store
from core.jobs.database import Database, now, open_database
from core.jobs.records import Claim, EventRecord, JobRecord, NewFile
from core.objects.local import LocalStore
from core.spec import EvalOptions, GreenOptions, JobSpec
from core.training_options import TrainingOptions
from tests.integration.worker.conftest import TENANT
from worker.reporter import Reporter
from worker.runner import Training
from worker.world import World


class Desk:
    """One worker's world on SQLite and a folder, and the caller on the other side."""

    def __init__(self, home: Path, model: Path) -> None:
        url = f"sqlite:///{home / 'jobs.db'}"
        migrations.upgrade(url)
        self.database: Database = open_database(url)
        self.objects = LocalStore(home / "objects")
        self.world = World(
            database=self.database,
            objects=self.objects,
            signal=StaticSignal(),
            zone=None,
            pue=1.2,
            meter_interval_s=0.2,
            attribution="machine",
            models={"tiny": str(model)},
            limits=DataLimits(),
            home=home,
            patience_s=5.0,
            max_attempts=3,
        )

    def submit(
        self,
        lines: bytes,
        *,
        model: str = "tiny",
        validation: bytes | None = None,
        evaluation: EvalOptions | None = None,
        **changes: Any,
    ) -> str:
        wishes = changes.pop("green", {})
        green = GreenOptions(**({"zone": "FR", "rho": changes.pop("rho", 0.7)} | wishes))
        options = {"n_epochs": 1, "batch_size": 4} | changes
        spec = JobSpec(
            model=model,
            training_file=self.upload(lines),
            validation_file=None if validation is None else self.upload(validation),
            training=TrainingOptions(**options),
            green=green,
            eval=evaluation,
        )
        with self.database.transaction() as session:
            return service.submit(session, tenant=TENANT, spec=spec, now=now(session)).id

    def upload(self, lines: bytes) -> str:
        file_id = ids.new_id(ids.FILE)
        stored = self.objects.put(f"files/{file_id}", [lines])
        file = NewFile(
            id=file_id,
            filename="data.jsonl",
            purpose="fine-tune",
            n_bytes=len(lines),
            sha256=hashlib.sha256(lines).hexdigest(),
            object_key=stored.key,
        )
        with self.database.transaction() as session:
            service.create_file(session, tenant=TENANT, file=file, now=now(session))
        return file_id

    def claim(self, job_id: str) -> Claim:
        with self.database.transaction() as session:
            claim = service.claim(
                session, worker="w", now=now(session), lease_s=60, max_attempts=3, job_id=job_id
            )
        assert claim is not None
        return claim

    def carry_out(self, job_id: str) -> JobRecord:
        claim = self.claim(job_id)
        with Reporter(
            self.database, tenant=TENANT, job_id=job_id, fence=claim.fence, patience_s=5.0
        ) as reporter:
            Training(claim, self.world, reporter).run()
        return self.job(job_id)

    def job(self, job_id: str) -> JobRecord:
        with self.database.read() as session:
            return store.get_job(session, TENANT, job_id)

    def events(self, job_id: str) -> list[EventRecord]:
        with self.database.read() as session:
            return list(store.list_events(session, TENANT, job_id, limit=10_000).items)[::-1]

    def result_file(self, file_id: str) -> bytes:
        with self.database.read() as session:
            record = store.get_file(session, TENANT, file_id, now=now(session))
        return b"".join(self.objects.get(record.object_key))
