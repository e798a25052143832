"""Learning rates, and prices of batches."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.pricing import price_steps, profile_shape
from core.training.schedule import peak_learning_rate, schedule_factor
from core.training_options import MOST_AUTO_EPOCHS, auto_epochs
from tests.fixtures.tiny_models import CAUSAL, PAIRS, tiny_model


@pytest.mark.parametrize(
    ("rho", "rate"), [(1.0, 1e-4), (0.7, 2e-4), (0.5, 3e-4), (0.4, 5e-4), (0.2, 5e-4)]
)
def test_the_measured_rates(rho, rate):
    assert peak_learning_rate(rho) == pytest.approx(rate)
    assert peak_learning_rate(rho, multiplier=2.0) == pytest.approx(2 * rate)
    assert peak_learning_rate(rho, learning_rate=1e-5) == 1e-5


def test_other_methods_have_rates_of_their_own_whatever_they_cost():
    for rho in (0.4, 0.7, 1.0):
        for method in ("last_k", "lora", "prefix"):
            own = peak_learning_rate(rho, method=method)
            assert own == peak_learning_rate(0.5, method=method) > peak_learning_rate(1.0)


@pytest.mark.parametrize(("rho", "rate"), [(1.0, 1e-3), (0.7, 1e-3), (0.5, 2e-3), (0.4, 2e-3)])
def test_adapters_on_selected_projections_have_a_rule_of_their_own(rho, rate):
    assert peak_learning_rate(rho, method="green_lora") == pytest.approx(rate)


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_less_is_trained_the_higher_the_rate(one, other):
    low, high = sorted((one, other))
    assert peak_learning_rate(low) >= peak_learning_rate(high) * (1 - 1e-12)


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 300), st.floats(0, 0.99))
def test_every_step_learns_and_none_more_than_the_peak(kind, total, warmup_ratio):
    factors = [schedule_factor(kind, step, total, warmup_ratio) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    warmup = round(warmup_ratio * total)
    assert all(a < b for a, b in itertools.pairwise(factors[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(factors[warmup:]))


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS])
def test_any_shape_is_priced_as_it_is_profiled(kind):
    model = tiny_model(kind)
    prices = price_steps(model)
    is_pair = kind in PAIRS
    names = [n for n, _ in model.named_parameters()]
    shapes = [(3, 23, 7 * is_pair, 11), (5, 9, 13 * is_pair, 40)]
    profiles = [profile_shape(model, shape) for shape in shapes]
    for shape, profile in zip(shapes, profiles, strict=True):
        assert prices.forward(shape) == pytest.approx(profile.forward_flops, rel=1e-9)
        assert prices.full(shape) == pytest.approx(profile.full_flops, rel=1e-9)
        for chosen in (names[:1], names[-3:], names[::4]):
            assert prices.of(chosen)(shape) == pytest.approx(profile.step_flops(chosen), rel=1e-9)
    mean = prices.mean_profile(shapes)
    assert mean.connected == profiles[0].connected
    for chosen in (names[:1], names[-3:], names[::4], names):
        expected = sum(p.step_flops(chosen) for p in profiles) / 2
        assert mean.step_flops(chosen) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["green", "green_lora", "lora", "last_k"])
def test_samples_that_are_seen_again_share_their_rate(method):
    once = peak_learning_rate(0.7, method=method)
    assert peak_learning_rate(0.7, method=method, passes=0.4) == once
    assert peak_learning_rate(0.7, method=method, passes=3) == pytest.approx(once / 3)
    assert peak_learning_rate(0.7, method=method, passes=1.5, multiplier=2) == pytest.approx(
        once / 0.75
    )


def test_prefixes_keep_their_rate_however_often_samples_are_seen():
    once = peak_learning_rate(0.7, method="prefix")
    assert peak_learning_rate(0.7, method="prefix", passes=0.4) == once
    assert peak_learning_rate(0.7, method="prefix", passes=3) == once
    assert peak_learning_rate(0.7, method="prefix", passes=3, multiplier=2) == 2 * once


@pytest.mark.parametrize("method", ["full", "green", "green_lora", "lora", "last_k"])
def test_a_model_of_smaller_weights_takes_smaller_steps(method):
    on_smollm2 = peak_learning_rate(0.7, method=method)
    assert peak_learning_rate(0.7, method=method, weight_scale=0.2) == 0.2 * on_smollm2
    asked = peak_learning_rate(0.7, method=method, weight_scale=0.2, learning_rate=3e-5)
    assert asked == 3e-5


def test_prefixes_keep_their_rate_whatever_the_model():
    once = peak_learning_rate(0.7, method="prefix")
    assert peak_learning_rate(0.7, method="prefix", weight_scale=0.2) == once


def test_a_rate_that_was_asked_for_is_kept_however_often_samples_are_seen():
    assert peak_learning_rate(0.7, passes=3, learning_rate=1e-4) == 1e-4


def test_open_epochs_are_one_where_examples_are_many_and_two_where_they_are_few():
    assert [auto_epochs(count) for count in (1, 199, 200, 10**6)] == [2, 2, 1, 1]
    assert max(map(auto_epochs, range(1, 500))) == MOST_AUTO_EPOCHS
