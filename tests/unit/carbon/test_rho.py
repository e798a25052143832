"""The rule behind rho "auto"."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.rho import RhoRule, choose_rho
from core.carbon.signal import Intensity, StaticSignal

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def slot(value, kind="average"):
    return Intensity(value_g_per_kwh=value, zone="XX", kind=kind, source="test", moment=NOW)


def test_at_the_reference_it_is_the_reference_share():
    assert choose_rho(slot(480.0), rho_min=0.34).rho == 0.5


def test_hand_computed():
    # reference 480^.75 * 240^.25 = 403.63; (403.63 / 600)^(4/3) * .5
    decision = choose_rho(slot(600.0), history=(slot(100), slot(240), slot(900)), rho_min=0.2)
    assert decision.trailing_median_g_per_kwh == 240
    assert decision.reference_g_per_kwh == pytest.approx(403.63, abs=0.01)
    assert decision.rho == pytest.approx(0.2947, abs=1e-4)
    assert "600 g/kWh" in decision.reason
    json.dumps(decision.to_dict(), allow_nan=False)


def test_bounds_are_named():
    assert choose_rho(slot(1300.0), rho_min=0.36).clipped == "low"
    assert choose_rho(slot(30.0), rho_min=0.36).clipped == "high"
    assert choose_rho(slot(0.0), rho_min=0.36).rho == 1


def test_marginal_values_never_meet_the_average_reference():
    decision = choose_rho(slot(900.0, "marginal"), history=(slot(10.0),), rho_min=0.36)
    assert decision.absolute_g_per_kwh is None
    assert decision.trailing_median_g_per_kwh is None
    assert decision.rho == 0.5
    with_history = choose_rho(
        slot(900.0, "marginal"), history=(slot(450.0, "marginal"),), rho_min=0.1
    )
    assert with_history.rho == pytest.approx(0.5 * 0.5 ** (4 / 3))


@given(
    st.floats(0.001, 3000),
    st.floats(0.001, 3000),
    st.lists(st.floats(0, 3000), max_size=5),
    st.floats(0.01, 1),
)
def test_dirtier_never_means_more(low, high, history, rho_min):
    low, high = sorted((low, high))
    past = tuple(slot(v) for v in history)
    clean, dirty = (choose_rho(slot(v), history=past, rho_min=rho_min) for v in (low, high))
    assert rho_min <= dirty.rho <= clean.rho <= 1


def test_equal_marginal_quality_per_gram():
    """What equation (1) was derived from: d(rho^alpha)/d(grams) is the same in every zone."""
    rule = RhoRule()
    slopes = []
    for value in (300.0, 480.0, 620.0):
        rho = choose_rho(slot(value), rho_min=0.01, rule=rule).rho
        step = 1e-6
        gained = (rho + step) ** rule.alpha - (rho - step) ** rule.alpha
        slopes.append(gained / (2 * step * value))
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-5)


def test_clean_and_dirty_countries():
    signal = StaticSignal()
    shares = {z: choose_rho(signal.at(z, NOW), rho_min=1 / 3).rho for z in ("FR", "DE", "IN")}
    assert shares["FR"] == 1
    assert 0.5 < shares["DE"] < 1
    assert shares["IN"] == 1 / 3
