"""A limit on requests, two real API processes and the unmodified openai client, which waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.fixtures.serving import Server, environment_of

PER_MINUTE = 60


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Of one database; the second counts in the first one's embedded broker."""
    shared = {
        "requests_per_minute": str(PER_MINUTE),
        "database_url": f"sqlite:///{tmp_path / 'greentune.db'}",
    }
    home = tmp_path / "first"
    with Server(environment_of(home, **shared), "--no-worker") as first:
        broker_url = f"redis+socket://{home / 'broker.sock'}"
        environment = environment_of(tmp_path / "second", broker_url=broker_url, **shared)
        with Server(environment, "--no-worker") as second:
            yield first, second


def test_the_client_waits_as_it_is_told_and_succeeds(servers: tuple[Server, Server]) -> None:
    key = servers[0].first_key()
    seen: list[httpx.Response] = []
    with httpx.Client(event_hooks={"response": [seen.append]}) as http:

        def client(server: Server, max_retries: int) -> openai.OpenAI:
            return openai.OpenAI(
                base_url=server.url, api_key=key, http_client=http, max_retries=max_retries
            )

        hasty = [client(server, 0) for server in servers]

        def exhaust() -> None:
            # in turns: neither process alone has granted a minute's requests when it refuses
            for number in range(100 * PER_MINUTE):
                hasty[number % 2].models.list()

        with pytest.raises(openai.RateLimitError) as refused:
            exhaust()
        assert refused.value.code == "rate_limit_exceeded"
        assert sum(answer.is_success for answer in seen) >= PER_MINUTE
        patient = client(servers[1], 2)
        seen.clear()
        while all(answer.is_success for answer in seen):
            assert patient.models.list().data
        *_, before, last = seen
    assert (before.status_code, last.status_code) == (429, 200)
    assert 1 <= int(before.headers["retry-after-ms"]) <= 1000
    assert before.headers["x-ratelimit-remaining-requests"] == "0"
    assert last.request.headers["x-stainless-retry-count"] == "1"
