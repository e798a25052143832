"""Cancel, pause and resume, at every moment of a job's life."""

from __future__ import annotations

import pytest

from core.errors import InvalidInput, InvalidTransition, LeaseLost, NotFound
from core.jobs import service, store
from core.jobs.lifecycle import Release
from tests.integration.jobs.engine import LEASE_S, MAX_ATTEMPTS
from tests.integration.jobs.test_flow import job_of, messages, outcomes


def test_a_job_that_nobody_owns_is_cancelled_at_once(engine):
    job = engine.submit()
    gone = engine.ask(service.cancel, job.id)
    assert (gone.status, gone.green_state, gone.finished_at) == ("cancelled", "done", engine.now)
    assert engine.claim() is None
    assert engine.ask(service.cancel, job.id) == gone
    assert messages(engine, job.id)[2:] == ["Fine-tuning job cancelled"]


@pytest.mark.parametrize("stage", ["validating", "queued", "running"])
def test_an_owned_job_is_cancelled_when_its_owner_says_so(engine, stage):
    job = engine.submit()
    claim = engine.running() if stage == "running" else engine.claim()
    if stage == "queued":
        engine.do(service.validated, claim)
    before = job_of(engine, job.id).status
    asked = engine.ask(service.cancel, job.id)
    assert (asked.status, asked.green_state, asked.finished_at) == (before, "cancelling", None)
    engine.wait(1)
    assert engine.ask(service.cancel, job.id) == asked
    assert engine.do(service.heartbeat, claim, lease_s=LEASE_S).cancel
    gone = engine.do(service.cancelled, claim)
    assert (gone.status, gone.worker) == ("cancelled", None)
    assert engine.ask(service.cancel, job.id) == gone
    assert outcomes(engine, job.id) == ["cancelled"]
    said = messages(engine, job.id)
    assert said.count("Fine-tuning job cancelled") == 1
    assert said.count("Cancelling: waiting for the worker to stop") == 1


@pytest.mark.parametrize("ending", ["succeed", "fail", "release", "paused"])
def test_an_accepted_cancel_is_kept_whatever_the_owner_wants(engine, ending):
    job = engine.submit()
    claim = engine.running()
    engine.ask(service.pause, job.id)
    engine.ask(service.cancel, job.id)
    if ending == "succeed":
        last = engine.succeed(claim)
    elif ending == "fail":
        last = engine.do(service.fail, claim, code="nan_loss", message="loss is NaN")
    elif ending == "paused":
        last = engine.do(service.paused, claim)
    else:
        last = engine.do(service.release, claim, reason=Release.SHUTDOWN, max_attempts=9)
    assert last.status == "cancelled"
    assert (last.result_files, last.fine_tuned_model, last.error) == ((), None, None)
    assert not engine.read(store.list_models, "acme")


@pytest.mark.parametrize("how", ["sweep", "claim", "cancel again"])
def test_a_cancel_whose_owner_has_gone_is_carried_out_by_others(engine, how):
    job = engine.submit()
    claim = engine.running()
    engine.ask(service.cancel, job.id)
    engine.wait(LEASE_S)
    if how == "sweep":
        assert engine.sweep() == []
    elif how == "claim":
        assert engine.claim("w2") is None
    else:
        engine.ask(service.cancel, job.id)
    assert job_of(engine, job.id).status == "cancelled"
    assert outcomes(engine, job.id) == ["lease_expired"]
    with pytest.raises(LeaseLost):
        engine.succeed(claim)


def test_what_has_ended_cannot_be_cancelled_paused_or_resumed(engine):
    engine.submit()
    done = engine.succeed(engine.running())
    for use_case in (service.cancel, service.resume):
        with pytest.raises(InvalidTransition) as caught:
            engine.ask(use_case, done.id)
        assert caught.value.code == "invalid_state_transition"
    with pytest.raises(InvalidInput) as refused:
        engine.ask(service.pause, done.id)
    assert refused.value.code == "job_not_pausable"
    assert job_of(engine, done.id) == done


def test_pause_saves_and_resume_goes_on(engine):
    job = engine.submit()
    claim = engine.running()
    pausing = engine.ask(service.pause, job.id)
    assert (pausing.status, pausing.green_state) == ("running", "pausing")
    assert engine.ask(service.pause, job.id) == pausing
    assert engine.do(service.heartbeat, claim, lease_s=LEASE_S).pause
    paused = engine.do(service.paused, claim)
    assert (paused.status, paused.green_state, paused.finished_at) == ("paused", "paused", None)
    assert engine.ask(service.pause, job.id) == paused
    assert engine.claim() is None
    engine.wait(9999)
    assert engine.sweep() == []
    resumed = engine.ask(service.resume, job.id)
    assert (resumed.status, resumed.deaths) == ("queued", 0)
    assert engine.ask(service.resume, job.id) == resumed
    assert engine.succeed(engine.running()).status == "succeeded"
    assert outcomes(engine, job.id) == ["paused", "succeeded"]


def test_a_queued_job_that_nobody_owns_is_paused_at_once_and_can_be_cancelled(engine):
    job = engine.submit()
    engine.do(service.release, engine.running(), reason=Release.SHUTDOWN, max_attempts=9)
    assert engine.ask(service.pause, job.id).status == "paused"
    assert engine.ask(service.cancel, job.id).status == "cancelled"


def test_a_pause_can_be_withdrawn_before_and_after_the_worker_saw_it(engine):
    job = engine.submit()
    claim = engine.running()
    engine.ask(service.pause, job.id)
    assert engine.ask(service.resume, job.id).green_state == "running"
    assert not engine.do(service.heartbeat, claim, lease_s=LEASE_S).pause
    # the worker had seen it and saved already: then it is another worker's turn
    assert engine.do(service.paused, claim).status == "queued"
    assert engine.claim("w2").job_id == job.id


def test_a_pause_whose_owner_has_gone_is_carried_out(engine):
    job = engine.submit()
    engine.running()
    engine.ask(service.pause, job.id)
    engine.wait(LEASE_S)
    engine.sweep()
    assert job_of(engine, job.id).status == "paused"


def test_neither_validation_nor_cancellation_can_be_paused(engine):
    job = engine.submit()
    with pytest.raises(InvalidInput, match="validating_files"):
        engine.ask(service.pause, job.id)
    engine.running()
    engine.ask(service.cancel, job.id)
    with pytest.raises(InvalidInput, match="being cancelled"):
        engine.ask(service.pause, job.id)


def test_a_pause_does_not_hide_poison_from_the_count(engine):
    job = engine.submit()
    for _ in range(MAX_ATTEMPTS):
        engine.running()
        engine.ask(service.pause, job.id)
        engine.wait(LEASE_S)
        engine.sweep()
        assert engine.ask(service.resume, job.id).status == "queued"
    engine.running()
    engine.wait(LEASE_S)
    engine.sweep()
    assert job_of(engine, job.id).status == "failed"


@pytest.mark.parametrize("use_case", [service.cancel, service.pause, service.resume])
@pytest.mark.parametrize("job_id", ["ftjob-" + "0" * 24, "x\x00y", ""])
def test_unknown_and_foreign_jobs_are_not_found(engine, use_case, job_id):
    foreign = engine.submit(tenant="other")
    for wanted in (job_id, foreign.id):
        with pytest.raises(NotFound):
            engine.ask(use_case, wanted)
