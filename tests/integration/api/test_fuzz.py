"""Schemathesis walks the OpenAPI document: whatever is sent, no 5xx, and every answer conforms."""

from __future__ import annotations

from typing import Any

import openai
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
EXAMPLES = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


def test_no_request_breaks_the_server(app: FastAPI, client: openai.OpenAI) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path="/health/ready")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 18
    for operation in operations:

        @EXAMPLES
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        check()
