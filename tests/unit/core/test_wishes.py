"""What a caller may wish of a plan: checked when the spec is made, kept as plain JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.spec import MAX_HOLD_S, GreenOptions, JobSpec, MethodOptions
from core.training_options import WEIGHT_DECAY_MAX, TrainingOptions
from tests.fixtures.specs import stored_and_read

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
moments = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001  hypothesis adds the zone
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001  as above
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)


@given(
    start=st.none() | moments,
    days=st.none() | st.floats(min_value=0.01, max_value=100),
    grams=st.none() | st.floats(min_value=1e-6, max_value=1e9),
)
def test_a_spec_survives_json(
    start: datetime | None, days: float | None, grams: float | None
) -> None:
    deadline = None if days is None else (start or NOON) + timedelta(days=days)
    green = GreenOptions(earliest_start=start, deadline=deadline, carbon_budget_g=grams)
    spec = JobSpec(model="m", training_file="file-1", green=green)
    again = stored_and_read(spec)
    assert again == spec
    assert again.green.deadline is None or again.green.deadline.tzinfo is UTC
    assert green.is_planned == any(v is not None for v in (start, deadline, grams))


def test_a_spec_from_before_there_were_wishes_is_read() -> None:
    old = {"model": "m", "training_file": "f", "green": {"method": "green", "rho": 0.5}}
    assert not JobSpec.from_dict(old).green.is_planned
    assert JobSpec.from_dict(old).green.currency == "flops"


def test_rho_counts_another_currency_where_it_decides_and_nothing_is_planned() -> None:
    for options in ({}, {"rho": "efficient"}, {"rho": 0.5, "method": "last_k"}):
        green = GreenOptions(currency="seconds", **options)
        spec = JobSpec(model="m", training_file="f", green=green)
        assert stored_and_read(spec).green.currency == "seconds"
    others: list[dict[str, Any]] = [
        {"method": "full"},
        {"method": "lora"},
        {"method": "green_lora"},
        {"method": "last_k", "options": MethodOptions(k=2)},
    ]
    for options in others:
        with pytest.raises(InvalidInput, match="leave it out") as refused:
            GreenOptions(currency="joules", **options)
        assert refused.value.param == "green.currency"
    plans: list[dict[str, Any]] = [
        {"schedule": "green"},
        {"deadline": NOON},
        {"earliest_start": NOON},
        {"energy_budget_wh": 1.0},
    ]
    for options in plans:
        with pytest.raises(InvalidInput, match="A carbon plan counts rho in FLOPs"):
            GreenOptions(currency="seconds", **options)


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"deadline": NOON, "earliest_start": NOON}, "green.deadline"),
        ({"deadline": NOON.replace(tzinfo=None)}, "green.deadline"),
        ({"earliest_start": "2026-03-02"}, "green.earliest_start"),
        ({"schedule": "later"}, "green.schedule"),
        ({"on_budget": "explode"}, "green.on_budget"),
        ({"max_hold_s": 0}, "green.max_hold_s"),
        ({"max_hold_s": 1e300}, "green.max_hold_s"),
        ({"max_hold_s": float("inf")}, "green.max_hold_s"),
        ({"deadline": FIRST.replace(tzinfo=timezone(timedelta(hours=14)))}, "green.deadline"),
        (
            {"earliest_start": LAST.replace(tzinfo=timezone(timedelta(hours=-12)))},
            "green.earliest_start",
        ),
        ({"energy_budget_wh": float("inf")}, "green.energy_budget_wh"),
        ({"carbon_budget_g": float("nan")}, "green.carbon_budget_g"),
        ({"carbon_budget_g": True}, "green.carbon_budget_g"),
    ],
)
def test_wishes_that_make_no_sense(wishes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        GreenOptions(**wishes)
    assert refused.value.param == param


@pytest.mark.parametrize("decay", [-1.0, 1e7, 1e300, float("inf"), float("nan"), True])
def test_a_weight_decay_that_would_overflow_is_refused(decay: float) -> None:
    with pytest.raises(InvalidInput, match="a number from 0 to 1000000") as refused:
        TrainingOptions(weight_decay=decay)
    assert refused.value.param == "green.training.weight_decay"
    assert TrainingOptions(weight_decay=WEIGHT_DECAY_MAX).weight_decay == WEIGHT_DECAY_MAX


def test_a_job_from_before_a_bound_is_still_read() -> None:
    old = JobSpec(model="m", training_file="f").to_dict()
    old["training"]["weight_decay"] = old["green"]["max_hold_s"] = 1e300
    spec = JobSpec.from_dict(old)
    assert (spec.training.weight_decay, spec.green.max_hold_s) == (WEIGHT_DECAY_MAX, MAX_HOLD_S)
