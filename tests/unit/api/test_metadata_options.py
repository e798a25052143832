"""``green.*`` keys of the metadata end up in the spec as the same options in ``green`` would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.metadata_options import merge_options
from api.schemas import CreateJob, GreenIn
from core.errors import InvalidInput


def merged(metadata: dict[str, str], green: dict[str, Any] | None = None) -> GreenIn | None:
    request = CreateJob.model_validate(
        {"model": "m", "training_file": "file-1", "metadata": metadata, "green": green}
    )
    made = merge_options(request)
    assert made.metadata == metadata
    return made.green


@pytest.mark.parametrize(
    ("key", "text", "same"),
    [
        ("rho", "0.5", {"rho": 0.5}),
        ("rho", "1", {"rho": 1}),
        ("rho", "auto", {"rho": "auto"}),
        ("rho", "efficient", {"rho": "efficient"}),
        ("rho", "null", {}),
        ("currency", "seconds", {"currency": "seconds"}),
        ("zone", "FR", {"zone": "FR"}),
        ("zone", "7", {"zone": "7"}),
        ("schedule", "green", {"schedule": "green"}),
        ("deadline", "2026-12-24T06:00:00+01:00", {"deadline": "2026-12-24T05:00:00Z"}),
        ("deadline", "1798088400", {"deadline": 1798088400}),
        ("carbon_budget_g", "120", {"carbon_budget_g": 120}),
        ("training.learning_rate", "1e-4", {"training": {"learning_rate": 1e-4}}),
        ("training.max_steps", "3", {"training": {"max_steps": 3}}),
        ("training.gradient_checkpointing", "true", {"training": {"gradient_checkpointing": True}}),
        ("options.merge", "false", {"options": {"merge": False}}),
        ("task.name", "piqa", {"task": {"name": "piqa"}}),
        ("eval.metrics", '["rougeL", "f1"]', {"eval": {"metrics": ["rougeL", "f1"]}}),
    ],
)
def test_a_key_is_the_same_option_in_green(key: str, text: str, same: dict[str, Any]) -> None:
    assert merged({f"green.{key}": text, "team": "a"}) == GreenIn.model_validate(same)


def test_labels_alone_change_nothing() -> None:
    assert merged({"team": "a", "greenish": "rho", "green": "yes"}) is None
    assert merged({"team": "a"}, {"rho": 0.5}) == GreenIn(rho=0.5)


def test_both_places_are_one_request() -> None:
    green = {"zone": "FR", "rho": None, "training": {"max_steps": 3}, "task": {"name": "piqa"}}
    metadata = {
        "green.rho": "0.5",
        "green.zone": "FR",
        "green.training.learning_rate": "1e-4",
        "green.task.columns": '{"goal": "question"}',
    }
    assert merged(metadata, green) == GreenIn.model_validate(
        {
            "zone": "FR",
            "rho": 0.5,
            "training": {"max_steps": 3, "learning_rate": 1e-4},
            "task": {"name": "piqa", "columns": {"goal": "question"}},
        }
    )
    # equal is what means the same, however it is written
    moment = {"green.deadline": "1798088400", "green.rho": "1.0"}
    both = merged(moment, {"deadline": "2026-12-24T06:00:00+01:00", "rho": 1})
    assert both == merged(moment)


@pytest.mark.parametrize(
    ("metadata", "green", "code", "param"),
    [
        ({"green.rho": "0.5"}, {"rho": 0.6}, "invalid_value", "metadata.green.rho"),
        (
            {"green.training.max_steps": "3"},
            {"training": {"max_steps": 4}},
            "invalid_value",
            "metadata.green.training.max_steps",
        ),
        ({"green.xyz": "1"}, None, "unknown_parameter", "metadata.green.xyz"),
        ({"green.": "1"}, None, "unknown_parameter", "metadata.green."),
        ({"green.rho.x": "1"}, {"rho": 0.5}, "unknown_parameter", "metadata.green.rho.x"),
        ({"green.training": "{}"}, None, "unknown_parameter", "metadata.green.training"),
        ({"green.training.lr": "1"}, None, "unknown_parameter", "metadata.green.training.lr"),
        ({"green.rho": "half"}, None, "invalid_value", "metadata.green.rho"),
        ({"green.rho": "NaN"}, None, "invalid_value", "metadata.green.rho"),
        ({"green.rho": "true"}, None, "invalid_value", "metadata.green.rho"),
        ({"green.rho": ""}, None, "invalid_value", "metadata.green.rho"),
        ({"green.task.columns": '{"a": 1}'}, None, "invalid_value", "metadata.green.task.columns"),
        ({"green.rho": "[" * 512}, None, "invalid_value", "metadata.green.rho"),
        ({"green.deadline": "1" * 512}, None, "invalid_value", "metadata.green.deadline"),
        ({"green.deadline": "2026-12-24T06:00"}, None, "invalid_value", "metadata.green.deadline"),
        (
            {"green.training.max_steps": "1.5"},
            None,
            "invalid_value",
            "metadata.green.training.max_steps",
        ),
        ({"green.task.columns": "{}"}, None, "missing_required_parameter", "green.task.name"),
    ],
)
def test_refusals(metadata: dict[str, str], green: Any, code: str, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        merged(metadata, green)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param in caught.value.message


@given(
    st.sampled_from(["rho", "zone", "deadline", "options.r", "eval.metrics", "task.columns", "x"]),
    st.text(max_size=20) | st.floats().map(str) | st.integers().map(str),
)
def test_nothing_but_our_errors_comes_out(key: str, text: str) -> None:
    refused = None
    try:
        merged({f"green.{key}": text})
    except InvalidInput as error:
        refused = error.param
    assert refused in {None, f"metadata.green.{key}", "green.task.name"}
