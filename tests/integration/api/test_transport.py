"""Below the routes: callers that hang up, paths with a slash too many, form fields nobody knows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

Lines = Callable[[int], bytes]
FORM = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"prompt":'


def test_a_caller_who_hangs_up_is_no_fault_of_ours(
    app: FastAPI, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Each broken upload left a traceback and "failed" in the log, at the level of errors."""
    headers = {
        "authorization": f"Bearer {client.api_key}",
        "content-type": "multipart/form-data; boundary=B",
        "content-length": "5000",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
    heard = iter(
        [
            {"type": "http.request", "body": FORM, "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(heard)

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.INFO):
        asyncio.run(app(scope, receive, send))
    assert sent == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert any("POST /v1/files" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_balancers_may_ask_for_health_by_head(http: TestClient, path: str) -> None:
    """What many of them and most uptime monitors send by default; it was 405, so: down."""
    told, asked = http.head(path), http.get(path)
    assert told.status_code == asked.status_code
    assert told.status_code in (200, 503)
    assert told.content == b""


@pytest.mark.parametrize("path", ["/v1/files/", "/v1/fine_tuning/jobs/", "/v1/nowhere"])
def test_a_path_that_is_none_says_so(http: TestClient, client: openai.OpenAI, path: str) -> None:
    """A redirect went to http:// behind a proxy that ends TLS, and an upload met the cap of JSON
    bodies before it: "over 1048576 bytes".
    """
    http.headers["authorization"] = f"Bearer {client.api_key}"
    body = {"files": {"file": b"x" * (1024**2 + 1)}} if "files" in path else {}
    answer = http.post(path, **body, follow_redirects=False)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "not_found"
    assert path in error["message"]


@pytest.mark.parametrize(
    "field", ["expires_after", "expire_after[seconds]", "validate", "expires_after[second]"]
)
def test_a_form_field_that_nobody_knows_is_refused(
    client: openai.OpenAI, http: TestClient, chat_lines: Lines, field: str
) -> None:
    """As in JSON: a file whose expiry was misspelt stayed for ever."""
    http.headers["authorization"] = f"Bearer {client.api_key}"
    answer = http.post(
        "/v1/files",
        files={"file": ("a.jsonl", chat_lines(12))},
        data={"purpose": "fine-tune", field: "3600"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_parameter"
    assert answer.json()["error"]["param"] == field
    assert client.files.list().data == []
    upload = client.uploads.create(
        bytes=10, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    part = http.post(f"/v1/uploads/{upload.id}/parts", files={"data": b"x"}, data={field: "1"})
    assert (part.status_code, part.json()["error"]["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/files", "GET, POST"), ("/v1/files/file-1", "DELETE, GET"), ("/v1/models", "GET")],
)
def test_a_method_that_a_path_lacks_is_told_all_that_it_has(
    http: TestClient, path: str, allowed: str
) -> None:
    """The framework names those of the first of the path's routes."""
    refused = http.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert refused.json()["error"]["message"] == f"PUT is not possible here; possible: {allowed}."
