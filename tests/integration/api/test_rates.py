"""Requests per minute of a key, counted in a real Valkey by every API process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.broker import running_broker
from api.main import create_app
from api.rates import RETRY_AFTER_S, RequestLimiter
from core.settings import Settings
from tests.integration.api.dying_api import running_api

LIMIT = "x-ratelimit-limit-requests"
LEFT = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"
#: slow to come back: a minute for two
PER_MINUTE = 2


class Broker:
    """The embedded one, which the test starts and stops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running = ExitStack()

    def start(self) -> None:
        data, socket = self._settings.home / "broker", self._settings.broker_socket
        self._running.enter_context(running_broker(data, socket))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"requests_per_minute": PER_MINUTE})


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    broker = Broker(settings)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def get(http: TestClient, new_key: Callable[..., str]) -> Callable[..., httpx.Response]:
    own = new_key()

    def ask(path: str = "/v1/models", *, key: str | None = own, by: TestClient = http):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return by.get(path, headers=headers)

    return ask


@pytest.mark.usefixtures("broker")
def test_a_key_makes_so_many_requests_and_is_told_what_it_has_left(
    get: Callable[..., httpx.Response], client: openai.OpenAI, new_key: Callable[..., str]
) -> None:
    first = get()
    assert (first.status_code, first.headers[LIMIT], first.headers[LEFT]) == (200, "2", "1")
    assert first.headers[RESET] == "30s"
    # whatever becomes of a request: it was one
    lost = get("/v1/files/file-0")
    assert (lost.status_code, lost.headers[LEFT]) == (404, "0")
    refused = get()
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "requests",
        "rate_limit_exceeded",
        None,
    )
    assert "2 requests of a minute" in error["message"]
    assert (refused.headers[LIMIT], refused.headers[LEFT]) == ("2", "0")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert 1 <= int(refused.headers["retry-after-ms"]) <= 30_000
    assert "x-should-retry" not in refused.headers
    assert refused.headers["x-request-id"]
    # another key of the same organization has its own
    assert get(key=new_key()).headers[LEFT] == "1"
    client.models.list()
    client.models.list()
    with pytest.raises(openai.RateLimitError) as told:
        client.models.list()
    assert told.value.code == "rate_limit_exceeded"


@pytest.mark.usefixtures("broker")
def test_what_needs_no_key_is_not_limited(get: Callable[..., httpx.Response]) -> None:
    for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
        for _ in range(PER_MINUTE + 1):
            answer = get(path)
            assert answer.status_code != 429
            assert LIMIT not in answer.headers


@pytest.mark.usefixtures("broker")
def test_calls_without_a_valid_key_are_counted_by_address(
    app: FastAPI, get: Callable[..., httpx.Response], new_key: Callable[..., str]
) -> None:
    first = get(key=None)
    assert (first.status_code, first.headers[LIMIT], first.headers[LEFT]) == (401, "2", "1")
    assert get(key="gt-unknown").status_code == 401
    for guess in (None, "gt-unknown", new_key()[:-1] + "?"):
        refused = get(key=guess)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert "2 calls of a minute without a valid API key" in error["message"]
        assert (refused.headers[LIMIT], refused.headers[LEFT]) == ("2", "0")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
    # valid ones of the same address have theirs, and other addresses have theirs
    assert [get().status_code, get().status_code, get().status_code] == [200, 200, 429]
    with TestClient(app, client=("192.0.2.7", 1)) as other:
        assert get(key=None, by=other).headers[LEFT] == "1"


@pytest.mark.usefixtures("broker")
def test_who_has_a_network_of_addresses_has_one_count(
    app: FastAPI, get: Callable[..., httpx.Response]
) -> None:
    def lefts(*hosts: str) -> list[str]:
        clients = [TestClient(app, client=(host, 1)) for host in hosts]
        return [get(key=None, by=client).headers[LEFT] for client in clients]

    # of IPv6 a customer gets 2^64; an IPv4 address may come in IPv6's words
    assert lefts("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1") == ["1", "0", "1"]
    assert lefts("192.0.2.7", "::ffff:192.0.2.7", "::ffff:192.0.2.8") == ["1", "0", "1"]


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize(("trusted", "counted"), [("127.0.0.1", "1"), ("192.0.2.1", "0")])
def test_a_proxy_that_is_trusted_says_whose_call_it_is(
    settings: Settings, trusted: str, counted: str
) -> None:
    """The server's own setting; another's word is no address to count by."""
    environment = {
        "GREENTUNE_HOME": str(settings.home),
        "GREENTUNE_REQUESTS_PER_MINUTE": str(PER_MINUTE),
        "FORWARDED_ALLOW_IPS": trusted,
    }
    with running_api(environment) as url:
        answers = [
            httpx.get(f"{url}/models", headers={"x-forwarded-for": address})
            for address in ("198.51.100.1", "198.51.100.2")
        ]
    assert [answer.headers[LEFT] for answer in answers] == ["1", counted]


@pytest.mark.usefixtures("broker")
def test_processes_count_together(get: Callable[..., httpx.Response], settings: Settings) -> None:
    with TestClient(create_app(settings)) as other:
        assert [get().status_code, get(by=other).status_code] == [200, 200]
        assert [get().status_code, get(by=other).status_code] == [429, 429]


def test_without_the_broker_requests_are_let_through_and_it_is_said_once(
    app: FastAPI,
    broker: Broker,
    settings: Settings,
    get: Callable[..., httpx.Response],
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    limiter = RequestLimiter(settings.resolved_broker_url, PER_MINUTE, clock=lambda: clock[0])
    app.state.services = replace(app.state.services, limiter=limiter)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "api.rates"]

    with caplog.at_level(logging.INFO, "api.rates"):
        assert [get().status_code for _ in range(3)] == [200, 200, 429]
        broker.stop()
        for _ in range(3):
            # also when it is asked again in vain
            clock[0] += RETRY_AFTER_S
            answers = [get() for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert not any(LIMIT in answer.headers for answer in answers)
        assert len(said()) == 1
        assert "not limited while the broker is away" in said()[0]
        broker.start()
        assert LIMIT not in get().headers
        clock[0] += RETRY_AFTER_S
        # its file kept the count
        assert get().status_code == 429
    assert said()[1:] == ["the broker is back: requests are limited again"]
    limiter.close()


def test_a_broker_that_restarts_lets_nothing_through(
    broker: Broker, get: Callable[..., httpx.Response]
) -> None:
    assert [get().status_code for _ in range(2)] == [200, 200]
    broker.stop()
    broker.start()
    assert get().status_code == 429


@pytest.mark.usefixtures("broker")
def test_no_limit_asks_nobody(settings: Settings, get: Callable[..., httpx.Response]) -> None:
    unlimited = create_app(settings.model_copy(update={"requests_per_minute": 0}))
    with TestClient(unlimited) as free:
        answers = [get(by=free) for _ in range(PER_MINUTE + 1)]
    assert [(answer.status_code, LIMIT in answer.headers) for answer in answers] == [
        (200, False)
    ] * 3
