"""One claimed job, one training process: what becomes of the job however the process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from core.errors import LeaseLost
from core.jobs import service, store
from core.jobs.database import Database, now
from core.jobs.lifecycle import Status

one_database_will_do = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ROOT = Path(__file__).resolve().parents[3]
SUCCEED = """
do(service.validated)
do(service.started, hyperparameters=Hyperparameters(n_epochs=1, batch_size=1, learning_rate=1e-4))
do(service.succeed, model_prefix="p", model_bytes=1, result_files=[])
mark("succeeded")
"""
# stops at a checkpoint when asked, as the real training does
WAIT_FOR_SIGTERM = """
signal.signal(signal.SIGTERM, lambda *_: (mark("asked to stop"), sys.exit(ChildExit.REPORTED)))
mark("waiting")
time.sleep(60)
"""


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def texts(marks) -> list[str]:
    return [text for _, _, text in marks()]


def test_a_job_runs_once_however_often_it_is_nudged(jobs, start, training, marks):
    supervisor = start(training(SUCCEED), slots=2)
    job_id = jobs.submit()
    for _ in range(100):
        supervisor.wake()
    until(lambda: jobs.get(job_id).status.is_terminal)
    assert jobs.get(job_id).status is Status.SUCCEEDED
    assert texts(marks) == ["begin", "succeeded"]
    assert jobs.outcomes(job_id) == ["succeeded"]


@one_database_will_do
def test_one_slot_takes_the_next_job_at_once_and_needs_no_nudge(jobs, start, training):
    job_ids = [jobs.submit() for _ in range(3)]
    start(training(SUCCEED), poll_s=3600.0)
    until(lambda: all(jobs.get(job_id).status is Status.SUCCEEDED for job_id in job_ids))


def test_a_crash_is_tried_again_and_then_given_up(jobs, start, training, marks):
    job_id = jobs.submit()
    start(training("os.kill(os.getpid(), signal.SIGSEGV)"), max_attempts=2)
    until(lambda: jobs.get(job_id).status.is_terminal)
    job = jobs.get(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert texts(marks) == ["begin", "begin"]
    assert any("killed by signal 11" in event.message for event in jobs.events(job_id))


@one_database_will_do
def test_a_training_that_ends_without_a_word_is_a_crash(jobs, start, training):
    job_id = jobs.submit()
    start(training("sys.exit(ChildExit.REPORTED)"), max_attempts=1)
    until(lambda: jobs.get(job_id).status is Status.FAILED)


@one_database_will_do
def test_a_dependency_that_is_down_is_waited_for(jobs, start, training):
    job_id = jobs.submit()
    start(training(f"if fence > 1:\n  exec({SUCCEED!r})\nelse: sys.exit(ChildExit.TRY_LATER)"))
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    assert jobs.outcomes(job_id) == ["transient", "succeeded"]


def test_drain_lets_the_training_checkpoint_and_gives_the_job_back(jobs, start, training, marks):
    job_id = jobs.submit()
    supervisor = start(training(WAIT_FOR_SIGTERM))
    until(lambda: "waiting" in texts(marks))
    supervisor.drain()
    supervisor.join()
    assert texts(marks)[-1] == "asked to stop"
    job = jobs.get(job_id)
    assert (job.lease_until, job.not_before, job.deaths) == (None, None, 0)
    assert jobs.outcomes(job_id) == ["shutdown"]


@one_database_will_do
def test_a_training_that_does_not_stop_is_killed_after_the_grace(jobs, start, training, marks):
    job_id = jobs.submit()
    supervisor = start(
        training("signal.signal(signal.SIGTERM, signal.SIG_IGN); mark('deaf'); time.sleep(60)"),
        stop_grace_s=0.3,
    )
    until(lambda: "deaf" in texts(marks))
    supervisor.drain()
    supervisor.join()
    assert jobs.outcomes(job_id) == ["shutdown"]
    assert not is_alive(int(marks()[-1][1]))


@one_database_will_do
def test_hurry_kills_at_once(jobs, start, training, marks):
    jobs.submit()
    supervisor = start(
        training("signal.signal(signal.SIGTERM, signal.SIG_IGN); mark('deaf'); time.sleep(60)")
    )
    until(lambda: "deaf" in texts(marks))
    supervisor.drain()
    supervisor.hurry()
    supervisor.join()
    assert not is_alive(int(marks()[-1][1]))


@one_database_will_do
def test_a_training_that_hangs_is_cancelled_by_force(jobs, start, training, marks):
    job_id = jobs.submit()
    start(training("mark('hangs'); time.sleep(60)"), cancel_grace_s=0.3)
    until(lambda: "hangs" in texts(marks))
    jobs.cancel(job_id)
    until(lambda: jobs.get(job_id).status is Status.CANCELLED)
    assert not is_alive(int(marks()[-1][1]))


def test_the_lease_is_renewed_while_the_training_lives(jobs, start, training, marks):
    job_id = jobs.submit()
    start(training(f"time.sleep(2.5)\n{SUCCEED}"), lease_s=1.0)
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    assert jobs.outcomes(job_id) == ["succeeded"]


@one_database_will_do
def test_a_database_that_is_away_stops_nothing_before_lease_and_grace_have_ended(
    jobs, start, training, marks, flaky
):
    """Then the training stops at a checkpoint; the job goes on once the database is back."""
    job_id = jobs.submit()
    wait_once = "\n  ".join(("if fence == 1:", *WAIT_FOR_SIGTERM.strip().splitlines()))
    start(training(f"{wait_once}\n{SUCCEED}"), lease_s=1.0, outage_grace_s=1.0)
    until(lambda: "waiting" in texts(marks))
    flaky.is_away, away_since_s = True, time.monotonic()
    until(lambda: "asked to stop" in texts(marks))
    assert time.monotonic() - away_since_s >= 1.8, "a heartbeat may have come just before"
    flaky.is_away = False
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    assert jobs.outcomes(job_id)[-1] == "succeeded"


@one_database_will_do
def test_a_short_outage_of_the_database_is_not_noticed(jobs, start, training, flaky, marks):
    job_id = jobs.submit()
    start(training(f"mark('working'); time.sleep(2)\n{SUCCEED}"), lease_s=1.0, outage_grace_s=9.0)
    until(lambda: "working" in texts(marks))
    flaky.is_away = True
    time.sleep(1.2)
    flaky.is_away = False
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    assert jobs.outcomes(job_id) == ["succeeded"]


def test_a_lost_lease_kills_the_training(jobs, start, training, marks, database: Database):
    """Another worker took the job: whatever the old one runs must go, and it can write nothing."""
    job_id = jobs.submit()
    supervisor = start(training("mark('working'); time.sleep(60)"))
    until(lambda: "working" in texts(marks))
    supervisor._draining.set()  # the successor is not to be this very supervisor

    def is_taken() -> bool:
        """A claim passes over a row that a heartbeat is just writing."""
        with database.transaction() as session:
            a_later_hour = now(session).replace(year=now(session).year + 1)
            claim = service.claim(
                session, worker="other", now=a_later_hour, lease_s=60, max_attempts=3, job_id=job_id
            )
        return claim is not None

    until(is_taken)
    until(lambda: not is_alive(int(marks()[-1][1])))
    job = jobs.get(job_id)
    assert (job.fence, job.worker) == (2, "other")
    with pytest.raises(LeaseLost), database.transaction() as session:
        service.heartbeat(session, job_id, 1, now=now(session), lease_s=60)


SUPERVISOR_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from core.jobs.database import open_database
from worker.supervisor import Supervisor, Terms
terms = Terms(lease_s={lease_s}, heartbeat_s=0.1, poll_s=0.1, max_attempts=9, outage_grace_s=1.0)
database = open_database({url!r}, idle_timeout_s={idle_timeout_s})
Supervisor(database=database, terms=terms, name={name!r}, slots=1,
           command=lambda claim: {command!r} + [claim.job_id, str(claim.fence)] + {where!r}).start()
"""


