"""What wraps every request: an id and the rate on the answer, a cap on the body, HEAD answered as
GET, and no stack trace outside.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import asked, internal_error_response, response_for
from core.errors import TooLarge

logger = logging.getLogger(__name__)


class RequestIdentity:
    """Puts ``x-request-id`` on every response and answers for exceptions that nobody expected.

    The framework's own handler of last resort sits outside all middleware, so its answers would
    carry no id; this one sits inside and never lets an exception reach it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        # handlers of errors name it in the log, where the answer sends people for the cause
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            # nobody is left to answer
            logger.info("%s: the caller hung up (%s)", asked(scope), request_id)
        except Exception:
            logger.exception("%s failed (%s)", asked(scope), request_id)
            if started:
                raise  # too late for an answer: the connection breaks, as it must
            await internal_error_response()(scope, receive, send_with_id)


class HeadAsGet:
    """HEAD is GET whose answer has no body (RFC 9110, 9.3.2), so all inside see a GET.

    ``state.is_head`` tells the log, and those whose answer takes work that its headers do not need.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        state = {**scope.get("state", {}), "is_head": True}
        # a copy: the server must still know that no body follows
        await self.app({**scope, "method": "GET", "state": state}, receive, send_without_body)


class RateHeaders:
    """Puts what was found out about the caller's rate on the answer, whichever it becomes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_rate(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(state.get("rate_headers", {}))
            await send(message)

        await self.app(scope, receive, send_with_rate)


class BodyLimit:
    """Refuses a body that is too large: by its announced length before a byte is read, and by
    counting where no length is announced.

    ``limit_bytes(path)`` is the cap for a request path.
    """

    def __init__(self, app: ASGIApp, limit_bytes: Callable[[str], int]) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_bytes(scope["path"])
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await response_for(_too_large(limit))(scope, receive, send)
            return
        n_bytes = 0

        async def receive_counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, receive_counted, send)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"The request body is over {limit_bytes} bytes. Send a smaller one, or split the file."
    )
