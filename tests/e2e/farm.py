"""Real worker processes on a database, a broker and an object store, to be killed and frozen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from celery import Celery

from core.jobs import service, store
from core.jobs.database import now, open_database
from core.jobs.records import CheckpointRecord, EventRecord, JobRecord
from core.objects.folders import get_folder
from core.objects.opening import open_store
from core.spec import GreenOptions, JobSpec
from core.training_options import TrainingOptions
from core.wire import JOBS_QUEUE, RUN_JOB
from tests.fixtures.stored_file import store_file

ROOT = Path(__file__).resolve().parents[2]
TENANT = "acme"
MODEL = "tiny"


class Farm:
    """A caller's view of the service, without the API, and an operator's of its workers."""

    def __init__(self, home: Path, *, database_url: str, broker_url: str, model: Path) -> None:
        self.home = home
        self.broker_url = broker_url
        self.database = open_database(database_url)
        self.objects = open_store((home / "objects").as_uri())
        self._environment = {
            **os.environ,
            "GREENTUNE_HOME": str(home),
            "GREENTUNE_DATABASE_URL": database_url,
            "GREENTUNE_BROKER_URL": broker_url,
            "GREENTUNE_MODELS": f"{MODEL}={model}",
            "GREENTUNE_ZONE": "FR",
            "GREENTUNE_LEASE_S": "3",
            "GREENTUNE_HEARTBEAT_S": "0.5",
            "GREENTUNE_SWEEP_EVERY_S": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    def worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start one; ``settings`` are ``GREENTUNE_...`` without the prefix, in lower case."""
        changed = {f"GREENTUNE_{key.upper()}": value for key, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "worker"],
            env={**self._environment, **changed},
            cwd=ROOT,
        )
        self._workers.append(process)
        return process

    def stop(self) -> None:
        for process in self._workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()
        self.database.dispose()

    def submit(self, lines: bytes, **training: float) -> str:
        options = {"n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3} | training
        spec = JobSpec(
            model=MODEL,
            training_file=store_file(self.database, self.objects, lines, tenant=TENANT),
            seed=3,
            training=TrainingOptions(**options),  # type: ignore[arg-type]
            green=GreenOptions(rho=0.7, zone="FR"),
        )
        with self.database.transaction() as session:
            return service.submit(session, tenant=TENANT, spec=spec, now=now(session)).id

    def nudge(self, job_id: str) -> None:
        with Celery("test", broker=self.broker_url, set_as_current=False) as sender:
            sender.send_task(RUN_JOB, args=[job_id], queue=JOBS_QUEUE)

    def job(self, job_id: str) -> JobRecord:
        with self.database.read() as session:
            return store.get_job(session, TENANT, job_id)

    def events(self, job_id: str) -> list[EventRecord]:
        """Oldest first."""
        with self.database.read() as session:
            page = store.list_events(session, TENANT, job_id, limit=100_000)
        return list(reversed(page.items))

    def checkpoints(self, job_id: str) -> tuple[CheckpointRecord, ...]:
        with self.database.read() as session:
            return store.list_checkpoints(session, TENANT, job_id, limit=1000).items

    def outcomes(self, job_id: str) -> list[str | None]:
        with self.database.read() as session:
            return [attempt.outcome for attempt in store.list_attempts(session, job_id)]

    def cancel(self, job_id: str) -> None:
        with self.database.transaction() as session:
            service.cancel(session, tenant=TENANT, job_id=job_id, now=now(session))

    def pause(self, job_id: str) -> None:
        with self.database.transaction() as session:
            service.pause(session, tenant=TENANT, job_id=job_id, now=now(session))

    def resume(self, job_id: str) -> None:
        with self.database.transaction() as session:
            service.resume(session, tenant=TENANT, job_id=job_id, now=now(session))

    def result(self, job_id: str, folder: Path) -> Path:
        """The tuned model's folder, fetched and verified."""
        model = self.job(job_id).fine_tuned_model
        assert model is not None
        with self.database.read() as session:
            record = store.get_model(session, TENANT, model)
        get_folder(self.objects, record.prefix, folder)
        return folder

    def trainings(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(worker.pid).children(recursive=True)
            if "train-child" in child.cmdline()
        ]


def until(condition: Callable[[], object], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
