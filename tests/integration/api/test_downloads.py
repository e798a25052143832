"""Content of files in parts, as download clients ask for it."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import openai
import pytest
from fastapi.testclient import TestClient


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
