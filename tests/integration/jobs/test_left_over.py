"""What is stored without a use: state that nothing goes on from, objects of attempts that broke
off, checkpoints that nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.errors import InvalidInput, LeaseLost, ModelInUse, ModelNotFound
from core.jobs import service, store
from core.jobs.lifecycle import Release
from core.jobs.records import CheckpointRecord, Claim
from core.jobs.service.checkpoints import CHECKPOINT_MEMORY_S
from core.jobs.service.sweeper import LATE_WRITES_S
from core.spec import JobSpec
from tests.integration.jobs.engine import LEASE_S, MAX_ATTEMPTS, Engine, checkpoint
from tests.integration.jobs.test_storage import checkpoints, discarded, start_from

STATE = ("optimizer.safetensors", "random.safetensors")


def saved(engine: Engine, claim: Claim, step: int = 5) -> CheckpointRecord:
    prefix = f"jobs/{claim.job_id}/checkpoints/{step}/{claim.fence}"
    new = replace(checkpoint(step), prefix=prefix, state_files=STATE)
    return engine.do(service.record_checkpoint, claim, new)


def fail(engine: Engine, claim: Claim) -> None:
    engine.do(service.fail, claim, code="nan_loss", message="It diverged.")


def cancel(engine: Engine, claim: Claim) -> None:
    engine.ask(service.cancel, claim.job_id)
    engine.do(service.cancelled, claim)


def cancel_once_lost(engine: Engine, claim: Claim) -> None:
    engine.wait(LEASE_S)
    engine.ask(service.cancel, claim.job_id)


def lose(engine: Engine, claim: Claim) -> None:
    for _ in range(MAX_ATTEMPTS):
        engine.wait(LEASE_S)
        engine.sweep()
        engine.wait(1000)
        if engine.claim(job_id=claim.job_id) is None:
            return


def release(engine: Engine, claim: Claim) -> None:
    engine.do(service.release, claim, reason=Release.SHUTDOWN, max_attempts=MAX_ATTEMPTS)


def pause(engine: Engine, claim: Claim) -> None:
    engine.ask(service.pause, claim.job_id)
    engine.do(service.paused, claim)


@pytest.mark.parametrize("end", [Engine.succeed, fail, cancel, cancel_once_lost, lose])
def test_state_goes_when_the_job_has_ended(engine: Engine, end: Callable[..., object]):
    other = engine.running(job_id=engine.submit().id)
    saved(engine, other)
    claim = engine.running(job_id=engine.submit().id)
    kept = [saved(engine, claim, step) for step in (5, 6)]
    assert discarded(engine) == set()
    end(engine, claim)
    state = {f"{row.prefix}/{name}" for row in kept for name in STATE}
    assert {key for key in discarded(engine) if claim.job_id in key} == state
    assert len(checkpoints(engine, claim.job_id)) == 2
    start_from(engine, kept[0].model)


@pytest.mark.parametrize("end", [release, pause])
def test_state_stays_while_an_attempt_may_follow(engine: Engine, end: Callable[..., object]):
    claim = engine.running(job_id=engine.submit().id)
    saved(engine, claim)
    end(engine, claim)
    engine.sweep()
    assert discarded(engine) == set()


def announce(engine: Engine, claim: Claim, *keys: str) -> None:
    engine.do(service.announce_objects, claim, keys, timeless=True)


def test_what_got_a_row_is_kept(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    prefix = f"jobs/{claim.job_id}/checkpoints/5/1"
    announce(engine, claim, f"{prefix}/weights", f"{prefix}/manifest.json")
    saved(engine, claim)
    result = f"jobs/{claim.job_id}/result"
    announce(engine, claim, f"{result}/model", f"{result}/manifest.json", f"{result}_/other")
    engine.succeed(claim)
    engine.sweep()
    engine.wait(LATE_WRITES_S)
    state = {f"{prefix}/{name}" for name in STATE}
    assert discarded(engine) == {*state, f"{result}_/other"}


@pytest.mark.parametrize("end", [fail, cancel, cancel_once_lost, lose, release, pause])
def test_what_an_attempt_announced_and_did_not_record_goes_once_it_cannot_come_any_more(
    engine: Engine, end: Callable[..., object]
):
    claim = engine.running(job_id=engine.submit().id)
    announce(engine, claim, "files/1", "files/2")
    announce(engine, claim, "files/1", "files/2")  # the commit's answer was lost
    engine.sweep()
    engine.wait(LEASE_S / 2)
    engine.do(service.heartbeat, claim, lease_s=2 * LATE_WRITES_S)
    engine.wait(LATE_WRITES_S)
    engine.sweep()
    assert discarded(engine) == set()
    engine.do(service.heartbeat, claim, lease_s=LEASE_S)
    end(engine, claim)
    engine.sweep()
    engine.wait(LATE_WRITES_S)
    assert discarded(engine) == {"files/1", "files/2"}


def test_a_late_attempt_neither_announces_nor_takes_what_its_successor_announced(engine: Engine):
    old = engine.running(job_id=engine.submit().id)
    announce(engine, old, "files/old")
    engine.wait(LEASE_S)
    new = engine.running("w2", job_id=old.job_id)
    announce(engine, new, "files/new")
    for late in (lambda: announce(engine, old, "files/later"), lambda: engine.succeed(old)):
        with pytest.raises(LeaseLost):
            late()
    engine.do(service.heartbeat, new, lease_s=2 * LATE_WRITES_S)
    engine.sweep()
    engine.wait(LATE_WRITES_S)
    engine.sweep()
    assert discarded(engine) == {"files/old"}


def test_a_cancel_order_that_comes_before_the_success_leaves_no_model(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    announce(engine, claim, f"jobs/{claim.job_id}/result/model")
    engine.ask(service.cancel, claim.job_id)
    assert engine.succeed(claim).status == "cancelled"
    engine.sweep()
    engine.wait(LATE_WRITES_S)
    assert discarded(engine) == {f"jobs/{claim.job_id}/result/model"}


def delete(engine: Engine, model: str, tenant: str = "acme") -> None:
    with engine.database.transaction() as session:
        service.delete_checkpoint(session, tenant=tenant, model=model, now=engine.now)


def test_a_checkpoint_is_deleted_alone_and_its_job_may_have_failed(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    first, second = saved(engine, claim, 5), saved(engine, claim, 6)
    fail(engine, claim)
    for model, tenant in ((first.model, "rival"), (f"{first.model}1", "acme"), ("ft:\x00", "acme")):
        with pytest.raises(ModelNotFound):
            delete(engine, model, tenant)
    delete(engine, first.model)
    assert checkpoints(engine, claim.job_id) == (second,)
    assert first.prefix in discarded(engine)
    for late in (lambda: delete(engine, first.model), lambda: start_from(engine, first.model)):
        with pytest.raises(ModelNotFound):
            late()
    start_from(engine, second.model)


def test_a_checkpoint_stays_while_its_own_job_may_go_on_from_it(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    kept = saved(engine, claim)
    for step in (lambda: pause(engine, claim), lambda: engine.ask(service.resume, claim.job_id)):
        with pytest.raises(ModelInUse, match=rf"job {claim.job_id}, which is \w+ and may go on"):
            delete(engine, kept.model)
        step()
    engine.ask(service.cancel, claim.job_id)
    delete(engine, kept.model)


def test_a_checkpoint_stays_while_a_job_starts_from_it(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    kept = saved(engine, claim)
    fail(engine, claim)
    further = start_from(engine, kept.model, method="lora")
    with pytest.raises(ModelInUse, match=further.id):
        delete(engine, kept.model)
    adapted = engine.succeed(engine.running(job_id=further.id))
    beyond = start_from(engine, adapted.fine_tuned_model)
    with pytest.raises(ModelInUse, match=beyond.id):
        delete(engine, kept.model)
    engine.ask(service.cancel, beyond.id)
    delete(engine, kept.model)


def test_who_deletes_while_paging_through_the_list_reaches_its_end(engine: Engine):
    claim = engine.running(job_id=engine.submit().id)
    for step in range(1, 6):
        saved(engine, claim, step)
    fail(engine, claim)
    seen: list[int] = []
    after = None
    while True:
        page = engine.read(store.list_checkpoints, "acme", claim.job_id, after=after, limit=2)
        for row in page.items:
            seen.append(row.step)
            delete(engine, row.model)
        if not page.has_more:
            break
        after = page.items[-1].id
    assert seen == [5, 4, 3, 2, 1]
    assert checkpoints(engine, claim.job_id) == ()
    engine.wait(CHECKPOINT_MEMORY_S)
    engine.sweep()
    with pytest.raises(InvalidInput):
        engine.read(store.list_checkpoints, "acme", claim.job_id, after=after)


def test_a_step_whose_checkpoint_was_replaced_by_newer_ones_may_be_reached_again(engine: Engine):
    """The newest may turn out to be damaged."""
    job = engine.submit(JobSpec(model="org/tiny", training_file=engine.upload()))
    claim = engine.running(job_id=job.id)
    for step in (1, 2, 3):
        engine.do(service.record_checkpoint, claim, checkpoint(step, is_milestone=False))
    assert [row.step for row in checkpoints(engine, job.id)] == [3, 2]
    again = replace(checkpoint(1), prefix="jobs/x/checkpoints/1-2")
    engine.do(service.record_checkpoint, claim, again)
    assert [row.step for row in checkpoints(engine, job.id)] == [3, 2, 1]
    assert discarded(engine) == {"jobs/x/checkpoints/1"}
