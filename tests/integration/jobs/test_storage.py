"""What keeps files, models and checkpoints, and what lets go of them: nothing leaks, nothing that a
job needs is lost.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from core.errors import ModelInUse, ModelNotFound, NotFound
from core.jobs import service, store
from core.jobs.records import CheckpointRecord, JobRecord
from core.jobs.tables import File
from core.spec import GreenOptions, JobSpec, MethodOptions
from tests.integration.jobs.engine import LEASE_S, Engine, checkpoint


def discarded(engine: Engine) -> set[str]:
    return {item.key for item in engine.read(store.list_discarded, now=engine.now, limit=100)}


def delete_model(engine: Engine, model_id: str) -> None:
    with engine.database.transaction() as session:
        service.delete_model(session, tenant="acme", model_id=model_id, now=engine.now)


def start_from(engine: Engine, model: str, **green: object) -> JobRecord:
    wishes = GreenOptions(zone="FR", **green)
    return engine.submit(JobSpec(model=model, training_file=engine.upload(), green=wishes))


def finished(engine: Engine, model: str = "org/tiny", **green: object) -> JobRecord:
    """A job with one checkpoint at step 5, whose files are its own."""
    start_from(engine, model, **green)
    claim = engine.running()
    prefix = f"jobs/{claim.job_id}/checkpoints/5/1"
    engine.do(service.record_checkpoint, claim, replace(checkpoint(5), prefix=prefix))
    return engine.succeed(claim)


def checkpoints(engine: Engine, job_id: str) -> tuple[CheckpointRecord, ...]:
    return engine.read(store.list_checkpoints, "acme", job_id, limit=100).items


def test_a_file_past_its_date_stays_for_the_job_that_was_accepted_with_it(engine):
    file_id = engine.upload(expires_at=engine.now + timedelta(seconds=10))
    held_out = engine.upload(expires_at=engine.now + timedelta(seconds=10))
    spec = JobSpec(model="org/tiny", training_file=file_id, validation_file=held_out)
    job = engine.submit(spec)
    engine.wait(11)
    engine.sweep()
    for held in (file_id, held_out):
        with pytest.raises(NotFound):
            engine.read(store.get_file, "acme", held, now=engine.now)
        assert engine.read(store.get_held_file, "acme", held).object_key == f"files/{held}"
        with pytest.raises(NotFound):
            engine.read(store.get_held_file, "rival", held)
    with pytest.raises(NotFound):
        engine.submit(spec)
    assert discarded(engine) == set()
    engine.ask(service.cancel, job.id)
    engine.sweep()
    assert discarded(engine) == {f"files/{file_id}", f"files/{held_out}"}
    with pytest.raises(NotFound):
        engine.read(store.get_held_file, "acme", file_id)


def test_files_past_their_date_are_discarded_and_a_day_later_forgotten(engine):
    kept = engine.upload()
    engine.wait(1)
    soon = engine.upload(expires_at=engine.now + timedelta(seconds=10))
    engine.sweep()
    assert discarded(engine) == set()
    engine.wait(10)
    engine.sweep()
    assert discarded(engine) == {f"files/{soon}"}
    # who pages through the list goes on from there
    newest = engine.upload()
    page = engine.read(store.list_files, "acme", now=engine.now, order="asc", after=soon)
    assert [file.id for file in page.items] == [newest]
    engine.wait(90_000)
    engine.sweep()
    with engine.database.read() as session:
        assert set(session.scalars(select(File.id))) == {kept, newest}


def test_a_sweep_discards_so_many_at_a_time_and_is_not_held_up_by_files_in_use(engine):
    for _ in range(2):
        held = engine.upload(expires_at=engine.now + timedelta(seconds=5))
        engine.submit(JobSpec(model="org/tiny", training_file=held))
    for _ in range(3):
        engine.upload(expires_at=engine.now + timedelta(seconds=9))
    engine.wait(10)
    found = []
    for _ in range(2):
        engine.sweep(limit=2)
        found.append(len(discarded(engine)))
    assert found == [2, 3]


def test_a_deleted_file_leaves_its_object_to_be_removed(engine):
    file_id = engine.upload()
    with engine.database.transaction() as session:
        service.delete_file(session, tenant="acme", file_id=file_id, now=engine.now)
    assert discarded(engine) == {f"files/{file_id}"}


def test_a_deleted_model_takes_its_jobs_checkpoints_along(engine):
    done, other = finished(engine), finished(engine)
    delete_model(engine, done.fine_tuned_model)
    assert discarded(engine) == {f"jobs/{done.id}/result", f"jobs/{done.id}/checkpoints/5/1"}
    assert checkpoints(engine, done.id) == ()
    assert len(checkpoints(engine, other.id)) == 1
    for model in (done.fine_tuned_model, f"{done.fine_tuned_model}:ckpt-step-5"):
        with pytest.raises(ModelNotFound):
            start_from(engine, model)
    for model in (other.fine_tuned_model, f"{other.fine_tuned_model}:ckpt-step-5"):
        start_from(engine, model)


@pytest.mark.parametrize("tail", ["", ":ckpt-step-5"])
def test_a_model_stays_while_a_job_starts_from_it_or_its_checkpoint(engine, tail):
    done = finished(engine)
    job = start_from(engine, f"{done.fine_tuned_model}{tail}")
    for step in (engine.running, lambda: engine.ask(service.cancel, job.id), lambda: None):
        with pytest.raises(ModelInUse, match=job.id) as caught:
            delete_model(engine, done.fine_tuned_model)
        assert (caught.value.code, caught.value.param) == ("model_in_use", "model")
        assert engine.read(store.get_model, "acme", done.fine_tuned_model)
        assert len(checkpoints(engine, done.id)) == 1
        step()
    engine.wait(LEASE_S)
    engine.sweep()
    delete_model(engine, done.fine_tuned_model)


@pytest.mark.parametrize(
    ("green", "is_needed"),
    [
        ({"method": "lora"}, True),
        ({"method": "green_lora", "options": MethodOptions(merge=True)}, False),
        ({"method": "full"}, False),
    ],
)
def test_what_an_adapter_was_trained_on_is_needed_by_jobs_that_go_on_from_it(
    engine, green, is_needed
):
    below = finished(engine)
    above = finished(engine, below.fine_tuned_model, **green)
    start_from(engine, above.fine_tuned_model)
    if is_needed:
        with pytest.raises(ModelInUse):
            delete_model(engine, below.fine_tuned_model)
    else:
        delete_model(engine, below.fine_tuned_model)
        # a checkpoint holds only what was trained, whatever the method
        with pytest.raises(ModelNotFound):
            start_from(engine, f"{above.fine_tuned_model}:ckpt-step-5")
    with pytest.raises(ModelInUse):
        delete_model(engine, above.fine_tuned_model)


def record(engine: Engine, claim, step: int, *, is_milestone: bool = False) -> CheckpointRecord:
    new = checkpoint(step, is_milestone=is_milestone)
    return engine.do(service.record_checkpoint, claim, new)


def test_of_checkpoints_against_loss_the_newest_two_stay_and_every_milestone(engine):
    job = engine.submit()
    claim = engine.running()
    for step in range(1, 7):
        record(engine, claim, step, is_milestone=step in (2, 5))
        assert engine.do(service.held, claim, timeless=True).resume.step == step
    assert [row.step for row in checkpoints(engine, job.id)] == [6, 5, 4, 2]
    assert discarded(engine) == {f"jobs/x/checkpoints/{step}" for step in (1, 3)}
    # another attempt prunes what the first one left, and resumes from the last of all
    engine.wait(LEASE_S)
    claim = engine.running("w2")
    assert claim.resume.step == 6
    record(engine, claim, 7)
    assert [row.step for row in checkpoints(engine, job.id)] == [7, 6, 5, 2]


def test_a_checkpoint_that_a_job_starts_from_is_not_pruned(engine):
    job = engine.submit()
    claim = engine.running()
    first = record(engine, claim, 1)
    further = start_from(engine, first.model)
    for step in (2, 3, 4):
        record(engine, claim, step)
    assert [row.step for row in checkpoints(engine, job.id)] == [4, 3, 1]
    engine.ask(service.cancel, further.id)
    record(engine, claim, 5)
    assert [row.step for row in checkpoints(engine, job.id)] == [5, 4]


def test_files_of_a_replaced_checkpoint_are_discarded_once_nobody_fetches_them(engine):
    job = engine.submit()
    record(engine, engine.running(), 3)
    engine.wait(LEASE_S)
    claim = engine.running("w2")
    again = replace(checkpoint(3), prefix="jobs/x/checkpoints/3-2")
    assert engine.do(service.record_checkpoint, claim, again).prefix == again.prefix
    assert discarded(engine) == set()
    engine.wait(3600)
    assert discarded(engine) == {"jobs/x/checkpoints/3"}
    assert [row.prefix for row in checkpoints(engine, job.id)] == [again.prefix]
