"""How many jobs of one tenant may be under way, and how many bytes stored."""

from __future__ import annotations

import dataclasses

import pytest

from core.errors import LimitExceeded
from core.jobs import ids, service, store
from core.jobs.store.stored import stored_bytes
from core.jobs.uploads import UPLOAD_S
from core.spec import JobSpec
from tests.integration.jobs.engine import Engine, result_file
from tests.integration.jobs.test_races import at_once

ROUNDS = 3


def test_a_tenant_has_so_many_unfinished_jobs_and_no_more(engine: Engine) -> None:
    running, queued = engine.submit(most_active=2), engine.submit(most_active=2)
    engine.running(job_id=running.id)
    engine.ask(service.pause, engine.running(job_id=queued.id).job_id)
    with pytest.raises(LimitExceeded, match="2 jobs of this organization") as refused:
        engine.submit(most_active=2)
    assert refused.value.code == "insufficient_quota"
    # another tenant's do not count, and what has ended does not
    assert engine.submit(tenant="rival", most_active=1).id
    other = engine.submit(most_active=3)
    engine.ask(service.cancel, other.id)
    with pytest.raises(LimitExceeded):
        engine.submit(most_active=2)
    assert engine.submit(most_active=3).id


def test_submitted_at_once_no_more_than_so_many_are_accepted(engine: Engine) -> None:
    for number in range(ROUNDS):
        tenant = f"tenant-{number}"
        spec = JobSpec(model="m", training_file=engine.upload(tenant))
        answers = at_once(
            *(lambda s=spec, t=tenant: engine.submit(s, tenant=t, most_active=3) for _ in range(8))
        )
        assert sum(isinstance(answer, LimitExceeded) for answer in answers) == 5
        assert len(engine.read(store.list_jobs, tenant).items) == 3


def announce(engine: Engine, n_bytes: int, most_bytes: int, tenant: str = "acme") -> str:
    with engine.database.transaction() as session:
        return service.create_upload(
            session,
            tenant=tenant,
            filename="train.jsonl",
            n_bytes=n_bytes,
            file_expires_after_s=None,
            most_bytes=most_bytes,
            now=engine.now,
        ).id


def add_part(engine: Engine, upload_id: str, n_bytes: int, most_bytes: int) -> None:
    part_id = ids.new_id(ids.PART)
    with engine.database.transaction() as session:
        service.add_part(
            session,
            tenant="acme",
            upload_id=upload_id,
            part_id=part_id,
            object_key=f"uploads/{upload_id}/{part_id}",
            n_bytes=n_bytes,
            most_bytes=most_bytes,
            now=engine.now,
        )


def complete(engine: Engine, upload_id: str, n_bytes: int) -> None:
    file = dataclasses.replace(result_file(1), purpose="fine-tune", n_bytes=n_bytes)
    with engine.database.transaction() as session:
        service.complete_upload(
            session, tenant="acme", upload_id=upload_id, file=file, now=engine.now
        )


def delete(engine: Engine, file_id: str) -> None:
    with engine.database.transaction() as session:
        service.delete_file(session, tenant="acme", file_id=file_id, now=engine.now)


def stored(engine: Engine) -> int:
    return engine.read(stored_bytes, "acme")


def test_a_tenant_stores_so_many_bytes_and_no_more(engine: Engine) -> None:
    first = engine.upload(n_bytes=60, most_bytes=100)
    engine.upload(n_bytes=40, most_bytes=100)
    with pytest.raises(
        LimitExceeded, match=r"has 100 bytes stored, .* with 1 more .* the 100"
    ) as no:
        engine.upload(n_bytes=1, most_bytes=100)
    assert no.value.code == "insufficient_quota"
    assert "delete files" in no.value.message
    assert engine.upload("rival", n_bytes=100, most_bytes=100)
    delete(engine, first)
    assert engine.upload(n_bytes=60, most_bytes=100)


def test_results_count_but_are_never_refused(engine: Engine) -> None:
    engine.submit(JobSpec(model="m", training_file=engine.upload(n_bytes=10, most_bytes=10)))
    assert len(engine.succeed(engine.running(), n_files=2).result_files) == 2
    assert stored(engine) == 10 + 2 * 5


def test_what_an_upload_announced_counts_until_it_ends(engine: Engine) -> None:
    upload_id = announce(engine, 70, most_bytes=100)
    for more in (
        lambda: announce(engine, 31, 100),
        lambda: engine.upload(n_bytes=31, most_bytes=100),
    ):
        with pytest.raises(LimitExceeded, match="70 bytes stored"):
            more()
    # its parts are what was announced, whatever else has come and whatever the limit is now
    engine.upload(n_bytes=30, most_bytes=100)
    add_part(engine, upload_id, 40, most_bytes=50)
    add_part(engine, upload_id, 30, most_bytes=50)
    assert stored(engine) == 100
    # ... but not those that are sent again
    with pytest.raises(LimitExceeded, match=r"100 bytes stored, .* with 30 more"):
        add_part(engine, upload_id, 30, most_bytes=129)
    add_part(engine, upload_id, 30, most_bytes=130)
    assert stored(engine) == 130
    complete(engine, upload_id, 70)
    assert stored(engine) == 100


def test_an_upload_that_was_given_up_leaves_its_room(engine: Engine) -> None:
    given_up, forgotten = announce(engine, 50, 100), announce(engine, 50, 100)
    with engine.database.transaction() as session:
        service.cancel_upload(session, tenant="acme", upload_id=given_up, now=engine.now)
    assert stored(engine) == 50
    engine.wait(UPLOAD_S)
    add = announce(engine, 50, 100)
    engine.sweep()
    assert stored(engine) == 50
    assert add != forgotten


def test_stored_at_once_no_more_than_so_many_bytes_are_kept(engine: Engine) -> None:
    for number in range(ROUNDS):
        tenant = f"tenant-{number}"
        files = (lambda t=tenant: engine.upload(t, n_bytes=10, most_bytes=35) for _ in range(5))
        uploads = (lambda t=tenant: announce(engine, 10, 35, t) for _ in range(5))
        answers = at_once(*files, *uploads)
        assert sum(isinstance(answer, LimitExceeded) for answer in answers) == 7, answers
        assert engine.read(stored_bytes, tenant) == 30
