"""The training process's line to the database: order, fence, outages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import Session

from core.errors import InvalidInput, LeaseLost, Unavailable
from core.jobs import service
from core.jobs.database import Database, now
from core.jobs.records import Progress
from tests.integration.worker.conftest import TENANT, Flaky
from tests.integration.worker.test_supervisor import until
from worker import reporter as module
from worker.reporter import Reporter

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_EVERY_S", 0.05)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)


@pytest.fixture
def job_id(jobs, database: Database) -> str:
    job_id = jobs.submit()
    with database.transaction() as session:
        service.claim(session, worker="w", now=now(session), lease_s=60, max_attempts=3)
    return job_id


@pytest.fixture
def reporter(flaky: Flaky, job_id: str) -> Iterator[Reporter]:
    with Reporter(flaky, tenant=TENANT, job_id=job_id, fence=1, patience_s=0.5) as reporter:  # type: ignore[arg-type]
        yield reporter


def say(job_id: str, message: str) -> Callable[..., None]:
    return lambda session, now: service.append_event(
        session, job_id, 1, level="info", message=message, now=now
    )


def said(jobs, job_id: str) -> list[str]:
    return [event.message for event in jobs.events(job_id)][2:]


def test_all_that_was_posted_is_there_in_order_before_a_call_returns(jobs, reporter, job_id):
    for number in range(50):
        reporter.post(say(job_id, str(number)))
    assert reporter.call(lambda _session, _now: "answer") == "answer"
    assert said(jobs, job_id) == [str(number) for number in range(50)]


def test_leaving_writes_what_still_waits(jobs, flaky, job_id):
    with Reporter(flaky, tenant=TENANT, job_id=job_id, fence=1, patience_s=1) as reporter:
        reporter.post(say(job_id, "last words"))
    assert said(jobs, job_id) == ["last words"]


def test_only_the_newest_progress_is_written(jobs, flaky, reporter, job_id):
    flaky.is_away = True
    written = []

    def progress(step: int) -> Callable[..., None]:
        def write(session: Session, _now: object) -> None:
            written.append(step)
            service.record_progress(session, job_id, 1, Progress(step=step))

        return write

    for step in range(1, 6):
        reporter.post(progress(step), replaces="progress")
    flaky.is_away = False
    until(lambda: jobs.get(job_id).progress.step == 5)
    assert written == [5]


@pytest.mark.parametrize("fault", ["is_away", "refuses_commits"])
def test_an_outage_loses_and_doubles_nothing(jobs, flaky, reporter, job_id, fault):
    setattr(flaky, fault, True)
    reporter.post(say(job_id, "one"))
    reporter.post(say(job_id, "two"))
    until(lambda: flaky.n_refused > 2)
    setattr(flaky, fault, False)
    reporter.call(say(job_id, "three"))
    assert said(jobs, job_id) == ["one", "two", "three"]


def test_a_call_gives_up_after_its_patience_and_is_then_not_carried_out(
    jobs, flaky, reporter, job_id
):
    flaky.is_away = True
    with pytest.raises(Unavailable):
        reporter.call(say(job_id, "too late"))
    flaky.is_away = False
    reporter.call(say(job_id, "in time"))
    assert said(jobs, job_id) == ["in time"]


def test_orders_are_seen_soon(jobs, reporter, job_id):
    assert not reporter.orders.cancel
    jobs.cancel(job_id)
    until(lambda: reporter.orders.cancel)


def test_a_lost_fence_silences_all_that_waits(jobs, database, flaky, reporter, job_id):
    flaky.is_away = True
    reporter.post(say(job_id, "stale"))
    with database.transaction() as session:
        later = now(session).replace(year=now(session).year + 1)
        service.claim(session, worker="x", now=later, lease_s=60, max_attempts=3)
    flaky.is_away = False
    until(lambda: reporter.is_lost)
    with pytest.raises(LeaseLost):
        reporter.call(say(job_id, "stale too"))
    assert not any("stale" in message for message in said(jobs, job_id))


def test_a_mistake_of_ours_reaches_the_training(jobs, reporter, job_id):
    done = threading.Event()

    def wrong(_session: Session, _now: object) -> None:
        done.set()
        raise InvalidInput("NaN")

    reporter.post(wrong)
    assert done.wait(10)
    until(lambda: reporter._failure is not None)
    with pytest.raises(InvalidInput):
        reporter.post(say(job_id, "next"))


def test_how_the_job_ended_is_told_in_spite_of_it(jobs, reporter, job_id):
    def wrong(_session: Session, _now: object) -> None:
        raise InvalidInput("NaN")

    reporter.post(wrong)
    until(lambda: reporter._failure is not None)
    with pytest.raises(InvalidInput):
        reporter.finish(say(job_id, "all went well"))
    reporter.finish(say(job_id, "it did not"))
    assert said(jobs, job_id) == ["it did not"]
