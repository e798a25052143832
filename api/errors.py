"""The one table: which error answers with which status, in OpenAI's error body.

Body: ``{"error": {"message", "type", "param", "code"}}``, all four keys always present. The openai
client turns the status into its exception class and ``code``/``param`` into attributes; it retries
408, 409, 429 and 5xx unless ``x-should-retry`` says otherwise, which is why every refusal that
cannot change by itself carries ``false``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from core.errors import (
    AuthenticationFailed,
    Conflict,
    GreentuneError,
    IdempotencyInProgress,
    InvalidInput,
    LimitExceeded,
    MissingParameter,
    NotFound,
    PermissionRefused,
    TooLarge,
    Unavailable,
    UnknownParameter,
)

logger = logging.getLogger(__name__)

_MAX_SHOWN_INPUT = 120
#: what Python's parser raises besides its own error -> what is wrong with the body
_UNREADABLE: dict[type[BaseException | None], str] = {
    UnicodeDecodeError: "The request body is not valid JSON: it is not UTF-8.",
    RecursionError: "The request body is not valid JSON: it is nested too deeply.",
    ValueError: "The request body is not valid JSON: a number has too many digits.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    type: str
    headers: Mapping[str, str]
    #: whether the error's own message may leave the house
    shows_message: bool = True


def _answer(status: int, kind: str, **headers: str) -> Answer:
    return Answer(
        status=status, type=kind, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


#: the closest class in an error's MRO decides
ANSWERS: dict[type[GreentuneError], Answer] = {
    InvalidInput: _answer(400, "invalid_request_error"),
    AuthenticationFailed: _answer(401, "invalid_request_error"),
    PermissionRefused: _answer(403, "permission_error"),
    NotFound: _answer(404, "invalid_request_error"),
    Conflict: _answer(409, "invalid_request_error", x_should_retry="false"),
    IdempotencyInProgress: _answer(
        409, "invalid_request_error", x_should_retry="true", retry_after="1"
    ),
    TooLarge: _answer(413, "invalid_request_error", x_should_retry="false"),
    LimitExceeded: _answer(429, "requests", retry_after="1"),
    Unavailable: _answer(503, "server_error", retry_after="2"),
    GreentuneError: Answer(status=500, type="server_error", headers={}, shows_message=False),
}
#: a quota does not come back by asking again; a rate does
_QUOTA = _answer(429, "insufficient_quota", x_should_retry="false")
_QUOTA_CODES = frozenset({"insufficient_quota", "carbon_budget_exhausted"})
_CODES_BY_STATUS = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}


def answer_for(error: GreentuneError) -> Answer:
    if isinstance(error, LimitExceeded) and error.code in _QUOTA_CODES:
        return _QUOTA
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def error_body(
    message: str, *, kind: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Put every error that a route can raise into OpenAI's shape."""
    app.add_exception_handler(GreentuneError, _on_greentune_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(OSError, _on_os_error)


def internal_error_response() -> JSONResponse:
    """What is said of a fault of our own: nothing but that the log has it."""
    message = "Internal error. The server's log has the cause under this answer's x-request-id."
    return JSONResponse(
        error_body(message, kind="server_error", code="internal_error"), status_code=500
    )


def asked(scope: Scope) -> str:
    """Method and path for the log: what is answered as GET may have been HEAD
    (`api.middleware.HeadAsGet`).
    """
    is_head = scope.get("state", {}).get("is_head", False)
    return f"{'HEAD' if is_head else scope['method']} {scope['path']}"


def response_for(error: GreentuneError) -> JSONResponse:
    answer = answer_for(error)
    if not answer.shows_message:
        return internal_error_response()
    body = error_body(error.message, kind=answer.type, code=error.code, param=error.param)
    return JSONResponse(body, status_code=answer.status, headers=dict(answer.headers))


async def _on_greentune_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GreentuneError)
    if not answer_for(error).shows_message:
        _log(request, error)
    return response_for(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Routing errors and the framework's own refusals; what we raised inside comes back out."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, GreentuneError):
        return response_for(error.__cause__)
    code = _CODES_BY_STATUS.get(HTTPStatus(error.status_code), "invalid_value")
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    message = _UNREADABLE.get(type(error.__cause__), str(error.detail))
    if error.status_code == HTTPStatus.NOT_FOUND:
        path = request.url.path[:_MAX_SHOWN_INPUT]
        message = f"There is nothing at {path}. /docs lists all paths; none ends in a slash."
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # mounted files are no route of ours and name theirs themselves
        allowed = ", ".join(_methods_at(request)) or (headers or {}).get("Allow", "")
        headers = {"allow": allowed}
        message = f"{request.method[:_MAX_SHOWN_INPUT]} is not possible here; possible: {allowed}."
    body = error_body(message, kind=kind, code=code)
    return JSONResponse(body, status_code=error.status_code, headers=headers)


def _methods_at(request: Request) -> list[str]:
    """Of all routes with the request's path; the framework's refusal names the first one's."""

    def is_routed(method: HTTPMethod) -> bool:
        # HEAD is answered as GET is
        asked = HTTPMethod.GET if method is HTTPMethod.HEAD else method
        scope = {**request.scope, "method": asked.value}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method.value for method in HTTPMethod if is_routed(method)]


async def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    """A full or unwritable disk under an upload; other causes look the same to the caller."""
    _log(request, error)
    message = "The server could not store the request's data. Try again shortly."
    return response_for(Unavailable(message, code="storage_unavailable"))


def _log(request: Request, error: Exception) -> None:
    named = asked(request.scope), request.state.request_id
    logger.error("%s failed (%s)", *named, exc_info=error)


async def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return response_for(invalid_input(error.errors()[0], error.body))


def invalid_input(problem: Mapping[str, Any], body: Any) -> InvalidInput:
    """The first of pydantic's complaints as one sentence about one dotted parameter."""
    param = _dotted(problem, body)
    name = param or "The request body"
    match problem["type"]:
        case "missing":
            return MissingParameter(f"Missing required parameter: {name}.", param=param)
        case "extra_forbidden":
            return UnknownParameter(f"Unknown parameter: {name}.", param=param)
        case "json_invalid":
            return InvalidInput(f"The request body is not valid JSON: {problem['ctx']['error']}.")
    if isinstance(body, bytes):
        return InvalidInput(
            "The request body is JSON: send the header content-type: application/json."
        )
    code = "invalid_hyperparameter" if "hyperparameters" in (param or "") else None
    rule = problem["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    shown = repr(problem.get("input"))
    if len(shown) > _MAX_SHOWN_INPUT:
        shown = shown[:_MAX_SHOWN_INPUT] + "..."
    return InvalidInput(f"{name}: {rule}; got {shown}.", param=param, code=code)


def _is_index(here: Any, part: object) -> bool:
    return isinstance(here, list) and isinstance(part, int) and part < len(here)


def _dotted(problem: Mapping[str, Any], body: Any) -> str | None:
    """The field's path in the request, without pydantic's own markers for union branches."""
    location = list(problem["loc"])
    if location and location[0] != "body":
        return ".".join(str(part) for part in location[1:]) or None
    names: list[str] = []
    here = body
    for part in location[1:]:
        inside = part in here if isinstance(here, dict) else _is_index(here, part)
        if inside:
            here = here[part]
        elif problem["type"] != "missing":
            break
        names.append(str(part))
    return ".".join(names) or None
