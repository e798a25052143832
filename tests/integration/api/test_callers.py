"""Who may do what: keys, scopes, tenants. Every route is walked from the OpenAPI document, so a new
route cannot be forgotten."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from core.jobs import keys
from core.jobs.database import Database

Lines = Callable[[int], bytes]
OPEN_ROUTES = {"/health/live", "/health/ready"}


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, methods in app.openapi()["paths"].items():
        if path not in OPEN_ROUTES:
            yield from ((method.upper(), path) for method in methods)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic abc"}, "missing_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"authorization": "Bearer gt-nonsense"}, "invalid_api_key"),
        ({"authorization": b"Bearer \xff\x00"}, "invalid_api_key"),
    ],
)
def test_no_route_answers_without_a_key(
    app: FastAPI, http: TestClient, headers: dict[str, str], code: str
) -> None:
    walked = list(routes(app))
    assert len(walked) >= 17
    for method, path in walked:
        answer = http.request(method, path.replace("{", "").replace("}", ""), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), (method, path)


def test_revoked_and_expired_keys_are_refused(
    app: FastAPI, http: TestClient, database: Database, new_key: Callable[..., str]
) -> None:
    def status_of(key: str) -> int:
        return http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

    revoked = new_key()
    with database.transaction() as session:
        [record] = keys.list_keys(session, tenant="acme")
        keys.revoke(session, tenant="acme", key_id=record.id, now=datetime.now(UTC))
    expiring = new_key(expires_at=datetime.now(UTC) + timedelta(seconds=60))
    assert (status_of(revoked), status_of(expiring)) == (401, 200)
    in_a_minute = datetime.now(UTC) + timedelta(seconds=61)
    app.state.services = replace(app.state.services, clock=lambda: in_a_minute)
    assert status_of(expiring) == 401


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("files", {"/v1/files"}),
        ("jobs", {"/v1/fine_tuning/jobs"}),
        ("models", {"/v1/models"}),
        ("admin", {"/v1/files", "/v1/fine_tuning/jobs", "/v1/models"}),
    ],
)
def test_scopes(
    http: TestClient, new_key: Callable[..., str], scope: str, allowed: set[str]
) -> None:
    headers = {"authorization": f"Bearer {new_key(scopes=[scope])}"}
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models"):
        answer = http.get(path, headers=headers)
        assert answer.status_code == (200 if path in allowed else 403), path
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "insufficient_scope"


def test_organization_header(http: TestClient, new_key: Callable[..., str]) -> None:
    headers = {"authorization": f"Bearer {new_key()}", "openai-project": "anything"}
    own = http.get("/v1/models", headers={**headers, "openai-organization": "acme"})
    other = http.get("/v1/models", headers={**headers, "openai-organization": "rival"})
    assert (own.status_code, other.status_code) == (200, 403)


def test_another_tenants_objects_do_not_exist(
    app: FastAPI, client: openai.OpenAI, rival: openai.OpenAI, http: TestClient, chat_lines: Lines
) -> None:
    file_id = client.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune").id
    job_id = client.fine_tuning.jobs.create(model="tiny", training_file=file_id).id
    upload_id = client.uploads.create(
        bytes=1, filename="x", mime_type="text/jsonl", purpose="fine-tune"
    ).id
    mine = {"file_id": file_id, "job_id": job_id, "upload_id": upload_id}
    nobodys = {name: known[:-24] + "0" * 24 for name, known in mine.items()}
    # what these routes refuse before they look
    bodies: dict[str, dict[str, Any]] = {
        "/v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
        "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_1"]}},
    }
    headers = {"authorization": f"Bearer {rival.api_key}"}
    walked = 0
    for method, path in routes(app):
        if "{" not in path or "{model}" in path:
            continue
        texts = []
        for known in (mine, nobodys):
            url = path.format(**known)
            answer = http.request(method, url, headers=headers, **bodies.get(path, {}))
            assert answer.status_code == 404, (method, path)
            text = answer.text
            for one in known.values():
                text = text.replace(one, "ID")
            texts.append(text)
        assert texts[0] == texts[1]
        walked += 1
    assert walked >= 13
    assert list(rival.files.list()) == []
    assert list(rival.fine_tuning.jobs.list()) == []
    assert client.files.retrieve(file_id).id == file_id
    assert client.fine_tuning.jobs.retrieve(job_id).status == "validating_files"


def test_documentation_is_open(http: TestClient) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    # a browser without the internet shows it too
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/docs/assets/")
        assert http.get(address).status_code == 200
    assert http.get("/openapi.json").json()["info"]["title"] == "greentune"
