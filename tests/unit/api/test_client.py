"""The command line's client: whatever answers, or does not, is one sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from api.client import Client, ServerError
from core.errors import InvalidInput, StartRefused, Unavailable


class _Website(BaseHTTPRequestHandler):
    """Answers every request with 200 and a page, as a server of something else would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None: ...


class _Refusing(BaseHTTPRequestHandler):
    """Answers every request with 429, and the class's headers."""

    headers_sent: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        error = {"message": "too much", "type": "requests", "param": None, "code": "c"}
        body = json.dumps({"error": error}).encode()
        self.send_response(429)
        for name, value in ({"content-length": str(len(body))} | self.headers_sent).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def website() -> Iterator[str]:
    with _serving(_Website) as url:
        yield url


@pytest.fixture
def refusing() -> Iterator[Callable[[dict[str, str]], str]]:
    with ExitStack() as stack:
        yield lambda headers: stack.enter_context(
            _serving(type("Refusing", (_Refusing,), {"headers_sent": headers}))
        )


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_no_url_or_no_key_is_refused() -> None:
    with pytest.raises(StartRefused, match=r"GREENTUNE_URL .* is no URL"):
        Client("http://[::1", "key")
    for key in ("é", "a\nb"):
        with pytest.raises(StartRefused, match="GREENTUNE_API_KEY"):
            Client("http://127.0.0.1:1", key)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "ftp://host"])
def test_no_answer_names_the_url_and_leaves_the_file_alone(url: str, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("kept")
    with closing(Client(url, "key")) as client:
        for ask in (lambda: client.get("/v1/models"), lambda: client.save("/v1/x", target)):
            with pytest.raises(Unavailable, match=f"No answer from {url} .*GREENTUNE_URL"):
                ask()
    assert target.read_text() == "kept"


@pytest.mark.parametrize(
    ("headers", "kind"), [({"retry-after": "1"}, Unavailable), ({}, ServerError)]
)
def test_a_rate_may_pass_and_a_quota_does_not(
    refusing: Callable[[dict[str, str]], str], headers: dict[str, str], kind: type[Exception]
) -> None:
    with closing(Client(refusing(headers), "key")) as client:
        with pytest.raises(kind, match="too much") as told:
            client.get("/v1/models")
        assert type(told.value) is kind


def test_another_kind_of_server_is_recognised(website: str) -> None:
    with (
        closing(Client(website, "key")) as client,
        pytest.raises(ServerError, match="not a greentune server"),
    ):
        client.get("/v1/models")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"green": {"rho": float("nan")}}, "green.rho"),
        ({"start_hours": [0.0, float("inf")]}, "start_hours"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(body: dict[str, object], name: str) -> None:
    with (
        closing(Client("http://127.0.0.1:1", "gt-key")) as client,
        pytest.raises(InvalidInput, match=f"{name} must be a finite number"),
    ):
        client.post("/v1/green/estimate", body)
