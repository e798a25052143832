"""Files in parts, on both databases: what ends an upload ends it once, and leaves its parts to be
removed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from core.errors import Conflict, InvalidInput, NotFound
from core.jobs import ids, service, store
from core.jobs.records import NewFile
from core.jobs.tables import File, Upload, UploadPart
from core.jobs.uploads import MAX_PARTS, UPLOAD_S, UploadRecord, check_room
from tests.integration.jobs.engine import Engine


def begin(engine: Engine) -> UploadRecord:
    with engine.database.transaction() as session:
        return service.create_upload(
            session,
            tenant="acme",
            filename="train.jsonl",
            n_bytes=10,
            file_expires_after_s=None,
            now=engine.now,
        )


def add(engine: Engine, upload_id: str, n_bytes: int = 10, tenant: str = "acme") -> str:
    part_id = ids.new_id(ids.PART)
    with engine.database.transaction() as session:
        part = service.add_part(
            session,
            tenant=tenant,
            upload_id=upload_id,
            part_id=part_id,
            object_key=f"uploads/{upload_id}/{part_id}",
            n_bytes=n_bytes,
            now=engine.now,
        )
    return part.object_key


def complete(engine: Engine, upload_id: str) -> str:
    file_id = ids.new_id(ids.FILE)
    file = NewFile(
        id=file_id,
        filename="train.jsonl",
        purpose="fine-tune",
        n_bytes=10,
        sha256="0" * 64,
        object_key=f"files/{file_id}",
    )
    with engine.database.transaction() as session:
        service.complete_upload(
            session, tenant="acme", upload_id=upload_id, file=file, now=engine.now
        )
    return file_id


def cancel(engine: Engine, upload_id: str) -> None:
    with engine.database.transaction() as session:
        service.cancel_upload(session, tenant="acme", upload_id=upload_id, now=engine.now)


def discarded(engine: Engine) -> set[str]:
    return {item.key for item in engine.read(store.list_discarded, now=engine.now, limit=100)}


@pytest.mark.parametrize("end", [complete, cancel])
def test_what_ends_an_upload_discards_its_parts(engine: Engine, end):
    upload, other = begin(engine), begin(engine)
    keys = {add(engine, upload.id) for _ in range(3)}
    kept = add(engine, other.id)
    end(engine, upload.id)
    assert discarded(engine) == keys
    assert engine.read(store.list_parts, upload.id) == ()
    with pytest.raises(Conflict):
        add(engine, upload.id)
    assert [part.object_key for part in engine.read(store.list_parts, other.id)] == [kept]


def test_uploads_past_their_hour_are_dropped_so_many_at_a_time_and_a_day_later_forgotten(engine):
    keys = {add(engine, begin(engine).id) for _ in range(3)}
    engine.wait(UPLOAD_S - 1)
    late = begin(engine)
    add(engine, late.id)
    engine.sweep()
    assert discarded(engine) == set()
    engine.wait(1)
    engine.sweep(limit=2)
    assert len(discarded(engine)) == 2
    engine.sweep(limit=2)
    assert discarded(engine) == keys
    assert engine.read(store.get_upload, "acme", late.id).status == "pending"
    complete(engine, late.id)
    engine.wait(90_000)
    engine.sweep()
    with engine.database.read() as session:
        assert list(session.scalars(select(Upload.id))) == []
        assert list(session.scalars(select(UploadPart.id))) == []
    with pytest.raises(NotFound):
        engine.read(store.get_upload, "acme", late.id)


def test_another_tenant_adds_nothing(engine):
    upload = begin(engine)
    with pytest.raises(NotFound):
        add(engine, upload.id, tenant="rival")
    with pytest.raises(NotFound):
        engine.read(store.get_upload, "rival", upload.id)


def test_one_of_many_completions_makes_a_file_and_no_part_gets_in_later(engine):
    for _ in range(5):
        upload = begin(engine)
        add(engine, upload.id, 1)

        def attempt(number: int, upload_id: str = upload.id) -> bool:
            try:
                if number % 2:
                    add(engine, upload_id, 1)
                    return False
                complete(engine, upload_id)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(attempt, range(6))) == 1
        assert engine.read(store.list_parts, upload.id) == ()
    with engine.database.read() as session:
        assert len(list(session.scalars(select(File.id)))) == 5


def test_spare_parts_are_not_without_end(engine):
    upload = begin(engine)
    for _ in range(3):
        add(engine, upload.id)
    with pytest.raises(InvalidInput, match="31 bytes"):
        add(engine, upload.id, 1)
    check_room(upload, n_parts=2, held_bytes=20, n_bytes=10)
    with pytest.raises(InvalidInput, match="31 bytes, more than 3 times the 10"):
        check_room(upload, n_parts=3, held_bytes=21, n_bytes=10)
    with pytest.raises(InvalidInput, match="10000 parts"):
        check_room(upload, n_parts=MAX_PARTS, held_bytes=1, n_bytes=1)
