"""One job, from its caller's and its worker's side."""

from __future__ import annotations

import pytest

from core.errors import InvalidInput, InvalidTransition, LeaseLost, NotFound
from core.jobs import service, store
from core.jobs.lifecycle import TRANSIENT_LIMIT, Release
from core.jobs.records import Baseline, Progress
from core.spec import GreenOptions, JobSpec
from core.training_options import TrainingOptions
from tests.integration.jobs.engine import (
    HYPERPARAMETERS,
    LEASE_S,
    MAX_ATTEMPTS,
    Engine,
    checkpoint,
)


def messages(engine: Engine, job_id: str) -> list[str]:
    """Oldest first."""
    page = engine.read(store.list_events, engine.tenant, job_id, limit=100)
    assert [event.seq for event in page.items] == list(range(len(page.items), 0, -1))
    return [event.message for event in reversed(page.items)]


def job_of(engine: Engine, job_id: str):
    return engine.read(store.get_job, engine.tenant, job_id)


def outcomes(engine: Engine, job_id: str) -> list[str | None]:
    return [attempt.outcome for attempt in engine.read(store.list_attempts, job_id)]


def test_a_job_that_goes_well(engine):
    job = engine.submit(metadata={"team": "a"})
    assert job.status == "validating_files"
    assert job.green_state == "planned"
    claim = engine.running()
    assert (claim.job_id, claim.attempt, claim.resume) == (job.id, 1, None)
    engine.do(
        service.record_progress,
        claim,
        Progress(step=3, total_steps=9, trained_tokens=77, train_loss=1.25),
        timeless=True,
        estimated_finish=engine.now,
    )
    baseline = Baseline(kind="modelled", energy_j=5.0)
    engine.do(service.set_baseline, claim, baseline, timeless=True)
    engine.do(
        service.append_event,
        claim,
        level="info",
        message="Step 3/9: training loss=1.25",
        type="metrics",
        data={"step": 3, "train_loss": 1.25},
    )
    running = job_of(engine, job.id)
    assert (running.status, running.green_state, running.worker) == ("running", "running", "w1")
    assert running.progress.trained_tokens == 77
    assert running.hyperparameters == HYPERPARAMETERS
    assert (running.baseline, running.estimated_finish) == (baseline, engine.now)
    kept = engine.do(service.record_checkpoint, claim, checkpoint(5))
    engine.wait(7)
    done = engine.succeed(claim, n_files=2)
    assert done == job_of(engine, job.id)
    assert (done.status, done.green_state, done.finished_at) == ("succeeded", "done", engine.now)
    assert (done.lease_until, done.worker, done.error) == (None, None, None)
    assert done.fine_tuned_model == done.model_name == job.model_name
    assert kept.model == f"{done.fine_tuned_model}:ckpt-step-5"
    for file_id in done.result_files:
        file = engine.read(store.get_file, "acme", file_id, now=engine.now)
        assert file.purpose == "fine-tune-results"
    model = engine.read(store.get_model, "acme", done.fine_tuned_model)
    assert (model.job_id, model.base_model) == (job.id, "org/tiny")
    assert messages(engine, job.id) == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.spec.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 3/9: training loss=1.25",
        "Checkpoint created at step 5",
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert outcomes(engine, job.id) == ["succeeded"]


def test_a_spec_comes_back_as_it_was_written(engine):
    spec = JobSpec(
        model="org/tiny",
        training_file=engine.upload(),
        validation_file=engine.upload(),
        seed=7,
        training=TrainingOptions(n_epochs=2, learning_rate=1e-5),
        green=GreenOptions(rho=0.5, zone="FR"),
    )
    assert job_of(engine, engine.submit(spec).id).spec == spec


def test_submit_refuses_files_that_are_not_there_or_not_for_training(engine):
    mine = engine.upload()
    for bad in ("file-" + "0" * 24, "nonsense\x00", engine.upload(tenant="other")):
        with pytest.raises(NotFound) as caught:
            engine.submit(JobSpec(model="m", training_file=mine, validation_file=bad))
        assert caught.value.param == "validation_file"
    results = engine.upload(purpose="fine-tune-results")
    with pytest.raises(InvalidInput) as refused:
        engine.submit(JobSpec(model="m", training_file=results))
    assert (refused.value.param, refused.value.code) == ("training_file", "invalid_file_purpose")
    assert not engine.read(store.list_jobs, "acme").items


@pytest.mark.parametrize("metadata", [{"a\x00": "b"}, {"a": "\ud800"}])
def test_submit_refuses_labels_that_no_database_stores(engine, metadata):
    with pytest.raises(InvalidInput) as caught:
        engine.submit(metadata=metadata)
    assert caught.value.param == "metadata"


def test_priority_beats_age_and_age_beats_youth(engine):
    first = engine.submit()
    engine.wait(1)
    second = engine.submit()
    urgent = engine.submit(priority=5)
    assert [engine.claim().job_id for _ in range(3)] == [urgent.id, first.id, second.id]
    assert engine.claim() is None


