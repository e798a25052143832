"""Content of files in parts, as download clients ask for it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from core.jobs.store import get_file
from core.objects.store import ObjectStore


@pytest.fixture
def data(chat_lines: Callable[[int], bytes]) -> bytes:
    return chat_lines(40)


@pytest.fixture
def get(client: openai.OpenAI, http: TestClient, data: bytes) -> Callable[..., httpx.Response]:
    """GET of the uploaded file's content with these headers."""
    file_id = client.files.create(file=io.BytesIO(data), purpose="fine-tune").id

    def ask(**headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return http.get(
            f"/v1/files/{file_id}/content",
            headers={"authorization": f"Bearer {client.api_key}", **sent},
        )

    return ask


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_broken_download_goes_on_where_it_ended(
    get: Callable[..., httpx.Response], data: bytes, cut: int
) -> None:
    whole = get()
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["accept-ranges"] == "bytes"
    rest = get(range=f"bytes={cut}-", if_range=whole.headers["etag"])
    assert (rest.status_code, data[:cut] + rest.content) == (206, data)
    assert rest.headers["content-range"] == f"bytes {cut}-{len(data) - 1}/{len(data)}"
    assert rest.headers["content-length"] == str(len(data) - cut)
    assert rest.headers["etag"] == whole.headers["etag"]
    assert rest.headers["content-disposition"] == whole.headers["content-disposition"]


def test_first_and_last_bytes(get: Callable[..., httpx.Response], data: bytes) -> None:
    assert get(range="bytes=0-9").content == data[:10]
    assert get(range="bytes=-7").content == data[-7:]
    assert get(range="bytes=5-5").content == data[5:6]


def test_what_is_no_single_range_gets_the_whole_file(
    get: Callable[..., httpx.Response], data: bytes
) -> None:
    for header in ("bytes=0-1,5-9", "bytes=9-5", "pages=1-2", "nonsense"):
        answer = get(range=header)
        assert (answer.status_code, answer.content) == (200, data), header
        assert "content-range" not in answer.headers
    changed = get(range="bytes=5-", if_range='"another file"')
    assert (changed.status_code, changed.content) == (200, data)


def test_a_range_beyond_the_end(get: Callable[..., httpx.Response], data: bytes) -> None:
    for header in (f"bytes={len(data)}-", "bytes=-0"):
        answer = get(range=header)
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(data)}"
        assert answer.json()["error"]["param"] == "range"


class CountingStore:
    """An `ObjectStore` that counts the bytes that leave it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.n_read = 0
        self.put, self.delete = store.put, store.delete

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return map(self._counted, self._store.get(key, start=start, end=end))

    def _counted(self, piece: bytes) -> bytes:
        self.n_read += len(piece)
        return piece


def test_head_of_a_download_tells_its_size_and_reads_nothing(
    app: FastAPI, client: openai.OpenAI, http: TestClient, data: bytes
) -> None:
    file_id = client.files.create(file=io.BytesIO(data), purpose="fine-tune").id
    path = f"/v1/files/{file_id}/content"
    http.headers["authorization"] = f"Bearer {client.api_key}"
    whole = http.get(path)
    store = CountingStore(app.state.services.objects)
    app.state.services = dataclasses.replace(app.state.services, objects=store)
    told = http.head(path)
    assert (told.status_code, told.content) == (200, b"")
    for name in ("content-length", "accept-ranges", "etag", "content-type", "content-disposition"):
        assert told.headers[name] == whole.headers[name]
    part = http.head(path, headers={"range": "bytes=5-"})
    assert (part.status_code, part.headers["content-length"]) == (206, str(len(data) - 5))
    assert http.head(path, headers={"range": f"bytes={len(data)}-"}).status_code == 416
    assert store.n_read == 0
    with app.state.services.database.read() as session:
        store.delete(get_file(session, "acme", file_id, now=datetime.now(UTC)).object_key)
    assert http.head(path).status_code == http.get(path).status_code == 404
