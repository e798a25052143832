"""HTTP for the adapters: timeouts, retries with back-off, rate limits, secrets kept out of logs."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from core.errors import SignalUnavailable

_TRIES = 3
_BACK_OFF_S = 0.5
#: a provider that asks for a longer pause gets it, without anybody waiting for it
_LONGEST_WAIT_S = 5.0
_MINUTE_S = 60.0
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
#: of one answer, however steadily it drips in: httpx's own limit starts anew with every byte
_WHOLE_ANSWER_S = 20.0
_MAX_BYTES = 8 * 1024**2


class _Redaction(logging.Filter):
    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if self._secret in said:
            record.msg, record.args = said.replace(self._secret, "[secret]"), ()
        return True


class Fetcher:
    """One provider's client.

    Args:
        name: of the provider, for messages.
        base_url: without the trailing slash.
        headers: sent with every request; may hold a secret.
        per_minute: most requests of this process in a minute.
        pause_s: how long a refusal for too many requests lasts where it does not say.
        secret: a token that travels in the URL, which httpx would log.
        whole_s: most seconds for a whole answer.
        sleep: replaced in tests.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        per_minute: int = 60,
        pause_s: float = 60.0,
        timeout: httpx.Timeout = _TIMEOUT,
        whole_s: float = _WHOLE_ANSWER_S,
        secret: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers or {})
        self._per_minute = per_minute
        self._pause_s = pause_s
        self._sleep = sleep
        self._timeout = timeout
        self._whole_s = whole_s
        self._lock = threading.Lock()
        self._sent_s: deque[float] = deque()
        self._blocked_until_s = 0.0
        self._blocked_why = ""
        if secret:
            logging.getLogger("httpx").addFilter(_Redaction(secret))

    def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> httpx.Response:
        """The answer, whatever its status below 500 except 429; those are retried.

        A redirect is refused: the token would go wherever it points.

        Raises:
            SignalUnavailable: no answer in time, too many requests, only server errors, a redirect.
        """
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                self._sleep(_BACK_OFF_S * 2 ** (attempt - 1) * (1 + random.random()))  # noqa: S311
            self._admit()
            try:
                answer = self._send(path, params, headers, auth)
            except httpx.TimeoutException:
                reason = "it did not answer in time"
                continue
            except httpx.HTTPError as error:
                reason = f"it cannot be reached ({type(error).__name__})"
                continue
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                wait_s = self._retry_after_s(answer)
                if wait_s > _LONGEST_WAIT_S:
                    raise SignalUnavailable(self._block(wait_s))
                self._sleep(wait_s)
                reason = "too many requests"
                continue
            if answer.is_server_error:
                reason = f"it answers {answer.status_code}"
                continue
            if answer.has_redirect_location:
                raise SignalUnavailable(
                    f"{self.name}: it redirects ({answer.status_code}), which is not followed."
                )
            return answer
        raise SignalUnavailable(f"{self.name}: {reason}, {_TRIES} times.")

    def json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise SignalUnavailable(
                f"{self.name}: status {answer.status_code} without JSON."
            ) from None

    def _send(
        self,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        auth: tuple[str, str] | None,
    ) -> httpx.Response:
        """A client per request: they are minutes apart, and a kept one would outlive forks."""
        with (
            httpx.Client(timeout=self._timeout, follow_redirects=False) as client,
            client.stream(
                "GET",
                self._base_url + path,
                params=dict(params or {}),
                headers={**self._headers, **(headers or {})},
                auth=auth,
            ) as answer,
        ):
            body = bytearray()
            until_s = time.monotonic() + self._whole_s
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > until_s:
                    raise httpx.ReadTimeout("the answer drips in")
                if len(body) > _MAX_BYTES:
                    raise SignalUnavailable(f"{self.name}: the answer is longer than 8 MiB.")
            return httpx.Response(answer.status_code, headers=_plain(answer), content=bytes(body))

    def _admit(self) -> None:
        """Counts the request, or refuses it for the sake of the provider's limits."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._blocked_until_s:
                raise SignalUnavailable(self._blocked_why)
            while self._sent_s and now_s - self._sent_s[0] > _MINUTE_S:
                self._sent_s.popleft()
            if len(self._sent_s) >= self._per_minute:
                raise SignalUnavailable(
                    f"{self.name}: {self._per_minute} requests a minute are used up."
                )
            self._sent_s.append(now_s)

    def _block(self, wait_s: float) -> str:
        """Ask nothing for so long; the reason, the same for as long as it holds: it is stored."""
        until = datetime.now(UTC) + timedelta(seconds=wait_s)
        with self._lock:
            self._blocked_until_s = time.monotonic() + wait_s
            self._blocked_why = (
                f"{self.name}: too many requests; not asked again before {until:%F %T} UTC."
            )
            return self._blocked_why

    def _retry_after_s(self, answer: httpx.Response) -> float:
        """Seconds or a date, as RFC 9110 allows; the provider's known pause otherwise."""
        text = answer.headers.get("retry-after", "")
        if text.isdigit():
            return float(text)
        try:
            return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
        except (TypeError, ValueError):
            return self._pause_s


def _plain(answer: httpx.Response) -> dict[str, str]:
    """Headers that still hold for a body that was decoded on arrival."""
    dropped = {"content-encoding", "content-length", "transfer-encoding"}
    return {name: value for name, value in answer.headers.items() if name not in dropped}
