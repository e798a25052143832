"""The curve that plans expect quality by."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.quality import LATEST, expected_quality, told_curves


@st.composite
def curves(draw):
    """As a selection tells them: rho and share strictly rising, the last share 1."""
    size = draw(st.integers(1, 12))
    numbers = st.lists(st.integers(1, 1000), min_size=size, max_size=size, unique=True)
    rhos, shares = sorted(draw(numbers)), sorted(draw(numbers))
    return tuple((r / 1000, s / shares[-1]) for r, s in zip(rhos, shares, strict=True))


def test_one_curve_by_hand():
    """(.5, .4) lies under the line from (.4, .6) to (.8, 1): the hull passes over it."""
    found = expected_quality([((0.4, 0.6), (0.5, 0.65), (0.8, 1.0))])
    assert (found.basis, found.n_selections) == ("measured", 1)
    assert found.curve.points == ((0.4, 0.6), (0.8, 1.0), (1.0, 1.0))
    assert found.curve.quality(0.6) == pytest.approx(0.8)
    assert found.curve.quality(0.2) == pytest.approx(0.3)


def test_the_mean_of_the_latest_selections_counts():
    low, high = ((0.5, 0.5), (1.0, 1.0)), ((0.5, 0.9), (1.0, 1.0))
    assert expected_quality([low, high]).curve.quality(0.5) == pytest.approx(0.7)
    later = expected_quality([low, *[high] * LATEST])
    assert later.curve.quality(0.5) == pytest.approx(0.9)
    assert later.n_selections == LATEST


def test_the_jobs_own_goes_before_a_stored_one_and_that_before_the_default():
    own, stored = ((0.5, 0.9), (1.0, 1.0)), ((0.5, 0.6), (1.0, 1.0))
    assert expected_quality([(), own], [stored]).basis == "measured"
    assert expected_quality([()], [stored]).curve.quality(0.5) == pytest.approx(0.6)
    default = expected_quality([])
    assert (default.basis, default.curve.points) == ("assumed", ())
    assert default.words == "quality assumed as rho^0.25"


@given(st.lists(curves(), min_size=1, max_size=6))
def test_it_is_concave_rising_and_nowhere_below_the_mean(found):
    """`QualityCurve` itself refuses what is not concave and rising."""
    made = expected_quality(found).curve
    assert made.quality(1.0) == pytest.approx(1.0)
    shares = [made.quality(n / 100) for n in range(1, 101)]
    assert all(b >= a - 1e-9 for a, b in pairwise(shares))
    latest = found[-LATEST:]
    for rho, _ in latest[0]:
        mean = sum(_at(curve, rho) for curve in latest) / len(latest)
        assert made.quality(rho) >= mean - 1e-9


def _at(curve, rho):
    """Linear between the points and from (0, 0); flat beyond the last."""
    before = (0.0, 0.0)
    for point in curve:
        if rho <= point[0]:
            share = (rho - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def test_what_events_tell():
    curve = [[0.4, 0.6], [1.0, 1.0]]
    told = told_curves([None, {"kind": "selection"}, {"quality_curve": curve}])
    assert told == (((0.4, 0.6), (1.0, 1.0)),)
