"""A training that raised what nobody foresaw: when it is tried again, and when that is in vain."""

from __future__ import annotations

import pytest

from core.errors import LeaseLost
from core.jobs import service, store
from core.jobs.lifecycle import Release, backoff_s
from core.jobs.records import Claim, JobRecord
from tests.integration.jobs.engine import MAX_ATTEMPTS, Engine, checkpoint, sample
from tests.integration.jobs.test_flow import messages, outcomes

MISTAKE = "Training failed with ValueError: no such column"
OTHER = "Training failed with KeyError: 'loss'"


def raise_in(
    engine: Engine, claim: Claim, failure: str = MISTAKE, *, may_pass: bool = False
) -> JobRecord:
    after = engine.do(
        service.raised, claim, failure=failure, may_pass=may_pass, max_attempts=MAX_ATTEMPTS
    )
    engine.wait(10)
    return after


def die(engine: Engine) -> None:
    engine.do(service.release, engine.running(), reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
    engine.wait(10)


def failures(engine: Engine, job_id: str) -> list[str | None]:
    return [attempt.failure for attempt in engine.read(store.list_attempts, job_id)]


def test_the_same_exception_twice_without_progress_ends_the_job(engine):
    job = engine.submit()
    claim = engine.running()
    engine.do(service.record_energy, claim, [sample(0, 10.0)], timeless=True)
    started = engine.now
    back = raise_in(engine, claim)
    assert (back.status, back.deaths, back.error) == ("queued", 1, None)
    assert (back.not_before - started).total_seconds() == backoff_s(1)
    claim = engine.running()
    engine.do(service.record_energy, claim, [sample(20, 5.0)], timeless=True)
    failed = raise_in(engine, claim)
    assert (failed.status, failed.error.code) == ("failed", "training_failed")
    assert failed.error.message == (
        f"{MISTAKE}. An earlier attempt ended alike, and no new checkpoint came in between; "
        "it was not tried again."
    )
    assert failed.energy_j == 15.0
    assert outcomes(engine, job.id) == ["raised", "failed"]
    assert failures(engine, job.id) == [MISTAKE, MISTAKE]
    told = messages(engine, job.id)
    assert f"{MISTAKE}; moving job back to queued state" in told
    assert told[-1] == f"The job failed: {failed.error.message}"
    assert engine.claim() is None


def test_while_the_files_are_validated_too(engine):
    engine.submit()
    assert raise_in(engine, engine.claim()).status == "validating_files"
    assert raise_in(engine, engine.claim()).status == "failed"


def test_progress_in_between_gives_it_its_attempts(engine):
    job = engine.submit()
    for step in range(1, 2 * MAX_ATTEMPTS):
        claim = engine.running()
        engine.do(service.record_checkpoint, claim, checkpoint(step))
        assert raise_in(engine, claim).status == "queued"
    claim = engine.running()
    # the same step again: the attempt came no further than the one before
    engine.do(service.record_checkpoint, claim, checkpoint(step))
    assert raise_in(engine, claim).status == "failed"
    assert outcomes(engine, job.id) == ["raised"] * step + ["failed"]


def test_a_checkpoint_and_a_crash_in_between_are_progress_too(engine):
    engine.submit()
    raise_in(engine, engine.running())
    claim = engine.running()
    engine.do(service.record_checkpoint, claim, checkpoint(4))
    engine.do(service.release, claim, reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
    engine.wait(10)
    assert raise_in(engine, engine.running()).status == "queued"
    assert raise_in(engine, engine.running()).error.code == "training_failed"


@pytest.mark.parametrize("between", ["crash", "shutdown"])
def test_what_cut_an_attempt_short_in_between_is_no_progress(engine, between):
    engine.submit()
    raise_in(engine, engine.running())
    if between == "crash":
        die(engine)
    else:
        engine.do(
            service.release, engine.running(), reason=Release.SHUTDOWN, max_attempts=MAX_ATTEMPTS
        )
    failed = raise_in(engine, engine.running())
    assert (failed.status, failed.error.code) == ("failed", "training_failed")


def test_another_exception_gets_its_attempts_up_to_the_limit(engine):
    job = engine.submit()
    assert raise_in(engine, engine.running()).status == "queued"
    assert raise_in(engine, engine.running(), OTHER).status == "queued"
    failed = raise_in(engine, engine.running())
    assert (failed.status, failed.error.code) == ("failed", "training_failed")
    assert failed.error.message == f"{MISTAKE}. Attempts in a row without a new checkpoint: 3."
    assert failures(engine, job.id) == [MISTAKE, OTHER, MISTAKE]


def test_what_may_pass_is_tried_like_a_crash(engine):
    """A sick card says the same every time."""
    job = engine.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        last = raise_in(engine, engine.running(), may_pass=True)
        assert last.status == ("queued" if attempt < MAX_ATTEMPTS else "failed")
    assert last.error.code == "training_failed"
    assert outcomes(engine, job.id) == ["raised", "raised", "failed"]


def test_a_worker_that_is_lost_at_last_is_said_to_be(engine):
    engine.submit()
    raise_in(engine, engine.running())
    die(engine)
    engine.do(service.release, engine.running(), reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
    (job,) = engine.read(store.list_jobs, engine.tenant).items
    assert (job.status, job.error.code) == ("failed", "worker_lost")


@pytest.mark.parametrize(
    ("order", "status"), [(service.cancel, "cancelled"), (service.pause, "paused")]
)
def test_an_order_that_came_first_is_carried_out_and_the_exception_told(engine, order, status):
    job = engine.submit()
    claim = engine.running()
    engine.ask(order, job.id)
    assert raise_in(engine, claim).status == status
    assert f"{MISTAKE} (attempt 1)" in messages(engine, job.id)
    assert failures(engine, job.id) == [MISTAKE]


def test_who_lost_the_job_cannot_fail_it(engine):
    job = engine.submit()
    old = engine.running()
    engine.wait(1000)
    engine.claim("w2")
    with pytest.raises(LeaseLost):
        raise_in(engine, old)
    assert failures(engine, job.id) == [None, None]