@pytest.fixture
def supervisor_process(database_url, database, tmp_path):
    """Start a supervisor in a process of its own, where it can be killed or frozen."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(
        training_command, name: str, lease_s: float, idle_timeout_s: float = 60.0
    ) -> subprocess.Popen[bytes]:
        class AnyClaim:
            job_id, fence = "JOB", 0

        command = training_command(AnyClaim)
        cut = command.index("JOB")
        code = SUPERVISOR_SCRIPT.format(
            root=str(ROOT),
            url=database_url,
            lease_s=lease_s,
            idle_timeout_s=idle_timeout_s,
            name=name,
            command=command[:cut],
            where=command[cut + 2 :],
        )
        processes.append(subprocess.Popen([sys.executable, "-c", code]))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_the_training_ends_with_a_supervisor_that_is_killed(
    jobs, training, marks, supervisor_process
):
    """And a new worker finishes the job."""
    job_id = jobs.submit()
    body = f"mark('working')\nif fence == 1: time.sleep(60)\n{SUCCEED}"
    first = supervisor_process(training(body), "first", 1.0)
    until(lambda: "working" in texts(marks))
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: not is_alive(int(marks()[0][1])), timeout_s=5)
    supervisor_process(training(body), "second", 30.0)
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    assert jobs.outcomes(job_id) == ["lease_expired", "succeeded"]


def test_hang_up_alone_ends_a_training(tmp_path):
    """Where the kernel sends no signal, the end of standard input does."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import worker.child, time\n"
        "worker.child.sys = type('s', (), {'platform': 'other', 'stdin': sys.stdin})\n"
        "worker.child.end_with_parent(); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == -signal.SIGKILL


