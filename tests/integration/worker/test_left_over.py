"""Attempts that are killed while they store their files leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store as Bucket
from sqlalchemy import select

import migrations
from core.jobs import service
from core.jobs.database import Database, open_database
from core.jobs.tables import Checkpoint, File, Job, Model
from core.objects.folders import MANIFEST, read_manifest
from core.objects.opening import open_store
from core.objects.store import ObjectStore
from core.spec import GreenOptions, JobSpec
from core.training.checkpoint import WEIGHT_FILES
from core.training_options import TrainingOptions
from tests.fixtures.services import S3Bucket
from tests.fixtures.stored_file import store_file
from tests.integration.worker.attempts import later
from worker.tidying import tidy

ROOT = Path(__file__).resolve().parents[3]
TENANT = "acme"
#: keys, and when the attempt dies
POINTS = [
    (r"checkpoints/3/.*optimizer", "after"),
    (rf"checkpoints/6/.*{MANIFEST}", "after"),
    (r"result/.*\.safetensors", "before"),
    (r"^files/", "after"),
]


class Place:
    """A database and an object store, as the worker finds them and as the test looks into them."""

    def __init__(self, url: str, environment: dict[str, str], keys: Callable[[], set[str]]) -> None:
        migrations.upgrade(url)
        self.url = url
        self.database: Database = open_database(url)
        self.environment = environment
        self.keys = keys
        self.objects: ObjectStore = open_store(
            environment["GREENTUNE_OBJECTS_URL"],
            **{
                name: environment[f"GREENTUNE_{name.upper()}"]
                for name in ("s3_endpoint", "s3_access_key_id", "s3_secret_access_key")
                if f"GREENTUNE_{name.upper()}" in environment
            },
        )

    def submit(self, lines: bytes) -> str:
        spec = JobSpec(
            model="tiny",
            training_file=store_file(self.database, self.objects, lines, tenant=TENANT),
            training=TrainingOptions(n_epochs=2, batch_size=4),
            green=GreenOptions(rho=0.7, zone="FR"),
        )
        with self.database.transaction() as session:
            return service.submit(session, tenant=TENANT, spec=spec, now=later(0)).id

    def named(self) -> set[str]:
        """Keys of all objects that a row names and somebody may ask for."""
        with self.database.read() as session:
            files = set(session.scalars(select(File.object_key)))
            checkpoints = session.scalars(select(Checkpoint.prefix)).all()
            models = session.scalars(select(Model.prefix)).all()
        folders = {f"{prefix}/{MANIFEST}" for prefix in (*checkpoints, *models)}
        weights = {f"{prefix}/{name}" for prefix in checkpoints for name in WEIGHT_FILES}
        models_files = {
            f"{prefix}/{file.name}"
            for prefix in models
            for file in read_manifest(self.objects, prefix).files
        }
        return files | folders | weights | models_files


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "objects"

    def keys() -> set[str]:
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    environment = {"GREENTUNE_OBJECTS_URL": root.as_uri()}
    place = Place(f"sqlite:///{tmp_path / 'jobs.db'}", environment, keys)
    yield place
    place.database.dispose()


@pytest.fixture
def remote(postgres_url: str, s3_bucket: S3Bucket) -> Iterator[Place]:
    name, _, prefix = s3_bucket.url.removeprefix("s3://").partition("/")
    bucket = Bucket(
        name,
        prefix=prefix,
        region=s3_bucket.region,
        endpoint=s3_bucket.endpoint,
        access_key_id=s3_bucket.access_key_id,
        secret_access_key=s3_bucket.secret_access_key,
        client_options={"allow_http": True},
    )

    def keys() -> set[str]:
        return {found["path"] for page in obstore.list(bucket) for found in page}

    environment = {
        "GREENTUNE_OBJECTS_URL": s3_bucket.url,
        "GREENTUNE_S3_ENDPOINT": s3_bucket.endpoint,
        "GREENTUNE_S3_ACCESS_KEY_ID": s3_bucket.access_key_id,
        "GREENTUNE_S3_SECRET_ACCESS_KEY": s3_bucket.secret_access_key,
    }
    place = Place(postgres_url, environment, keys)
    yield place
    place.database.dispose()


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.mark.timeout(600)
def test_of_attempts_that_were_killed_in_an_upload_nothing_stays(
    place: Place, tiny_model: Path, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    job_id = place.submit(chat_lines(12))
    script = [sys.executable, "-m", "tests.integration.worker.attempts", str(tmp_path / "home")]
    done = subprocess.run(
        [*script, str(tiny_model), place.url, job_id, json.dumps(POINTS)],
        cwd=ROOT,
        env={**os.environ, **place.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    ends = [int(line) for line in done.stdout.split()]
    assert ends == [signal.SIGKILL] * len(POINTS) + [0], done.stderr
    with place.database.read() as session:
        assert session.scalars(select(Job.status)).one() == "succeeded"
        assert sorted(session.scalars(select(Checkpoint.step))) == [3, 6]
    assert place.keys() > place.named()
    with place.database.transaction() as session:
        service.sweep(session, now=later(len(POINTS) + 1), max_attempts=99)
    tidy(place.database, place.objects)
    assert place.keys() == place.named()
