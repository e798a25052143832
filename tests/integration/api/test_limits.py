"""What one organization may have under way and stored, as the client sees it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from core.settings import Settings

Lines = Callable[[int], bytes]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_active_jobs": 2})


def test_jobs_beyond_the_limit_are_a_quota_until_some_end(
    client: openai.OpenAI, rival: openai.OpenAI, chat_lines: Lines
) -> None:
    def submit(by: openai.OpenAI, key: str) -> str:
        file = by.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune")
        headers = {"Idempotency-Key": key}
        job = by.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_headers=headers)
        return job.id

    first, _ = submit(client, "a"), submit(client, "b")
    with pytest.raises(openai.RateLimitError) as refused:
        submit(client, "c")
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert refused.value.param is None
    assert "at most 2" in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert submit(rival, "c")
    client.fine_tuning.jobs.cancel(first)
    assert submit(client, "d")


@pytest.fixture
def small_store(app: FastAPI) -> None:
    held = app.state.services
    settings = held.settings.model_copy(update={"max_stored_bytes": 200_000})
    app.state.services = replace(held, settings=settings)


def lines(n_bytes: int) -> io.BytesIO:
    """Some chat, and a comment of spaces to have exactly so many bytes."""
    line = (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    return io.BytesIO(line + b" " * (n_bytes - len(line) - 1) + b"\n")


def assert_no_room(refused: pytest.ExceptionInfo[openai.RateLimitError], *parts: str) -> None:
    error = refused.value
    assert (error.code, error.type, error.param) == ("insufficient_quota",) * 2 + (None,)
    assert error.response.headers["x-should-retry"] == "false"
    for part in (*parts, "200000", "delete files"):
        assert part in error.message


@pytest.mark.usefixtures("small_store")
def test_bytes_beyond_the_limit_are_a_quota_until_files_go(
    client: openai.OpenAI, rival: openai.OpenAI, settings: Settings
) -> None:
    def create(by: openai.OpenAI, n_bytes: int) -> str:
        return by.files.create(file=lines(n_bytes), purpose="fine-tune").id

    def announce(by: openai.OpenAI, n_bytes: int) -> str:
        named = {"filename": "t.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        return by.uploads.create(bytes=n_bytes, **named).id

    first = create(client, 100_000)
    upload = announce(client, 60_000)
    # over by less than a form's wrapping may take: told by what was stored, which is gone again
    with pytest.raises(openai.RateLimitError) as refused:
        create(client, 60_000)
    assert_no_room(refused, "160000 bytes stored", "60000 more")
    folder = settings.home / "objects" / "files"
    assert [path.name for path in folder.iterdir() if path.is_file()] == [first]
    with pytest.raises(openai.RateLimitError) as refused:
        announce(client, 40_001)
    assert_no_room(refused, "160000 bytes stored", "40001 more")
    assert create(rival, 150_000)
    # of an upload only what is sent again is more than what was announced
    client.uploads.parts.create(upload, data=b"x" * 60_000)
    with pytest.raises(openai.RateLimitError) as refused:
        client.uploads.parts.create(upload, data=b"x" * 60_000)
    assert_no_room(refused, "60000 more")
    client.files.delete(first)
    client.uploads.cancel(upload)
    assert create(client, 200_000)


@pytest.mark.usefixtures("small_store")
def test_a_file_that_cannot_be_kept_is_refused_before_it_is_read(
    http: TestClient, new_key: Callable[..., str], client: openai.OpenAI
) -> None:
    client.files.create(file=lines(150_000), purpose="fine-tune")

    def post(n_bytes: int, **headers: str) -> httpx.Response:
        """A body that is no form, as whoever reads it finds out."""
        form = {"content-type": "multipart/form-data; boundary=x"}
        key = {"authorization": f"Bearer {new_key()}"}
        return http.post("/v1/files", content=b" " * n_bytes, headers=form | key | headers)

    refused = post(150_000)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert "150000 bytes stored" in refused.json()["error"]["message"]
    assert post(100_000).status_code == 400
    # may be a repetition, whose answer is known once it was read
    assert post(150_000, **{"x-stainless-retry-count": "1"}).status_code == 400
    assert post(150_000, **{"idempotency-key": "k"}).status_code == 400


@pytest.mark.usefixtures("small_store")
def test_a_file_that_was_kept_is_answered_again_however_full_the_store(
    client: openai.OpenAI,
) -> None:
    def create(key: str) -> str:
        headers = {"Idempotency-Key": key}
        return client.files.create(
            file=lines(150_000), purpose="fine-tune", extra_headers=headers
        ).id

    assert create("a") == create("a")
    with pytest.raises(openai.RateLimitError):
        create("b")
