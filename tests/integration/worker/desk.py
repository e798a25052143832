"""One worker's world without processes: what a job comes to, run inside the test."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import migrations
from core.carbon.static import StaticSignal
from core.data.validation import DataLimits
from core.jobs import service, store
from core.jobs.database import Database, now, open_database
from core.jobs.records import Claim, EventRecord, JobRecord
from core.objects.local import LocalStore
from core.spec import EvalOptions, GreenOptions, JobSpec
from core.training_options import TrainingOptions
from tests.fixtures.stored_file import store_file
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
        return store_file(self.database, self.objects, lines, tenant=TENANT)

    def claim(self, job_id: str, *, moment: datetime | None = None, lease_s: float = 60) -> Claim:
        """``moment`` None: now, by the database."""
        with self.database.transaction() as session:
            claim = service.claim(
                session,
                worker="w",
                now=moment or now(session),
                lease_s=lease_s,
                max_attempts=3,
                job_id=job_id,
            )
        assert claim is not None
        return claim

    def carry_out(self, job_id: str) -> JobRecord:
        self.train(self.claim(job_id))
        return self.job(job_id)

    def train(self, claim: Claim) -> None:
        with self.reporter(claim) as reporter:
            Training(claim, self.world, reporter).run()

    def reporter(self, claim: Claim) -> Reporter:
        who = {"tenant": TENANT, "job_id": claim.job_id, "fence": claim.fence}
        return Reporter(self.database, **who, patience_s=5.0)

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
