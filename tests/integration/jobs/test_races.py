"""Threads that want the same thing at the same moment, on real databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier

import pytest

from core.errors import (
    FileInUse,
    GreentuneError,
    IdempotencyInProgress,
    InvalidTransition,
    LeaseLost,
    ModelInUse,
    ModelNotFound,
    NotFound,
)
from core.jobs import service, store
from core.jobs.lifecycle import Release
from core.jobs.records import StoredReply
from core.spec import JobSpec
from tests.integration.jobs.engine import LEASE_S, Engine, checkpoint, sample
from tests.integration.jobs.test_flow import job_of, messages

ROUNDS = 6


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What each call returned or raised; all begin together."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait(timeout=30)
        try:
            return call()
        except GreentuneError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(run, c) for c in calls]]


def test_of_many_workers_one_gets_the_job(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claims = at_once(
            *(lambda n=n, id_=job.id: engine.claim(f"w{n}", job_id=id_) for n in range(8))
        )
        winners = [claim for claim in claims if claim is not None]
        assert len(winners) == 1
        assert winners[0].fence == 1
        assert len(engine.read(store.list_attempts, job.id)) == 1


def test_many_workers_share_a_queue_without_doubles_or_losses(engine):
    jobs = {engine.submit().id for _ in range(24)}

    def work(name: str) -> list[str]:
        mine = []
        while (claim := engine.claim(name)) is not None:
            mine.append(claim.job_id)
        return mine

    shares = at_once(*(lambda n=n: work(f"w{n}") for n in range(6)))
    taken = [job_id for share in shares for job_id in share]
    # skipping locked rows can leave some for the next round, never hand out one twice
    rest = work("last")
    assert Counter(taken + rest) == Counter(jobs)


def test_of_many_workers_one_gets_the_lost_job(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        engine.running(job_id=job.id)
        engine.wait(LEASE_S)
        at_once(
            *(lambda n=n, id_=job.id: engine.claim(f"w{n}", job_id=id_) for n in range(4)),
            engine.sweep,
            engine.sweep,
        )
        engine.claim("last", job_id=job.id)
        after = job_of(engine, job.id)
        assert (after.status, after.fence, after.deaths) == ("queued", 2, 1)
        said = messages(engine, job.id)
        assert said.count("The worker stopped answering; moving job back to queued state") == 1


def test_a_late_owner_and_its_successor_never_both_finish(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        old = engine.running("old")
        engine.wait(LEASE_S)

        def take_over(job_id: str = job.id) -> object:
            claim = engine.claim("new", job_id=job_id)
            if claim is None:
                return None
            return engine.do(service.release, claim, reason=Release.SHUTDOWN, max_attempts=9)

        finished, taken = at_once(lambda old=old: engine.succeed(old), take_over)
        if isinstance(finished, LeaseLost):
            assert taken is None or taken.status == "queued"
            assert job_of(engine, job.id).status == "queued"
            engine.ask(service.cancel, job.id)
        else:
            assert finished.status == "succeeded"
            assert taken is None
        assert len(messages(engine, job.id)) == len(set(messages(engine, job.id)))


def test_cancel_against_success_leaves_one_ending_and_tells_the_truth(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim = engine.running()
        done, asked = at_once(
            lambda claim=claim: engine.succeed(claim),
            lambda job=job: engine.ask(service.cancel, job.id),
        )
        last = job_of(engine, job.id)
        assert done == last
        if last.status == "succeeded":
            assert isinstance(asked, InvalidTransition)
        else:
            assert last.status == "cancelled"
            assert asked.green_state in ("cancelling", "done")
            assert last.result_files == ()


def test_cancel_against_claim(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim, asked = at_once(
            lambda job=job: engine.claim(job_id=job.id),
            lambda job=job: engine.ask(service.cancel, job.id),
        )
        if claim is None:
            assert asked.status == "cancelled"
        else:
            assert asked.green_state == "cancelling"
            assert engine.do(service.heartbeat, claim, lease_s=LEASE_S).cancel
            assert engine.do(service.cancelled, claim).status == "cancelled"


def test_pause_resume_and_cancel_together(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim = engine.running()
        answers = at_once(
            lambda job=job: engine.ask(service.pause, job.id),
            lambda job=job: engine.ask(service.resume, job.id),
            lambda job=job: engine.ask(service.cancel, job.id),
            lambda claim=claim: engine.do(service.paused, claim),
        )
        last = job_of(engine, job.id)
        if last.status == "queued":
            last = engine.ask(service.cancel, job.id)
        assert last.status == "cancelled", answers


def test_a_file_is_not_deleted_under_a_job_that_is_being_submitted(engine):
    for _ in range(ROUNDS):
        file_id = engine.upload()

        def submit(file_id: str = file_id) -> object:
            with engine.database.transaction() as session:
                spec = JobSpec(model="m", training_file=file_id)
                return service.submit(session, tenant="acme", spec=spec, now=engine.now)

        def delete(file_id: str = file_id) -> object:
            with engine.database.transaction() as session:
                return service.delete_file(session, tenant="acme", file_id=file_id, now=engine.now)

        job, deleted = at_once(submit, delete)
        assert isinstance(job, NotFound) != isinstance(deleted, FileInUse)


def test_events_keep_their_order_and_lose_none(engine):
    job = engine.submit()
    claim = engine.running()
    before = len(messages(engine, job.id))
    at_once(
        *(
            lambda n=n: engine.do(service.append_event, claim, level="info", message=f"event {n}")
            for n in range(12)
        )
    )
    assert sorted(messages(engine, job.id)[before:]) == sorted(f"event {n}" for n in range(12))


def test_the_same_window_written_by_many_counts_once(engine):
    job = engine.submit()
    claim = engine.running()
    samples = [sample(5 * n, energy_j=1.0) for n in range(10)]
    at_once(
        *(
            lambda n=n: engine.do(
                service.record_energy, claim, samples[n:] + samples[:n], timeless=True
            )
            for n in range(6)
        )
    )
    assert job_of(engine, job.id).energy_j == 10.0
    assert len(engine.read(store.list_energy, job.id)) == 10


def test_a_checkpoint_written_twice_at_once_is_one(engine):
    job = engine.submit()
    claim = engine.running()
    one, two = at_once(*[lambda: engine.do(service.record_checkpoint, claim, checkpoint(3))] * 2)
    assert one == two
    assert messages(engine, job.id).count("Checkpoint created at step 3") == 1


def test_one_effect_for_a_request_sent_many_times(engine: Engine):
    file_id = engine.upload()

    def request() -> str:
        with engine.database.transaction() as session:
            where = {"tenant": "acme", "route": "POST /jobs", "key": "k"}
            stored = service.begin_idempotent(
                session, **where, body_sha256="a" * 64, now=engine.now
            )
            if stored is not None:
                return stored.body
            spec = JobSpec(model="m", training_file=file_id)
            job = service.submit(session, tenant="acme", spec=spec, now=engine.now)
            service.finish_idempotent(session, **where, status_code=200, body=job.id)
            return job.id

    answers = at_once(*[request] * 8)
    assert len(set(answers)) == 1
    assert [job.id for job in engine.read(store.list_jobs, "acme").items] == answers[:1]


def test_a_model_is_deleted_or_a_job_starts_from_it_never_both(engine):
    for number in range(ROUNDS):
        engine.submit()
        claim = engine.running()
        kept = engine.do(service.record_checkpoint, claim, checkpoint(3))
        model_id = engine.succeed(claim).fine_tuned_model
        base = (model_id, kept.model)[number % 2]
        spec = JobSpec(model=base, training_file=engine.upload())
        deleted, started = at_once(
            lambda model_id=model_id: delete_model(engine, model_id),
            lambda spec=spec: engine.submit(spec),
        )
        if isinstance(deleted, ModelInUse):
            assert started.spec.model == base
            engine.ask(service.cancel, started.id)
        else:
            assert isinstance(started, ModelNotFound)


def test_a_checkpoint_is_deleted_or_a_job_starts_from_it_never_both(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim = engine.running(job_id=job.id)
        kept = engine.do(service.record_checkpoint, claim, checkpoint(3))
        engine.do(service.fail, claim, code="nan_loss", message="It diverged.")
        spec = JobSpec(model=kept.model, training_file=engine.upload())
        deleted, started = at_once(
            lambda model=kept.model: delete_checkpoint(engine, model),
            lambda spec=spec: engine.submit(spec),
        )
        left = [row.model for row in engine.read(store.list_checkpoints, "acme", job.id).items]
        if isinstance(deleted, ModelInUse):
            assert (started.spec.model, left) == (kept.model, [kept.model])
            engine.ask(service.cancel, started.id)
        else:
            assert isinstance(started, ModelNotFound)
            assert left == []


def test_a_checkpoint_is_deleted_only_after_its_jobs_end(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim = engine.running(job_id=job.id)
        kept = engine.do(service.record_checkpoint, claim, checkpoint(3))
        deleted, ended = at_once(
            lambda model=kept.model: delete_checkpoint(engine, model),
            lambda claim=claim: engine.succeed(claim),
        )
        assert ended.status == "succeeded"
        left = engine.read(store.list_checkpoints, "acme", job.id).items
        assert len(left) == isinstance(deleted, ModelInUse)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)  # SQLite has but one writer
def test_a_job_that_ends_does_not_wait_for_who_starts_from_its_checkpoint(engine):
    claim = engine.running(job_id=engine.submit().id)
    new = replace(checkpoint(3), state_files=("optimizer.safetensors",))
    kept = engine.do(service.record_checkpoint, claim, new)
    spec = JobSpec(model=kept.model, training_file=engine.upload())
    with engine.database.transaction() as session:
        service.submit(session, tenant="acme", spec=spec, now=engine.now)
        assert engine.succeed(claim).status == "succeeded"


def delete_checkpoint(engine: Engine, model: str) -> object:
    with engine.database.transaction() as session:
        return service.delete_checkpoint(session, tenant="acme", model=model, now=engine.now)


def delete_model(engine: Engine, model_id: str) -> object:
    with engine.database.transaction() as session:
        return service.delete_model(session, tenant="acme", model_id=model_id, now=engine.now)


def test_a_file_expires_or_a_job_reads_it_never_both(engine):
    """The API's clock may be behind the database's."""
    for _ in range(ROUNDS):
        file_id = engine.upload(expires_at=engine.now + timedelta(seconds=10))
        spec = JobSpec(model="m", training_file=file_id)
        late = replace(engine, now=engine.now + timedelta(seconds=10))
        _, started = at_once(late.sweep, lambda spec=spec: engine.submit(spec))
        late.sweep()
        keys = [item.key for item in late.read(store.list_discarded, now=late.now, limit=100)]
        is_gone = f"files/{file_id}" in keys
        assert is_gone == isinstance(started, NotFound)
        if not is_gone:
            assert late.read(store.get_held_file, "acme", file_id).id == file_id


def test_a_checkpoint_is_pruned_or_a_job_starts_from_it_never_both(engine):
    for _ in range(ROUNDS):
        job = engine.submit()
        claim = engine.running(job_id=job.id)
        old, *_ = [
            engine.do(service.record_checkpoint, claim, checkpoint(step, is_milestone=False))
            for step in (1, 2)
        ]
        spec = JobSpec(model=old.model, training_file=engine.upload())
        newer = checkpoint(3, is_milestone=False)
        _, started = at_once(
            lambda claim=claim, newer=newer: engine.do(service.record_checkpoint, claim, newer),
            lambda spec=spec: engine.submit(spec),
        )
        page = engine.read(store.list_checkpoints, "acme", job.id)
        is_gone = old.model not in [row.model for row in page.items]
        assert is_gone == isinstance(started, ModelNotFound)
        engine.succeed(claim)


def test_a_key_taken_in_a_transaction_of_its_own_shuts_out_the_second(engine):
    def begin() -> StoredReply | None:
        with engine.database.transaction() as session:
            return service.begin_idempotent(
                session,
                tenant="acme",
                route="POST /files",
                key="k",
                body_sha256="a" * 64,
                now=engine.now,
            )

    answers = at_once(*[begin] * 4)
    assert answers.count(None) == 1
    assert sum(isinstance(answer, IdempotencyInProgress) for answer in answers) == 3


def test_many_tellers_of_one_fact(engine):
    def tell(number: int) -> None:
        with engine.database.transaction() as session:
            store.touch_worker(session, "w", now=engine.now, slots=number)
            store.put_profile_minimum(session, "m", 0.9 - number / 100, now=engine.now)

    at_once(*(lambda n=n: tell(n) for n in range(8)))
    assert engine.read(store.get_profile_minimum, "m") == pytest.approx(0.83)
    workers = engine.read(store.live_workers, now=engine.now, within_s=60)
    assert [worker.name for worker in workers] == ["w"]
    assert replace(workers[0], slots=0).seen_at == engine.now
