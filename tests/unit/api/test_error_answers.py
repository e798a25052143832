"""Every error of ours maps to one row, and the openai client makes of it what the contract says."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import openai
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

import core.errors
from api import errors
from api.middleware import BodyLimit, HeadAsGet, RequestIdentity
from api.schemas import CreateJob
from core.errors import (
    AuthenticationFailed,
    DataInvalid,
    FileInUse,
    GreentuneError,
    IdempotencyInProgress,
    InvalidInput,
    InvalidTransition,
    LimitExceeded,
    MissingParameter,
    ModelInUse,
    ModelNotFound,
    NotFound,
    PermissionRefused,
    QueueUnavailable,
    RhoInfeasible,
    StorageUnavailable,
    TooLarge,
    UnknownParameter,
    UnsupportedMethod,
)

LIMIT_BYTES = 1000

#: status -> the openai client's class, ``type`` of the body
CLASSES: dict[int, tuple[type[openai.APIStatusError], str]] = {
    400: (openai.BadRequestError, "invalid_request_error"),
    401: (openai.AuthenticationError, "invalid_request_error"),
    403: (openai.PermissionDeniedError, "permission_error"),
    404: (openai.NotFoundError, "invalid_request_error"),
    409: (openai.ConflictError, "invalid_request_error"),
    413: (openai.APIStatusError, "invalid_request_error"),
    429: (openai.RateLimitError, "requests"),
    503: (openai.InternalServerError, "server_error"),
}
QUOTA = {"insufficient_quota", "carbon_budget_exhausted"}

#: error, status, code, x-should-retry
ROWS: list[tuple[GreentuneError, int, str, str | None]] = [
    (InvalidInput("m", param="p"), 400, "invalid_value", None),
    (UnknownParameter("m"), 400, "unknown_parameter", None),
    (MissingParameter("m"), 400, "missing_required_parameter", None),
    (UnsupportedMethod("m"), 400, "unsupported_method", None),
    (RhoInfeasible("m", rho_min=0.4), 400, "rho_infeasible", None),
    (DataInvalid("m", code="invalid_training_file"), 400, "invalid_training_file", None),
    (AuthenticationFailed("m"), 401, "invalid_api_key", None),
    (PermissionRefused("m"), 403, "insufficient_scope", None),
    (NotFound("m"), 404, "not_found", None),
    (ModelNotFound("m"), 404, "model_not_found", None),
    (InvalidTransition("m"), 409, "invalid_state_transition", "false"),
    (FileInUse("m"), 409, "file_in_use", "false"),
    (ModelInUse("m"), 409, "model_in_use", "false"),
    (IdempotencyInProgress("m"), 409, "idempotency_in_progress", "true"),
    (TooLarge("m"), 413, "file_too_large", "false"),
    (LimitExceeded("m"), 429, "rate_limit_exceeded", None),
    (LimitExceeded("m", code="insufficient_quota"), 429, "insufficient_quota", "false"),
    (LimitExceeded("m", code="carbon_budget_exhausted"), 429, "carbon_budget_exhausted", "false"),
    (StorageUnavailable("m"), 503, "storage_unavailable", None),
    (QueueUnavailable("m"), 503, "queue_unavailable", None),
]


def make_app() -> FastAPI:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(BodyLimit, limit_bytes=lambda _: LIMIT_BYTES)
    app.add_middleware(RequestIdentity)
    app.add_middleware(HeadAsGet)

    @app.get("/v1/models/{number}")
    def fail(number: int) -> None:
        raise ROWS[number][0]

    @app.get("/v1/broken")
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    @app.get("/v1/internal")
    def internal() -> None:
        raise GreentuneError("a secret")

    @app.get("/v1/full-disk")
    def full_disk() -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    @app.get("/v1/hung-up")
    def hung_up() -> None:
        raise ClientDisconnect

    @app.get("/v1/wrapped")
    def wrapped() -> None:
        raise HTTPException(400, "parsing failed") from TooLarge("too large")

    @app.post("/v1/fine_tuning/jobs")
    def create(request: CreateJob) -> dict[str, Any]:
        return {"received": request.model_dump()}

    return app


@pytest.fixture(scope="module")
def http() -> TestClient:
    return TestClient(make_app())


@pytest.fixture(scope="module")
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key="k", http_client=http, max_retries=0
    )


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda n: ROWS[n][2])
def test_client_raises_the_class_of_the_row(client: openai.OpenAI, number: int) -> None:
    error, status, code, should_retry = ROWS[number]
    expected, kind = CLASSES[status]
    if code in QUOTA:
        kind = "insufficient_quota"
    with pytest.raises(expected) as caught:
        client.models.retrieve(str(number))
    raised = caught.value
    assert (raised.status_code, raised.type, raised.code, raised.param) == (
        status,
        kind,
        code,
        error.param,
    )
    assert raised.response.headers.get("x-should-retry") == should_retry
    assert raised.request_id is not None
    assert raised.request_id.startswith("req_")
    assert error.message in raised.message
    assert set(raised.response.json()["error"]) == {"message", "type", "param", "code"}
    if status == 503:
        assert int(raised.response.headers["retry-after"]) >= 1


def test_every_error_class_has_an_answer() -> None:
    classes = [
        kind
        for _, kind in inspect.getmembers(core.errors, inspect.isclass)
        if issubclass(kind, GreentuneError)
    ]
    assert len(classes) > 20
    for kind in classes:
        error = kind("m", rho_min=0.5) if kind is RhoInfeasible else kind("m")
        assert 400 <= errors.answer_for(error).status < 600
    internal = {
        kind
        for kind in classes
        if errors.ANSWERS[GreentuneError] is errors.answer_for(kind.__new__(kind))
    }
    assert {k.__name__ for k in internal} == {
        "GreentuneError",
        "LeaseLost",
        "ModelUnavailable",
        "ModelUnsupported",
        "NanLoss",
        "OutOfMemory",
        "StartRefused",
        "TrainingFailed",
    }


@pytest.mark.parametrize("path", ["/v1/broken", "/v1/full-disk", "/v1/internal"])
def test_faults_of_ours_are_told_to_the_log_alone(
    http: TestClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = http.get(path)
    (logged,) = caplog.records
    assert answer.headers["x-request-id"] in logged.message
    assert logged.exc_info is not None
    assert "secret" in str(logged.exc_info[1])
    assert answer.status_code in (500, 503)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1/broken", "/v1/full-disk", "/v1/internal", "/v1/hung-up"])
def test_the_log_names_the_method_that_was_asked(
    method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """HEAD was logged as the GET that it is answered as."""
    # a caller who hung up is not answered, which the client would raise
    http = TestClient(make_app(), raise_server_exceptions=False)
    with caplog.at_level(logging.INFO, "api"):
        http.request(method, path)
    (logged,) = caplog.records
    assert logged.message.startswith(f"{method} {path}")


def test_framework_errors_have_the_shape_too(http: TestClient) -> None:
    missing = http.get("/v1/fine_tuning/alpha/graders/run")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong_method = http.put("/v1/broken")
    assert (wrong_method.status_code, wrong_method.json()["error"]["code"]) == (
        405,
        "method_not_allowed",
    )
    assert http.get("/v1/wrapped").status_code == 413


def test_announced_length_is_refused_before_the_body_is_read() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/fine_tuning/jobs",
        "query_string": b"",
        "headers": [(b"content-length", str(LIMIT_BYTES + 1).encode())],
    }
    asyncio.run(make_app()(scope, receive, send))
    assert sent[0]["status"] == 413
    headers = dict(sent[0]["headers"])
    assert headers[b"x-should-retry"] == b"false"
    assert headers[b"x-request-id"].startswith(b"req_")


def test_unannounced_body_is_counted(http: TestClient) -> None:
    chunks = (b'"' + b"x" * 100 for _ in range(LIMIT_BYTES))
    answer = http.post(
        "/v1/fine_tuning/jobs", content=chunks, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")


MINIMAL = {"model": "m", "training_file": "f"}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "m"}, "missing_required_parameter", "training_file"),
        ({**MINIMAL, "gren": {}}, "unknown_parameter", "gren"),
        ({**MINIMAL, "green": {"roh": 0.5}}, "unknown_parameter", "green.roh"),
        ({**MINIMAL, "green": {"training": {"lr": 1}}}, "unknown_parameter", "green.training.lr"),
        ({**MINIMAL, "green": {"rho": "half"}}, "invalid_value", "green.rho"),
        ({**MINIMAL, "green": {"rho": True}}, "invalid_value", "green.rho"),
        ({**MINIMAL, "green": []}, "invalid_value", "green"),
        (
            {**MINIMAL, "hyperparameters": {"n_epochs": 0}},
            "invalid_hyperparameter",
            "hyperparameters.n_epochs",
        ),
        (
            {**MINIMAL, "hyperparameters": {"n_epochs": "many"}},
            "invalid_hyperparameter",
            "hyperparameters.n_epochs",
        ),
        (
            {**MINIMAL, "hyperparameters": {"epochs": 1}},
            "unknown_parameter",
            "hyperparameters.epochs",
        ),
        (
            {
                **MINIMAL,
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"batch_size": 257}},
                },
            },
            "invalid_hyperparameter",
            "method.supervised.hyperparameters.batch_size",
        ),
        ({**MINIMAL, "metadata": {"a": 1}}, "invalid_value", "metadata.a"),
        ({**MINIMAL, "metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({**MINIMAL, "seed": "7"}, "invalid_value", "seed"),
    ],
)
def test_refusals_name_the_parameter(
    http: TestClient, body: dict[str, Any], code: str, param: str
) -> None:
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert param in error["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"nul", b"\xff\xfe", b"[" * 900])
def test_bodies_that_are_no_request(http: TestClient, body: bytes) -> None:
    answer = http.post(
        "/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        # what curl -d sends unless told otherwise
        (b"{}", "application/x-www-form-urlencoded", "content-type: application/json"),
        (b"{}", "text/plain", "content-type: application/json"),
        (b'{"model": "\xff"}', "application/json", "not UTF-8"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", "too many digits"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json", "nested too deeply"),
    ],
    ids=["form", "text", "encoding", "digits", "depth"],
)
def test_bodies_that_cannot_be_read_say_why(body: bytes, kind: str, words: str) -> None:
    app = FastAPI()
    errors.install(app)

    @app.post("/")
    def create(request: CreateJob) -> None: ...

    answer = TestClient(app).post("/", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_every_optional_field_may_be_null(http: TestClient) -> None:
    optional = [name for name, field in CreateJob.model_fields.items() if not field.is_required()]
    answer = http.post("/v1/fine_tuning/jobs", json={**MINIMAL, **dict.fromkeys(optional)})
    assert answer.status_code == 200
