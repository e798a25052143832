"""What a token costs: assumed by the model's size, measured, and a curve through few points."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.carbon.calibration import assumed, assumed_of, fitted, parameters_of, through
from core.carbon.planner import CostPoint


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("facebook/opt-2.7b", 2.7e9),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("bigscience/bloomz_1b1", 135e6),
        ("tiny", 135e6),
    ],
)
def test_sizes_that_names_state(model: str, parameters: float) -> None:
    assert parameters_of(model) == parameters


def test_the_assumption_is_stated_and_in_proportion_to_rho() -> None:
    found = assumed_of("x-1b")
    assert found.basis == "assumed"
    assert found.cost.s_per_step(1.0) == pytest.approx(6e9 / 60e9)
    assert found.cost.j_per_step(0.5) == pytest.approx(0.5 * 50 * 6e9 / 60e9)
    assert assumed(6e9, "cuda").cost.s_per_step(1.0) < found.cost.s_per_step(1.0) / 1000


def test_one_measured_point_scales_the_whole_curve() -> None:
    point = CostPoint(rho=0.5, s_per_step=3.0, j_per_step=90.0)
    found = through(assumed_of("x-1b"), point)
    assert found.basis == "measured"
    assert found.cost.s_per_step(0.5) == pytest.approx(3.0)
    assert found.cost.s_per_step(1.0) == pytest.approx(6.0)
    assert found.cost.j_per_step(1.0) == pytest.approx(180.0)


values = st.floats(min_value=1e-6, max_value=1e6)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=6))
@example([(1.0000100000179373, 1.0), (349526.5293835687, 1.0), (349526.5293835687, 1.0)])
def test_noisy_points_make_a_rising_curve_of_the_same_mean(
    costs: list[tuple[float, float]],
) -> None:
    points = [
        CostPoint(rho=(index + 1) / len(costs), s_per_step=s, j_per_step=j)
        for index, (s, j) in enumerate(costs)
    ]
    curve = fitted(reversed(points), "stored").cost
    seconds = [curve.s_per_step(p.rho) for p in points]
    assert seconds == sorted(seconds)
    assert sum(seconds) == pytest.approx(sum(s for s, _ in costs))
    if [s for s, _ in costs] == sorted(s for s, _ in costs):
        assert seconds == pytest.approx([s for s, _ in costs])


def test_a_token_cost_becomes_a_step_cost() -> None:
    point = CostPoint(rho=1.0, s_per_step=0.01, j_per_step=1.0)
    step = fitted([point], "measured").per_step(500.0)
    assert (step.s_per_step(1.0), step.j_per_step(1.0)) == pytest.approx((5.0, 500.0))
