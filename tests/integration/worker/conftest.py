"""A migrated database per test, jobs in it, and supervisors whose trainings are small scripts."""

from __future__ import annotations

import signal as signals
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

import migrations
from core.errors import Unavailable
from core.jobs import ids, service, store
from core.jobs.database import Database, now, open_database
from core.jobs.records import Claim, EventRecord, JobRecord, NewFile
from core.spec import JobSpec
from worker.supervisor import Supervisor, Terms

if TYPE_CHECKING:
    from core.training.hooks import Hook
    from tests.integration.worker.desk import Desk
    from tests.integration.worker.planned import Make, Planned

TENANT = "acme"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    migrations.upgrade(database_url)
    database = open_database(database_url)
    yield database
    database.dispose()


class Flaky:
    """A database that can be taken away, before a transaction or at its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_away = False
        self.refuses_commits = False
        self.n_refused = 0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        self._refuse_if(self.is_away)
        with self._database.transaction() as session:
            yield session
            self._refuse_if(self.refuses_commits)

    @contextmanager
    def read(self) -> Iterator[Session]:
        self._refuse_if(self.is_away)
        with self._database.read() as session:
            yield session

    def _refuse_if(self, condition: bool) -> None:
        if condition:
            self.n_refused += 1
            raise Unavailable("away")


@pytest.fixture
def flaky(database: Database) -> Flaky:
    return Flaky(database)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


class Jobs:
    """What a caller does and sees."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self) -> str:
        with self._database.transaction() as session:
            moment = now(session)
            file_id = ids.new_id(ids.FILE)
            file = NewFile(
                id=file_id,
                filename="train.jsonl",
                purpose="fine-tune",
                n_bytes=1,
                sha256="0" * 64,
                object_key=f"files/{file_id}",
            )
            service.create_file(session, tenant=TENANT, file=file, now=moment)
            spec = JobSpec(model="m", training_file=file_id)
            return service.submit(session, tenant=TENANT, spec=spec, now=moment).id

    def get(self, job_id: str) -> JobRecord:
        with self._database.read() as session:
            return store.get_job(session, TENANT, job_id)

    def events(self, job_id: str) -> list[EventRecord]:
        """Oldest first."""
        with self._database.read() as session:
            page = store.list_events(session, TENANT, job_id, limit=1000)
        return list(reversed(page.items))

    def outcomes(self, job_id: str) -> list[str | None]:
        with self._database.read() as session:
            return [attempt.outcome for attempt in store.list_attempts(session, job_id)]

    def cancel(self, job_id: str) -> JobRecord:
        with self._database.transaction() as session:
            return service.cancel(session, tenant=TENANT, job_id=job_id, now=now(session))


# What every stand-in for a training begins with: the real leash, and the job's own claim.
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from worker.child import ChildExit, end_with_parent
end_with_parent()
job_id, fence, url, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
from core.jobs import service
from core.jobs.database import now, open_database
from core.jobs.records import Hyperparameters
database = open_database(url)
def do(use_case, **arguments):
    with database.transaction() as session:
        return use_case(session, job_id, fence, now=now(session), **arguments)
def mark(text):
    with (folder / "marks").open("a") as file:
        file.write(f"{fence} {os.getpid()} {text}\\n")
mark("begin")
"""


@pytest.fixture
def training(database_url: str, tmp_path: Path) -> Callable[[str], Callable[[Claim], list[str]]]:
    """``training(body)``: a supervisor's command that runs ``body`` after `PREAMBLE`."""

    def build(body: str) -> Callable[[Claim], list[str]]:
        script = tmp_path / "training.py"
        script.write_text(PREAMBLE + body)
        root = str(Path(__file__).resolve().parents[3])
        boot = f"import sys; sys.path.insert(0, {root!r}); exec(open(sys.argv.pop(1)).read())"
        where = [database_url, str(tmp_path)]
        return lambda claim: [
            sys.executable, "-c", boot, str(script), claim.job_id, str(claim.fence), *where
        ]  # fmt: skip

    return build


@pytest.fixture
def marks(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """What the trainings said so far: [fence, process, text] each."""

    def read() -> list[list[str]]:
        path = tmp_path / "marks"
        return (
            [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
        )

    return read


Start = Callable[..., Supervisor]


@pytest.fixture
def start(flaky: Flaky) -> Iterator[Start]:
    """Start supervisors; whatever they still run is killed after the test."""
    with ExitStack() as stack:

        def begin(command: Callable[[Claim], list[str]], **changes: float) -> Supervisor:
            return stack.enter_context(running(flaky, command, **changes))

        yield begin


@contextmanager
def running(
    database: Flaky, command: Callable[[Claim], list[str]], **changes: float
) -> Iterator[Supervisor]:
    terms = {
        "lease_s": 30.0,
        "heartbeat_s": 0.1,
        "poll_s": 0.1,
        "max_attempts": 3,
        "outage_grace_s": 1.0,
        "stop_grace_s": 10.0,
        "cancel_grace_s": 5.0,
        **changes,
    }
    slots = int(terms.pop("slots", 1))
    supervisor = Supervisor(
        database=database, terms=Terms(**terms), command=command, name="here", slots=slots
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.drain()
        supervisor.hurry()
        supervisor.join()


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """``make(hours, step_s)``: a desk whose grid has these hours, c(lean) or d(irty)."""
    # imported here: tests without a plan must not pay for torch, and these import from this file
    from tests.integration.worker.planned import Pace, Planned
    from worker import runner
    from worker.calibration import Calibration

    before = signals.getsignal(signals.SIGTERM)
    desks: list[Planned] = []

    def build(hours: str, step_s: float) -> Planned:
        home = tmp_path / str(len(desks))
        home.mkdir()
        desk = Planned(home, tiny_model, hours)
        desks.append(desk)
        real = runner.train

        def train(prepared: Any, *, hooks: list[Hook], **rest: Any) -> Any:
            calibration = next(h for h in hooks if isinstance(h, Calibration))
            return real(prepared, hooks=[Pace(desk, step_s, calibration), *hooks], **rest)

        monkeypatch.setattr(runner, "train", train)
        return desk

    yield build
    for desk in desks:
        desk.database.dispose()
    signals.signal(signals.SIGTERM, before)


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Iterator[Desk]:
    """A training takes SIGTERM's handler: it is given back."""
    from tests.integration.worker.desk import Desk

    before = signals.getsignal(signals.SIGTERM)
    desk = Desk(tmp_path, tiny_model)
    yield desk
    desk.database.dispose()
    signals.signal(signals.SIGTERM, before)