def freeze_between_transactions(process: int, database_url: str) -> None:
    """Frozen while it holds a row's lock, it would hold up its successor until the database's own
    timeout, and this test as long.
    """
    engine = create_engine(database_url.replace("sqlite://", "sqlite+pysqlite://"))
    begin = "BEGIN IMMEDIATE" if engine.name == "sqlite" else "SELECT 1 FROM jobs FOR UPDATE NOWAIT"
    while True:
        os.kill(process, signal.SIGSTOP)
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(begin)
                break
        except OperationalError:
            os.kill(process, signal.SIGCONT)
            time.sleep(0.05)
    engine.dispose()


def test_a_worker_frozen_past_its_lease_cannot_touch_its_successors_job(
    jobs, training, marks, supervisor_process, tmp_path, database_url
):
    """SIGSTOP for supervisor and training, a successor finishes, SIGCONT."""
    job_id = jobs.submit()
    body = (
        "mark('working')\n"
        f"if fence > 1:\n  exec({SUCCEED!r})\n"
        "else:\n"
        "  while not (folder / 'go').exists(): time.sleep(0.05)\n"
        "  try: do(service.fail, code='nan_loss', message='stale')\n"
        "  except Exception as error: mark(type(error).__name__)\n"
        "  else: mark('wrote')\n"
    )
    first = supervisor_process(training(body), "first", 0.6)
    until(lambda: "working" in texts(marks))
    child = int(marks()[0][1])
    # the group leader is frozen first: its supervisor must not notice
    freeze_between_transactions(first.pid, database_url)
    os.kill(child, signal.SIGSTOP)
    supervisor_process(training(body), "second", 30.0)
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED)
    (tmp_path / "go").touch()
    os.kill(child, signal.SIGCONT)
    until(lambda: "LeaseLost" in texts(marks))
    os.kill(first.pid, signal.SIGCONT)
    until(lambda: not is_alive(child))
    time.sleep(0.5)  # a stale write would come now
    assert "wrote" not in texts(marks)
    job = jobs.get(job_id)
    assert (job.status, job.error, job.fence) == (Status.SUCCEEDED, None, 2)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_one_frozen_with_the_jobs_row_locked_lets_go_of_it(
    jobs, training, marks, supervisor_process, database_url
):
    """Claims and sweeps pass over a locked row: the database ends the frozen transaction."""
    job_id = jobs.submit()
    freeze = (
        "try:\n"
        "  with open_database(url, idle_timeout_s=4.0).transaction() as session:\n"
        "    service.append_event(session, job_id, fence, level='info', message='stale',\n"
        "      now=now(session))\n"
        "    mark('holds the row')\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "except Exception as error: mark(type(error).__name__)\n"
        "else: mark('wrote')\n"
    )
    body = f"exec({SUCCEED!r} if fence > 1 else {freeze!r})"
    first = supervisor_process(training(body), "first", 6.0, 4.0)
    until(lambda: "holds the row" in texts(marks))
    first.send_signal(signal.SIGSTOP)
    supervisor_process(training(body), "second", 30.0)
    until(lambda: jobs.get(job_id).status is Status.SUCCEEDED, timeout_s=60)
    os.kill(int(marks()[0][1]), signal.SIGCONT)
    until(lambda: "Unavailable" in texts(marks))
    first.send_signal(signal.SIGCONT)
    assert jobs.outcomes(job_id) == ["lease_expired", "succeeded"]
    assert "stale" not in [event.message for event in jobs.events(job_id)]


@one_database_will_do
def test_presence_is_shown_and_withdrawn(database, start, training):
    supervisor = start(training(SUCCEED))

    def present() -> bool:
        with database.read() as session:
            return bool(store.live_workers(session, now=now(session), within_s=30))

    until(present)
    supervisor.drain()
    supervisor.join()
    assert not present()
