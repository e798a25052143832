"""Below the routes: callers that hang up, paths with a slash too many, form fields nobody knows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
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


def test_head_is_answered_wherever_get_is(
    app: FastAPI, http: TestClient, client: openai.OpenAI, chat_lines: Lines
) -> None:
    """RFC 9110, 9.3.2; most uptime monitors and load balancers send it. It was 405, so: down."""
    file_id = client.files.create(file=chat_lines(12), purpose="fine-tune").id
    job_id = client.fine_tuning.jobs.create(
        model="tiny", training_file=file_id, extra_body={"green": {"rho": 0.5}}
    ).id
    ids = {"file_id": file_id, "job_id": job_id, "model": "org/base"}
    described = http.get("/openapi.json").json()["paths"]
    paths = [path.format(**ids) for path, methods in described.items() if "get" in methods]
    assert len(paths) >= 13
    for path in [*paths, "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/v1/uploads"]:
        _compare_head_with_get(app, path, client.api_key)
        _compare_head_with_get(app, path, "gt-nobody")
    assert not any("head" in methods for methods in described.values())


def _compare_head_with_get(app: FastAPI, path: str, key: str) -> None:
    (told, *rest), (asked, *pieces) = (_sent(app, method, path, key) for method in ("HEAD", "GET"))
    assert told["status"] == asked["status"], path
    assert _lasting(told) == _lasting(asked), path
    assert b"".join(message.get("body", b"") for message in rest) == b"", path
    assert any(message.get("body") for message in pieces), path


def _lasting(start: Any) -> dict[bytes, bytes]:
    """Headers but those that no two answers share."""
    own = (b"x-request-id", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
    return {name: value for name, value in start["headers"] if name not in own}


def _sent(app: FastAPI, method: str, path: str, key: str) -> list[Any]:
    """What leaves the application: servers and clients drop a HEAD's body by themselves."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"zone=FR" if path == "/v1/green/intensity" else b"",
        "headers": [(b"authorization", f"Bearer {key}".encode())],
    }
    heard = [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        # downloads listen whether the caller hangs up, and this one does not
        return heard.pop() if heard else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


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
    [
        ("/v1/files", "GET, HEAD, POST"),
        ("/v1/files/file-1", "DELETE, GET, HEAD"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/uploads", "POST"),
        ("/docs", "GET, HEAD"),
        ("/docs/assets/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_lacks_is_told_all_that_it_has(
    http: TestClient, path: str, allowed: str
) -> None:
    """The framework names those of the first of the path's routes."""
    refused = http.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert refused.json()["error"]["message"] == f"PUT is not possible here; possible: {allowed}."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"model": "tiny", "model": "org/base"}', "model"),
        (rb'{"green": {"zone": "FR", "rho": 1, "rho": 0.5}}', "green.rho"),
        (rb'{"green": {"rho": 1, "rho": 0.5}, "green": {}}', "green"),
        (
            rb'{"integrations": [{}, {"wandb": {"tags": 1, "tags": 1}}]}',
            "integrations.1.wandb.tags",
        ),
        (rb'{"metadata": {"a": "", "\u0061": ""}}', "metadata.a"),
        (rb'{"\ud800": 1, "\ud800": 1}', r"\ud800"),
    ],
)
def test_a_key_that_stands_twice_is_refused(
    http: TestClient, client: openai.OpenAI, body: bytes, param: str
) -> None:
    """The last one won without a word, so that a job was not what its author had read in it."""
    answer = _post_json(http, "/v1/fine_tuning/jobs", client.api_key, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert error["message"] == f"{param} stands twice in the request body; keep one."


def test_every_json_body_is_read_so(http: TestClient, client: openai.OpenAI) -> None:
    described = http.get("/openapi.json").json()["paths"]
    taking = [
        path
        for path, methods in described.items()
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    ]
    assert len(taking) == 4
    for path in taking:
        answer = _post_json(http, path, client.api_key, b'{"a": 1, "a": 1}')
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "a"), path


def _post_json(http: TestClient, path: str, key: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    return http.post(path, content=body, headers=headers)
