"""The command line's own client of the REST API."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from core.errors import GreentuneError, InvalidInput, StartRefused, Unavailable

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# validation runs inside the upload: ten seconds per 100 MB
UPLOAD_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class ServerError(GreentuneError):
    """The server refused; the message is its own."""


class Client:
    """One server and one key. Raises `ServerError` for refusals, `Unavailable` for no answer.

    Raises:
        StartRefused: the URL is none, or the key cannot be one.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not (api_key.isascii() and api_key.isprintable()):
            raise StartRefused("GREENTUNE_API_KEY holds characters that no API key has.")
        try:
            self._http = httpx.Client(
                base_url=self.url, headers={"authorization": f"Bearer {api_key}"}, timeout=TIMEOUT
            )
        except httpx.InvalidURL as error:
            raise StartRefused(f"GREENTUNE_URL {url!r} is no URL: {error}.") from error

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._ask("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Raises:
            InvalidInput: a number of ``body`` is none, which JSON cannot say.
        """
        for name, value in _numbers("", body or {}):
            if not math.isfinite(value):
                raise InvalidInput(f"{name} must be a finite number; got {value}.", param=name)
        return self._ask("POST", path, json=body)

    def upload(self, path: Path) -> dict[str, Any]:
        """The file's object, with its validation report."""
        with path.open("rb") as data:
            return self._ask(
                "POST",
                "/v1/files",
                files={"file": (path.name, data)},
                data={"purpose": "fine-tune"},
                timeout=UPLOAD_TIMEOUT,
            )

    @contextmanager
    def uploaded(
        self, paths: Sequence[Path], *, has_task: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        """The files' objects, for what is asked within; a refusal there removes them again. Where
        no answer came they stay: what they are for may have begun.

        Args:
            has_task: the job reads named columns, which the server's check takes for mistakes in
                JSONL: it knows of no task.

        Raises:
            InvalidInput: a file with mistakes, which names them.
        """
        files: list[dict[str, Any]] = []
        try:
            for path in paths:
                files.append(self.upload(path))
                if not (has_task and path.suffix.lower() == ".jsonl"):
                    _require_no_mistakes(path, files[-1])
            yield files
        except (ServerError, InvalidInput):
            for file in files:
                with suppress(GreentuneError):  # the refusal is what is told
                    self._ask("DELETE", f"/v1/files/{file['id']}")
            raise

    def download(self, file_id: str, target: Path) -> Path:
        """Write a file's content to ``target``."""
        return self.save(f"/v1/files/{file_id}/content", target)

    def save(self, path: str, target: Path, **params: Any) -> Path:
        """Write the body of an answer to ``target``, which is left as it was by a refusal."""
        with self._answered(), self._http.stream("GET", path, params=params) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            with target.open("wb") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
        return target

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/v1/fine_tuning/jobs/{job_id}")

    def follow(self, job_id: str, *, every_s: float = 1.0) -> Iterator[dict[str, Any]]:
        """The job again and again, until it has ended; a server that restarts is waited for."""
        failures = 0
        while True:
            try:
                job = self.job(job_id)
            except Unavailable:
                failures += 1
                if failures * every_s > 60:
                    raise
            else:
                failures = 0
                yield job
                if job["status"] in TERMINAL:
                    return
            time.sleep(every_s)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._answered():
            response = self._http.request(method, path, **options)
        is_rate = response.status_code == 429 and "retry-after" in response.headers
        if response.status_code in (502, 503, 504) or is_rate:
            raise Unavailable(_refusal(response).message)
        if response.is_error:
            raise _refusal(response)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError:
            raise _refusal(response) from None
        return answer

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unavailable(
                f"No answer from {self.url} ({error}). Is `greentune serve` running, and is "
                "GREENTUNE_URL right?"
            ) from error


def _require_no_mistakes(path: Path, file: Mapping[str, Any]) -> None:
    if file["status"] == "error":
        raise InvalidInput(f"{path}: {file['status_details']}")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every float of a body, and what it is called."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(name, inner)
    elif isinstance(value, float):
        yield name, value


def _refusal(response: httpx.Response) -> ServerError:
    try:
        error = response.json()["error"]
        return ServerError(error["message"], param=error["param"], code=error["code"])
    except (ValueError, KeyError, TypeError):
        return ServerError(
            f"{response.url} answered {response.status_code}: not a greentune server?"
        )
