"""Files in parts through the unmodified openai client in strict mode."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.uploads import FORM_OVERHEAD_BYTES, MAX_PART_BYTES
from core.errors import StorageUnavailable
from core.jobs import service, store
from core.jobs.database import Database
from core.objects.local import LocalStore
from worker.tidying import tidy

Lines = Callable[[int], bytes]


@pytest.fixture
def objects(app: FastAPI) -> Path:
    home: Path = app.state.services.settings.home
    return home / "objects"


@pytest.fixture
def pass_time(app: FastAPI, database: Database) -> Callable[[timedelta], None]:
    """Turn the server's clock, and sweep as a worker would."""

    def turn(by: timedelta) -> None:
        held = app.state.services
        now = held.clock() + by
        app.state.services = replace(held, clock=lambda: now)
        with database.transaction() as session:
            service.sweep(session, now=now, max_attempts=3)

    return turn


def begin(client: openai.OpenAI, n_bytes: int, **options: Any) -> Any:
    wanted: dict[str, Any] = {
        "bytes": n_bytes,
        "filename": "train.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    }
    return client.uploads.create(**wanted | options)


def send(client: openai.OpenAI, upload_id: str, *parts: bytes) -> list[str]:
    return [client.uploads.parts.create(upload_id, data=part).id for part in parts]


def stored(objects: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (objects / folder).rglob("*") if path.is_file())


def assert_over(client: openai.OpenAI, upload_id: str, part_ids: Iterable[str], word: str) -> None:
    """Neither parts nor completion: 409, and the client is told not to try again."""
    for ask in (
        lambda: client.uploads.parts.create(upload_id, data=b"x"),
        lambda: client.uploads.complete(upload_id, part_ids=list(part_ids)),
    ):
        with pytest.raises(openai.ConflictError, match=word) as caught:
            ask()
        assert caught.value.code == "invalid_state_transition"
        assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_chunked_file_is_a_file_like_any_other(
    client: openai.OpenAI, chat_lines: Lines, tmp_path: Path, objects: Path, database: Database
) -> None:
    data = chat_lines(200)
    path = tmp_path / "train.jsonl"
    path.write_bytes(data)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=1000
    )
    assert (done.status, done.bytes, done.filename) == ("completed", len(data), "train.jsonl")
    file: Any = done.file
    assert (file.status, file.bytes, file.purpose) == ("processed", len(data), "fine-tune")
    assert file.validation["n_examples"] == 200
    assert client.files.retrieve(file.id).to_dict() == file.to_dict()
    assert client.files.content(file.id).read() == data
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert job.status == "validating_files"
    # the parts are no longer needed
    assert len(stored(objects, "uploads")) == -(-len(data) // 1000)
    tidy(database, LocalStore(objects))
    assert stored(objects, "uploads") == []
    assert client.files.content(file.id).read() == data


def test_from_memory_with_its_checksum(client: openai.OpenAI, chat_lines: Lines) -> None:
    data = chat_lines(12)
    done = client.uploads.upload_file_chunked(
        file=data,
        filename="x.jsonl",
        bytes=len(data),
        mime_type="text/jsonl",
        purpose="fine-tune",
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == data


def test_an_upload_may_be_larger_than_what_is_sent_in_one_piece(
    client: openai.OpenAI, app: FastAPI
) -> None:
    data = b"x" * (app.state.services.settings.max_file_bytes + 1)
    upload = begin(client, len(data))
    done = client.uploads.complete(upload.id, part_ids=send(client, upload.id, data))
    assert done.file is not None
    assert client.files.content(done.file.id).read() == data


def test_the_list_decides_which_parts_count_and_in_what_order(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    data = chat_lines(20)
    middle = len(data) // 2
    upload = begin(client, len(data), expires_after={"anchor": "created_at", "seconds": 3600})
    assert (upload.status, upload.file, upload.purpose) == ("pending", None, "fine-tune")
    assert upload.expires_at - upload.created_at == 3600
    part = client.uploads.parts.create(upload.id, data=data[middle:])
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    # sent again, as a client does that missed the answer; and one that is not listed
    first, _, again = send(client, upload.id, data[:middle], b"spare", data[middle:])
    done = client.uploads.complete(upload.id, part_ids=[first, again])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == data
    assert done.file.expires_at is not None
    assert done.file.expires_at - done.file.created_at == 3600


def test_mistakes_in_the_content_are_reported_not_refused(client: openai.OpenAI) -> None:
    upload = begin(client, 6)
    done: Any = client.uploads.complete(
        upload.id, part_ids=send(client, upload.id, b"no ", b"js\n")
    )
    assert (done.status, done.file.status) == ("completed", "error")
    assert done.file.status_details.startswith("line 1: ")


def test_what_does_not_fit_is_refused_and_may_be_mended(
    client: openai.OpenAI, chat_lines: Lines, objects: Path
) -> None:
    data = chat_lines(12)
    upload, other = begin(client, len(data)), begin(client, 1)
    head, tail = send(client, upload.id, data[:100], data[100:])
    [foreign] = send(client, other.id, b"x")
    cases: list[tuple[list[str], str | None, str]] = [
        ([head], None, "part_ids"),
        ([head, tail, tail], None, "part_ids"),
        ([head, foreign], None, "part_ids"),
        ([head, "part_" + "0" * 24], None, "part_ids"),
        ([head, "\x00"], None, "part_ids"),
        ([], None, "part_ids"),
        ([head, tail], "0" * 32, "md5"),
        ([tail, head], hashlib.md5(data, usedforsecurity=False).hexdigest(), "md5"),
        ([head, tail], "no checksum", "md5"),
    ]
    for part_ids, md5, param in cases:
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(
                upload.id, part_ids=part_ids, **({} if md5 is None else {"md5": md5})
            )
        assert (caught.value.code, caught.value.param) == ("invalid_value", param), part_ids
    assert stored(objects, "files") == []
    assert client.uploads.complete(upload.id, part_ids=[head, tail]).status == "completed"
    assert len(stored(objects, "files")) == 1


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"bytes": 0}, 400, "invalid_value", "bytes"),
        ({"bytes": "12"}, 400, "invalid_value", "bytes"),
        ({"bytes": 8 * 1024**3 + 1}, 413, "file_too_large", "bytes"),
        ({"bytes": 10**30}, 413, "file_too_large", "bytes"),
        ({"purpose": "batch"}, 400, "invalid_file_purpose", "purpose"),
        ({"filename": ""}, 400, "invalid_value", "filename"),
        ({"filename": "x" * 256}, 400, "invalid_value", "filename"),
        ({"filename": "a\x00b"}, 400, "invalid_value", "filename"),
        ({"mime_type": ""}, 400, "invalid_value", "mime_type"),
        ({"mime_type": openai.omit}, 400, "missing_required_parameter", "mime_type"),
        ({"extra_body": {"size": 3}}, 400, "unknown_parameter", "size"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            400,
            "invalid_value",
            "expires_after.seconds",
        ),
    ],
)
def test_what_cannot_be_announced(
    client: openai.OpenAI, options: dict[str, Any], status: int, code: str, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        begin(client, 10, **options)
    raised = caught.value
    assert (raised.status_code, raised.code, raised.param) == (status, code, param)


def test_parts_have_a_size(client: openai.OpenAI, http: TestClient, objects: Path) -> None:
    upload = begin(client, 10)
    with pytest.raises(openai.BadRequestError) as empty:
        client.uploads.parts.create(upload.id, data=b"")
    assert empty.value.param == "data"
    for n_bytes in (MAX_PART_BYTES + 1, MAX_PART_BYTES + FORM_OVERHEAD_BYTES + 1):
        with pytest.raises(openai.APIStatusError) as large:
            client.uploads.parts.create(upload.id, data=b"x" * n_bytes)
        assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    # each part three times, and no more
    send(client, upload.id, *[b"0123456789"] * 3)
    with pytest.raises(openai.BadRequestError, match="more than 3 times") as many:
        client.uploads.parts.create(upload.id, data=b"x")
    assert many.value.param == "data"
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = http.post(f"/v1/uploads/{upload.id}/parts", json={}, headers=headers)
    assert answer.json()["error"]["param"] == "data"
    assert len(stored(objects, "uploads")) == 3


def test_a_cancelled_upload_takes_nothing_and_keeps_nothing(
    client: openai.OpenAI, database: Database, objects: Path
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    cancelled = client.uploads.cancel(upload.id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert_over(client, upload.id, parts, "cancelled")
    assert tidy(database, LocalStore(objects)) == 1
    assert stored(objects, "") == []


def test_a_completed_upload_is_over(client: openai.OpenAI) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    client.uploads.complete(upload.id, part_ids=parts)
    assert_over(client, upload.id, parts, "completed")
    with pytest.raises(openai.ConflictError):
        client.uploads.cancel(upload.id)


def test_an_upload_expires_after_an_hour(
    client: openai.OpenAI, database: Database, objects: Path, app: FastAPI, pass_time: Any
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    # before any sweep
    held = app.state.services
    app.state.services = replace(held, clock=lambda: held.clock() + timedelta(seconds=3601))
    assert_over(client, upload.id, parts, "expired")
    assert stored(objects, "uploads") == parts
    app.state.services = held
    pass_time(timedelta(seconds=3500))
    assert len(send(client, upload.id, b"d")) == 1
    pass_time(timedelta(seconds=101))
    assert_over(client, upload.id, parts, "expired")
    with pytest.raises(openai.ConflictError):
        client.uploads.cancel(upload.id)
    with database.read() as session:
        assert store.get_upload(session, "acme", upload.id).status == "expired"
        assert store.list_parts(session, upload.id) == ()
        due = store.list_discarded(session, now=app.state.services.clock(), limit=10)
    assert len(due) == len(stored(objects, "uploads")) == 2
    pass_time(timedelta(days=1, seconds=1))
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel(upload.id)


def test_another_tenants_upload_does_not_exist(
    client: openai.OpenAI, rival: openai.OpenAI, objects: Path
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    for upload_id in (upload.id, "upload_" + "0" * 24, "upload_\x00", "x" * 500):
        for ask in (
            lambda known: rival.uploads.parts.create(known, data=b"abc"),
            lambda known: rival.uploads.complete(known, part_ids=parts),
            rival.uploads.cancel,
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(upload_id)
            assert caught.value.code == "not_found"
    assert stored(objects, "uploads") == parts
    assert client.uploads.complete(upload.id, part_ids=parts).status == "completed"


def test_a_key_without_the_scope_is_refused(http: TestClient, new_key: Callable[..., str]) -> None:
    key = new_key(scopes=frozenset({"jobs"}))
    answer = http.post("/v1/uploads", json={}, headers={"authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


def test_sent_twice_announced_once(client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "k"}
    first = begin(client, 10, extra_headers=headers)
    assert begin(client, 10, extra_headers=headers).to_dict() == first.to_dict()
    with pytest.raises(openai.BadRequestError) as caught:
        begin(client, 11, extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"
    assert begin(client, 10).id != first.id


def test_a_completion_that_the_client_repeats_makes_one_file(
    client: openai.OpenAI, http: TestClient, objects: Path
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")

    def complete(retry_count: int) -> Any:
        headers = {"authorization": f"Bearer {client.api_key}"}
        headers["x-stainless-retry-count"] = str(retry_count)
        url = f"/v1/uploads/{upload.id}/complete"
        return http.post(url, json={"part_ids": parts}, headers=headers)

    first = complete(0)
    assert first.status_code == 200
    assert complete(1).json() == first.json()
    assert complete(0).status_code == 409
    assert len(stored(objects, "files")) == 1


def test_what_ends_while_it_is_joined_leaves_no_file(
    client: openai.OpenAI, app: FastAPI, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    held = app.state.services.objects
    get = type(held).get

    def cancelled_meanwhile(self: Any, key: str, **options: Any) -> Any:
        client.uploads.cancel(upload.id)
        return get(self, key, **options)

    monkeypatch.setattr(type(held), "get", cancelled_meanwhile)
    with pytest.raises(openai.ConflictError):
        client.uploads.complete(upload.id, part_ids=parts)
    assert stored(objects, "files") == []


def test_a_part_that_the_store_lost_is_the_servers_fault(
    client: openai.OpenAI, objects: Path
) -> None:
    upload = begin(client, 3)
    parts = send(client, upload.id, b"abc")
    (objects / "uploads" / upload.id / parts[0]).unlink()
    with pytest.raises(openai.InternalServerError) as caught:
        client.uploads.complete(upload.id, part_ids=parts)
    assert (caught.value.status_code, caught.value.code) == (503, StorageUnavailable.code)


def test_a_client_over_a_file_object(client: openai.OpenAI) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=io.BytesIO(b"abc"))
    assert client.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