def test_a_named_job_is_claimed_out_of_turn_but_only_when_claimable(engine):
    engine.submit()
    late = engine.submit()
    assert engine.claim(job_id=late.id).job_id == late.id
    assert engine.claim(job_id=late.id) is None


def test_steps_out_of_order_are_refused_and_write_nothing(engine):
    engine.submit()
    claim = engine.claim()
    for use_case, words in (
        (service.started, {"hyperparameters": HYPERPARAMETERS}),
        (service.record_checkpoint, {"checkpoint": checkpoint(1)}),
        (service.cancelled, {}),
    ):
        with pytest.raises(InvalidTransition):
            engine.do(use_case, claim, **words)
    with pytest.raises(InvalidTransition):
        engine.succeed(claim)
    assert len(messages(engine, claim.job_id)) == 2
    assert not engine.read(store.list_models, "acme")


def test_a_lost_worker_is_replaced_and_can_write_nothing_more(engine):
    job = engine.submit()
    old = engine.running("w1")
    engine.do(service.record_checkpoint, old, checkpoint(4))
    engine.wait(LEASE_S)
    new = engine.claim("w2")
    assert (new.job_id, new.attempt, new.resume.step) == (job.id, 2, 4)
    assert new.job.status == "queued"
    stale = [
        (service.heartbeat, (), {"lease_s": 9.0}),
        (service.validated, (), {}),
        (service.started, (), {"hyperparameters": HYPERPARAMETERS}),
        (service.append_event, (), {"level": "info", "message": "late"}),
        (service.record_checkpoint, (checkpoint(9),), {}),
        (service.fail, (), {"code": "x", "message": "x"}),
        (service.cancelled, (), {}),
        (service.paused, (), {}),
        (service.release, (), {"reason": Release.SHUTDOWN, "max_attempts": 9}),
    ]
    for use_case, args, words in stale:
        with pytest.raises(LeaseLost):
            engine.do(use_case, old, *args, **words)
    with pytest.raises(LeaseLost):
        engine.succeed(old)
    for use_case, value in (
        (service.record_progress, Progress(step=99)),
        (service.set_baseline, Baseline(kind="x", energy_j=1.0)),
        (service.record_energy, []),
    ):
        with pytest.raises(LeaseLost):
            engine.do(use_case, old, value, timeless=True)
    engine.do(service.validated, new)
    engine.do(service.started, new, hyperparameters=HYPERPARAMETERS)
    assert engine.succeed(new).status == "succeeded"
    assert messages(engine, job.id)[-5:] == [
        "Checkpoint created at step 4",
        "The worker stopped answering; moving job back to queued state",
        "Fine-tuning job continues from the checkpoint at step 4",
        f"New fine-tuned model created: {job.model_name}",
        "The job has successfully completed",
    ]
    attempts = engine.read(store.list_attempts, job.id)
    assert [(a.number, a.worker, a.from_step, a.outcome) for a in attempts] == [
        (1, "w1", 0, "lease_expired"),
        (2, "w2", 4, "succeeded"),
    ]


def test_the_training_process_takes_up_its_supervisors_claim(engine):
    engine.submit()
    claim = engine.running()
    engine.do(service.record_checkpoint, claim, checkpoint(2))
    again = engine.do(service.held, claim, timeless=True)
    assert (again.job_id, again.fence, again.resume.step) == (claim.job_id, claim.fence, 2)
    assert again.job == job_of(engine, claim.job_id)
    engine.wait(LEASE_S)
    engine.claim("w2")
    with pytest.raises(LeaseLost):
        engine.do(service.held, claim, timeless=True)


def test_a_heartbeat_keeps_the_job_even_after_a_late_one(engine):
    engine.submit()
    claim = engine.running()
    engine.wait(LEASE_S + 1)
    engine.do(service.heartbeat, claim, lease_s=LEASE_S)
    engine.wait(LEASE_S - 1)
    assert engine.claim("w2") is None
    assert engine.sweep() == []
    assert engine.succeed(claim).status == "succeeded"


def test_a_job_that_kills_every_worker_fails_and_the_queue_lives_on(engine):
    poison = engine.submit()
    engine.wait(1)
    innocent = engine.submit()
    for _ in range(MAX_ATTEMPTS):
        assert engine.claim(job_id=poison.id)
        engine.wait(LEASE_S)
    assert engine.claim("w2").job_id == innocent.id
    failed = job_of(engine, poison.id)
    assert (failed.status, failed.error.code) == ("failed", "worker_lost")
    assert f"{MAX_ATTEMPTS} times" in failed.error.message
    assert failed.finished_at == engine.now
    assert outcomes(engine, poison.id) == ["lease_expired"] * MAX_ATTEMPTS


def test_the_sweeper_fails_poison_too_and_queues_the_rest(engine):
    job = engine.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert engine.claim().attempt == attempt
        engine.wait(LEASE_S)
        assert engine.sweep() == ([job.id] if attempt < MAX_ATTEMPTS else [])
    assert job_of(engine, job.id).error.code == "worker_lost"


