"""A request that arrives twice has one effect."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

Lines = Callable[[int], bytes]


@pytest.fixture
def file_id(client: openai.OpenAI, chat_lines: Lines) -> str:
    return client.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune").id


def count_jobs(client: openai.OpenAI) -> int:
    return len(list(client.fine_tuning.jobs.list(limit=100)))


def test_idempotency_key_on_jobs(client: openai.OpenAI, rival: openai.OpenAI, file_id: str) -> None:
    def create(key: str, **options: Any) -> Any:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=file_id, extra_headers={"Idempotency-Key": key}, **options
        )

    first, second = create("k1"), create("k1")
    assert first.to_dict() == second.to_dict()
    assert create("k2").id != first.id
    with pytest.raises(openai.BadRequestError) as caught:
        create("k1", suffix="other")
    assert caught.value.code == "idempotency_key_reused"
    for bad in ("", "x" * 256):
        with pytest.raises(openai.BadRequestError):
            create(bad)
    assert count_jobs(client) == 2
    assert count_jobs(rival) == 0


def test_refusals_do_not_use_up_a_key(client: openai.OpenAI, file_id: str) -> None:
    headers = {"Idempotency-Key": "k"}
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.create(model="no", training_file=file_id, extra_headers=headers)
    made = client.fine_tuning.jobs.create(
        model="tiny", training_file=file_id, extra_headers=headers
    )
    assert made.status == "validating_files"


def test_idempotency_key_on_files(client: openai.OpenAI, chat_lines: Lines, app: Any) -> None:
    def create(data: bytes, name: str = "a.jsonl") -> Any:
        return client.files.create(
            file=(name, data), purpose="fine-tune", extra_headers={"Idempotency-Key": "k"}
        )

    first = create(chat_lines(12))
    assert create(chat_lines(12)).id == first.id
    for data, name in ((chat_lines(13), "a.jsonl"), (chat_lines(12), "b.jsonl")):
        with pytest.raises(openai.BadRequestError):
            create(data, name)
    folder = app.state.services.settings.home / "objects" / "files"
    assert [path.name for path in folder.iterdir()] == [first.id]


def test_a_clients_own_retry_is_recognised(
    http: TestClient, client: openai.OpenAI, file_id: str
) -> None:
    def post(retry_count: int | str | None) -> str:
        headers = {"authorization": f"Bearer {client.api_key}"}
        if retry_count is not None:
            headers["x-stainless-retry-count"] = str(retry_count)
        body = {"model": "tiny", "training_file": file_id}
        answer = http.post("/v1/fine_tuning/jobs", json=body, headers=headers)
        assert answer.status_code == 200
        return str(answer.json()["id"])

    first = post(0)
    assert post(1) == first
    assert post(2) == first
    second = post(0)  # asked for again on purpose
    assert second != first
    assert post(1) == second
    assert post(None) not in (first, second)
    for odd in ("9" * 5000, "-1", "one"):  # what is no count says nothing
        assert post(odd) not in (first, second)
    assert count_jobs(client) == 6


def test_a_storm_of_retries_makes_one_job(
    http: TestClient, client: openai.OpenAI, file_id: str
) -> None:
    def post(_: int) -> tuple[int, str | None]:
        answer = http.post(
            "/v1/fine_tuning/jobs",
            json={"model": "tiny", "training_file": file_id},
            headers={"authorization": f"Bearer {client.api_key}", "idempotency-key": "storm"},
        )
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert {status for status, _ in answers} <= {200, 409}
    assert len({job_id for status, job_id in answers if status == 200}) == 1
    assert count_jobs(client) == 1
