"""Runs whose rho counts seconds or joules: measured once, kept, and paid for."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch

from core.errors import RhoInfeasible
from core.training.budget import budget_of
from core.training.efficient import LEAST_SHARE
from core.training.hooks import Control
from core.training.horizon import lowest_rho
from core.training.interval import select_over
from core.training.loop import fit
from core.training.measuring import measure_rates, measured_sets
from core.training.methods import method_named
from core.training.prefix import PrefixReuse, loss_step, spared_by_reuse
from core.training.rates import Meter
from core.training.schedule import peak_learning_rate
from core.training.step import LossStep, needs_mask
from tests.fixtures.fit_jobs import prices_of
from tests.fixtures.rates import RATES
from tests.fixtures.tiny_models import Batches
from tests.unit.training.test_fit import Records, _job, _stop_before, _weights

#: elements of the scratch tensor that the optimiser's price is measured on: whole rows
_COLUMNS = 256


class Counter:
    """Moves, from one reading to the next, by what each measurement is made to cost."""

    def __init__(self, costs):
        self._costs = iter(costs)
        self._total = 100.0
        self._is_running = False

    def __call__(self):
        if self._is_running:
            self._total += next(self._costs)
        self._is_running = not self._is_running
        return self._total


def _costs(job, rates=RATES, *, slow_round=None):
    """What `measure_rates` will find, measurement by measurement."""
    n_elements = sum(p.numel() for p in job.model.parameters()) // _COLUMNS * _COLUMNS
    yield from itertools.repeat(rates.parameter * n_elements, 3)
    n_rounds = 3 if job.total_steps >= 600 else 1
    step = LossStep(job.model)
    for at in range(n_rounds):
        place = job.steps_per_epoch * (2 * at + 1) // (2 * n_rounds)
        shape = step.inputs(next(job.batches(place))).shape
        profile = job.prices.mean_profile([shape])
        found = []
        for names in measured_sets(job.profile):
            trained, cost = profile.members(names), rates.forward * profile.forward_flops
            for members, flops in profile.terms:
                if members & trained:
                    own = members.bit_count() == 1
                    cost += flops * (rates.weight if own else rates.activation)
            found.append(cost * (5 if at == slow_round else 1))
        yield from found
        if job.course.spared is not None:
            nearest = measured_sets(job.profile)[0]
            saved = spared_by_reuse(job.model, [shape], job.prices.forward).of(nearest)
            yield found[0] - rates.spared * saved


def _timed(job, rates=RATES, *, currency="seconds"):
    unit = "seconds" if currency == "seconds" else "joules"
    counter = Counter(_costs(job, rates))
    return dataclasses.replace(job, meter=Meter(currency=currency, unit=unit, read=counter))


def _reusing(**options):
    job = _job(**{"selection_interval": None, "n_epochs": 4, "gradient_accumulation": 1} | options)
    shapes = [(3, 12, 0, 12)]
    spared = spared_by_reuse(job.model, shapes, job.prices.forward)
    return dataclasses.replace(job, reuse=PrefixReuse(memory_bytes=1 << 24, spared=spared))


def _measure(job):
    step = loss_step(
        job.model,
        keeps_mask=needs_mask(job.model),
        autocast_dtype=None,
        reuse=job.reuse,
        forward=job.prices.forward,
    )
    return measure_rates(job, step, dict(job.model.named_parameters()))


@functools.cache
def _lowest(**options):
    job = _job(**options)
    return lowest_rho(budget_of(job, RATES).course, job.method, budget_of(job, RATES).profile)


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_prices_come_back_from_what_passes_cost(kind):
    found = _measure(_timed(_job(kind)))
    for price in ("forward", "activation", "weight", "parameter"):
        assert getattr(found, price) == pytest.approx(getattr(RATES, price), rel=1e-6), price
    # nothing is stored: a pass that is spared is worth what a pass costs
    assert found.spared == found.forward


def test_and_what_stored_rows_spare():
    found = _measure(_timed(_reusing()))
    assert found.spared == pytest.approx(RATES.spared, rel=1e-6)


def test_long_jobs_take_the_median_of_three_batches():
    job = dataclasses.replace(
        _job(n_epochs=50, gradient_accumulation=1), feed=Batches(12), validation=[]
    )
    slow = Counter(_costs(job, slow_round=1))
    found = _measure(dataclasses.replace(job, meter=Meter(currency="seconds", read=slow)))
    assert found.weight == pytest.approx(RATES.weight, rel=1e-6)


def test_noise_makes_no_price_negative():
    job = _job()
    # everything took as long as the pass nearest the loss, and the optimiser no time
    flat = Counter([0.0] * 3 + [1e-3] * 3)
    found = _measure(dataclasses.replace(job, meter=Meter(currency="seconds", read=flat)))
    assert found.forward > 0
    assert min(found.activation, found.weight, found.parameter, found.spared) >= 0


def test_a_meter_that_moves_in_steps_is_given_its_time():
    job, joules, seconds = _job(), itertools.count(), itertools.count()
    meter = Meter(
        currency="joules",
        unit="joules",
        read=lambda: float(next(joules)),
        least_s=2.5,
        clock=lambda: float(next(seconds)),
    )
    found = _measure(dataclasses.replace(job, meter=meter))
    once = _measure(_timed(_job())).flops
    # the first pass warms up and is not measured
    shape = LossStep(job.model).inputs(next(job.batches(job.steps_per_epoch // 2))).shape
    warm = job.prices.full(shape)
    assert found.flops - warm == pytest.approx(3 * (once - warm))


@pytest.mark.parametrize("is_reusing", [False, True])
def test_measuring_leaves_nothing_behind(is_reusing):
    job = _timed(_reusing(dropout=0.2) if is_reusing else _job("opt", dropout=0.2))
    frozen = next(iter(job.model.parameters()))
    frozen.requires_grad_(False)
    weights, random = _weights(job.model), torch.get_rng_state()
    mode = job.model.training
    frozen.requires_grad_(True)
    flags = [p.requires_grad for p in job.model.parameters()]
    found = _measure(job)
    assert all(torch.equal(weights[n], p) for n, p in job.model.named_parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert [p.requires_grad for p in job.model.parameters()] == flags
    assert all(p.grad is None for p in job.model.parameters())
    assert job.model.training == mode
    assert found.flops > 0


def test_rho_is_a_share_of_the_time_and_everything_is_told():
    rho, job, seen = 0.7, _timed(_job(rho=0.7)), Records()
    result = fit(job, hooks=[seen])
    (start,), first = seen.starts, seen.selections[0]
    rates = dataclasses.replace(start.rates, flops=0.0, duration_s=0.0)
    budget = budget_of(job, rates)
    assert start.rho_min == pytest.approx(_lowest())
    assert "rho counts seconds: full fine-tuning's step costs about" in start.currency_note
    for selection in seen.selections:
        cost = budget.profile.step_flops(selection.names) / budget.profile.full_flops
        assert selection.currency == "seconds"
        assert selection.rho_planned == pytest.approx(cost)
        assert cost <= rho
        flops = job.profile.step_flops(selection.names)
        assert selection.flops_share_planned == pytest.approx(flops / job.profile.full_flops)
        assert selection.drop_per_flop == pytest.approx(selection.importance / flops)
    assert first.shares.endswith(f"{first.flops_share_planned:.1%} of its FLOPs")
    # measuring is selecting: its FLOPs and seconds count
    assert start.measuring_s == start.rates.duration_s
    told = sum(s.flops for s in seen.selections) + start.rates.flops
    assert result.selection_flops == pytest.approx(told)
    assert start.rates.flops > 2 * job.profile.full_flops
    assert result.train_duration_s > start.rates.duration_s > 0


def test_measuring_is_paid_out_of_rho():
    job, points = _timed(_job(rho=0.95, n_epochs=20)), []

    class Spy:
        """The method, and where it was asked."""

        name, reselects, ranks = job.method.name, False, True
        rho_min, quality = job.method.rho_min, job.method.quality
        rate_rule = job.method.rate_rule

        def choose(self, point):
            points.append(point)
            return job.method.choose(point)

    seen = Records()
    fit(dataclasses.replace(job, method=Spy()), hooks=[seen])
    ((point,), (selection,), (start,)) = points, seen.selections, seen.starts
    full_flops = job.total_steps * job.profile.full_flops * job.training.gradient_accumulation
    assert job.total_steps == selection.n_steps == 60
    assert point.overhead == pytest.approx((start.rates.flops + selection.flops) / full_flops)
    assert selection.rho_planned <= 0.95 - point.overhead


def test_last_blocks_are_as_many_as_the_time_pays_for():
    job, seen = _timed(_job(rho=0.8, method="last_k", max_steps=1)), Records()
    fit(job, hooks=[seen])
    costs = budget_of(job, seen.starts[0].rates).profile
    chosen = seen.selections[0]
    assert chosen.rho_planned == costs.step_flops(chosen.names) / costs.full_flops <= 0.8


def test_the_learning_rate_follows_the_flops():
    job, seen = _timed(_job(rho=0.7, max_steps=1)), Records()
    fit(job, hooks=[seen])
    share = seen.selections[0].flops_share_planned
    assert abs(share - 0.7) > 0.01
    assert seen.steps[0].learning_rate == pytest.approx(peak_learning_rate(share))


def test_curves_that_plans_use_stay_in_flops():
    plain, timed = Records(), Records()
    fit(_job(max_steps=1), hooks=[plain])
    fit(_timed(_job(max_steps=1)), hooks=[timed])
    assert timed.selections[0].quality_curve == plain.selections[0].quality_curve


def test_efficient_is_the_best_drop_for_a_second():
    job = _timed(_job(rho=1.0, max_steps=1))
    job = dataclasses.replace(job, method=method_named("green", is_efficient=True))
    measured = {}

    class Spy:
        """The method, and what it was given."""

        name, reselects, ranks = job.method.name, True, True
        rho_min, quality = job.method.rho_min, job.method.quality
        rate_rule = job.method.rate_rule

        def choose(self, point):
            measured.update(point.measure_importance())
            return job.method.choose(point)

    seen = Records()
    fit(dataclasses.replace(job, method=Spy()), hooks=[seen])
    chosen = seen.selections[0]
    costs = budget_of(job, seen.starts[0].rates).profile

    def ratio(names):
        cost = costs.step_flops(names)
        (rate,) = job.peak_learning_rates(np.array([cost / costs.full_flops]))
        return rate * sum(measured[n] for n in names) / cost

    grid = [LEAST_SHARE + (1 - LEAST_SHARE) * at / 40 for at in range(41)]
    best = [select_over(costs, measured, rho * costs.full_flops).names for rho in grid]
    others = [n for n in best if costs.step_flops(n) >= LEAST_SHARE * costs.full_flops]
    assert ratio(chosen.names) >= max(map(ratio, others)) * (1 - 1e-9)
    per_flop = max(others, key=lambda n: sum(measured[x] for x in n) / job.profile.step_flops(n))
    assert ratio(chosen.names) >= ratio(per_flop)


@pytest.mark.parametrize("is_reusing", [False, True])
def test_a_job_that_is_continued_does_not_measure_again(is_reusing, tmp_path):
    def job():
        return _reusing(rho=0.7) if is_reusing else _job(rho=0.7, selection_interval=0.67)

    def never():
        raise AssertionError("prices are part of the state")

    straight_job = _timed(job())
    straight = fit(straight_job)
    expected = _weights(straight_job.model)
    for stop in (0, 1, straight.total_steps - 2):
        folder = tmp_path / str(stop)
        fit(_timed(job()), checkpoints=folder, control=_stop_before(stop))
        resumed_job = dataclasses.replace(job(), meter=Meter(currency="seconds", read=never))
        again = Records()
        resumed = fit(resumed_job, checkpoints=folder, hooks=[again])
        assert again.starts[0].measuring_s == 0
        assert resumed.selection_flops == straight.selection_flops
        for name, weight in _weights(resumed_job.model).items():
            assert torch.equal(weight, expected[name]), (stop, name)


def test_another_currency_is_measured_anew(tmp_path):
    fit(_timed(_job(rho=0.7)), checkpoints=tmp_path, control=_stop_before(1))
    seen = Records()
    fit(_timed(_job(rho=0.7), currency="joules"), checkpoints=tmp_path, hooks=[seen])
    assert seen.starts[0].rates.currency == "joules"
    fit(_timed(_job(rho=0.7)), checkpoints=tmp_path / "b", control=_stop_before(1))
    plain = Records()
    fit(_job(rho=0.7), checkpoints=tmp_path / "b", hooks=[plain])
    assert plain.starts[0].rates is None
    assert {s.currency for s in plain.selections} <= {"flops"}


def test_what_cannot_be_paid_is_refused_before_any_step():
    rho = _lowest() - 0.01
    seen = Records()
    with pytest.raises(RhoInfeasible, match="not feasible in seconds on this machine") as refused:
        fit(_timed(_job(rho=rho)), hooks=[seen])
    assert refused.value.rho_min == pytest.approx(_lowest())
    assert seen.steps == seen.selections == seen.validations == []
    offered = float(str(refused.value).rstrip(".").rsplit(" ", 1)[1])
    seen = Records()
    fit(_timed(_job(rho=offered, max_steps=1)), hooks=[seen])
    assert seen.selections[0].rho_planned <= offered


def test_where_power_is_only_modelled_that_is_said():
    job = _job(max_steps=1)
    meter = Meter(currency="joules", read=Counter(_costs(job)))
    seen = Records()
    fit(dataclasses.replace(job, meter=meter), hooks=[seen])
    assert "power is only modelled here" in seen.starts[0].currency_note
    assert seen.selections[0].currency == "joules"


def test_a_real_clock_will_do():
    seen = Records()
    job = dataclasses.replace(_job(rho=1.0, max_steps=2), meter=Meter(currency="seconds"))
    result = fit(job, hooks=[seen], control=lambda: Control.CONTINUE)
    rates = seen.starts[0].rates
    assert rates.forward > 0
    assert rates.duration_s > 0
    assert result.outcome == "finished"
    assert prices_of("llama") is job.prices