def test_deaths_with_progress_in_between_are_no_poison(engine):
    engine.submit()
    for step in range(1, 3 * MAX_ATTEMPTS):
        claim = engine.running()
        engine.do(service.record_checkpoint, claim, checkpoint(step))
        engine.do(service.release, claim, reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
        engine.wait(10)
    assert engine.succeed(engine.running()).status == "succeeded"


def test_the_same_checkpoint_again_is_no_progress(engine):
    job = engine.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = engine.running()
        engine.do(service.record_checkpoint, claim, checkpoint(4))
        last = engine.do(service.release, claim, reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
        engine.wait(10)
        assert last.status == ("failed" if attempt == MAX_ATTEMPTS else "queued")
    assert len(engine.read(store.list_checkpoints, "acme", job.id).items) == 1


def test_a_child_that_died_is_tried_again_after_a_growing_wait(engine):
    job = engine.submit()
    claim = engine.running()
    back = engine.do(service.release, claim, reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
    assert (back.status, back.green_state, back.deaths) == ("queued", "held", 1)
    assert engine.claim() is None
    assert engine.sweep() == []
    engine.wait(1)
    assert engine.sweep() == [job.id]
    engine.do(service.release, engine.claim(), reason=Release.DIED, max_attempts=MAX_ATTEMPTS)
    engine.wait(1)
    assert engine.claim() is None
    engine.wait(1)
    last = engine.do(
        service.release, engine.claim(), reason=Release.DIED, max_attempts=MAX_ATTEMPTS
    )
    assert (last.status, last.error.code) == ("failed", "worker_lost")
    assert outcomes(engine, job.id) == ["died"] * MAX_ATTEMPTS


def test_a_service_that_stays_away_fails_the_job_in_the_end(engine):
    job = engine.submit()
    for _ in range(TRANSIENT_LIMIT):
        engine.wait(300)
        last = engine.do(
            service.release,
            engine.claim(),
            reason=Release.TRANSIENT,
            message="The object store does not answer.",
            max_attempts=MAX_ATTEMPTS,
        )
    assert (last.status, last.error.code, last.deaths) == ("failed", "storage_error", 0)
    assert last.error.message.startswith("The object store does not answer.")
    assert outcomes(engine, job.id)[0] == "transient"


def test_a_worker_that_shuts_down_costs_the_job_nothing(engine):
    engine.submit()
    for _ in range(3 * MAX_ATTEMPTS):
        back = engine.do(
            service.release,
            engine.running(),
            reason=Release.SHUTDOWN,
            max_attempts=MAX_ATTEMPTS,
        )
        assert (back.status, back.deaths, back.retries, back.not_before) == ("queued", 0, 0, None)


def test_who_gave_the_job_back_writes_nothing_more_though_nobody_has_it_yet(engine):
    job = engine.submit()
    claim = engine.running()
    engine.do(service.release, claim, reason=Release.SHUTDOWN, max_attempts=MAX_ATTEMPTS)
    before = job_of(engine, job.id)
    with pytest.raises(LeaseLost):
        engine.do(service.heartbeat, claim, lease_s=LEASE_S)
    with pytest.raises(LeaseLost):
        engine.do(service.started, claim, hyperparameters=HYPERPARAMETERS)
    with pytest.raises(LeaseLost):
        engine.do(service.record_progress, claim, Progress(step=9), timeless=True)
    assert job_of(engine, job.id) == before


def test_open_epochs_stay_what_the_first_attempt_made_them(engine):
    """A later release may have another rule; the job's end must not move while it runs."""
    job = engine.submit()
    assert engine.running().spec.training.n_epochs is None
    engine.wait(LEASE_S)
    again = engine.claim("w2")
    assert again.job_id == job.id
    assert again.spec.training.n_epochs == HYPERPARAMETERS.n_epochs
    assert job_of(engine, job.id).spec.training.n_epochs is None, "as asked"


def test_a_released_validation_is_done_again(engine):
    engine.submit()
    back = engine.do(
        service.release, engine.claim(), reason=Release.SHUTDOWN, max_attempts=MAX_ATTEMPTS
    )
    assert back.status == "validating_files"
    assert engine.claim().attempt == 2


def test_bad_data_fails_the_job_for_good(engine):
    job = engine.submit()
    failed = engine.do(
        service.fail,
        engine.claim(),
        code="invalid_n_examples",
        message="Training file has 7 example(s), but must have at least 10 examples",
        param="training_file",
    )
    assert failed.status == "failed"
    assert (failed.error.code, failed.error.param) == ("invalid_n_examples", "training_file")
    event = engine.read(store.list_events, "acme", job.id).items[0]
    assert (event.level, event.message) == (
        "error",
        "The job failed: Training file has 7 example(s), but must have at least 10 examples",
    )
    assert engine.claim() is None
    assert engine.sweep() == []


def test_the_sweeper_nudges_what_was_forgotten_but_does_not_nag(engine):
    ids_ = []
    for _ in range(5):
        ids_.append(engine.submit().id)
        engine.wait(1)
    assert engine.sweep() == []
    engine.wait(60)
    assert engine.sweep(limit=3) == ids_[:3]
    assert engine.sweep(limit=3) == ids_[3:]
    assert engine.sweep(limit=3) == []
    engine.wait(60)
    assert engine.sweep() == ids_
