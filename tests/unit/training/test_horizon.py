"""Interval and selection chosen together, and jobs that keep their share because of it."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from core.errors import RhoInfeasible
from core.training.hooks import Control
from core.training.horizon import Course, choose, lowest_rho
from core.training.interval import Spared
from core.training.loop import fit
from core.training.methods import method_named
from core.training.prefix import PrefixReuse, spared_by_reuse
from core.training.step import LossStep
from tests.fixtures.fit_jobs import prices_of
from tests.fixtures.tiny_models import Batches, tiny_model
from tests.unit.training.test_prefix_reuse import Regrouped, Steps, _job

SPARED = Spared(boundary={}, flops=(1.0,))


@pytest.mark.parametrize(
    ("step", "given", "lengths"),
    [
        (0, {}, [4]),
        (0, {"spared": SPARED}, [4, 8, 16, 20]),
        (4, {"spared": SPARED}, [4, 8, 16]),
        (6, {"spared": SPARED}, [2, 6, 14]),
        (0, {"spared": SPARED, "interval": 1.5}, [6]),
        (6, {"interval": 1.0}, [2]),
        (0, {"spared": SPARED, "selections": frozenset({3})}, [3]),
        (3, {"spared": SPARED, "selections": frozenset({3})}, [1, 5, 13, 17]),
        (19, {"interval": 2.0}, [1]),
        (0, {"reselects": False, "interval": 1.0}, [20]),
    ],
)
def test_intervals_end_with_epochs_or_as_they_were_asked_to(step, given, lengths):
    assert Course(total_steps=20, steps_per_epoch=4, **given).lengths(step) == lengths


@functools.cache
def _spared(kind):
    """By what batches of the first epoch are spared."""
    model, feed = tiny_model(kind), Regrouped(is_pair=kind == "t5")
    step = LossStep(model)
    batches = [feed.batch(0, at) for at in range(feed.batches_per_epoch)]
    shapes = [step.inputs(batch).shape for batch in batches]
    return spared_by_reuse(model, shapes, prices_of(kind).forward), shapes


def _green(kind="llama", *, rho, is_efficient=False, **options):
    spared, shapes = _spared(kind)
    job = _job(
        kind,
        reuse=PrefixReuse(memory_bytes=1 << 24, spared=spared),
        method=method_named("green", is_efficient=is_efficient),
        **{"selection_interval": None, "n_epochs": 4, "gradient_accumulation": 1} | options,
    )
    profile = prices_of(kind).mean_profile(shapes)
    return dataclasses.replace(job, profile=profile, rho=lambda _step: rho)


def _lowest(job):
    return lowest_rho(job.course, job.method, job.profile)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_share_below_the_forward_pass_is_kept(kind):
    job = _green(kind, rho=1.0)
    lowest = _lowest(job)
    assert lowest < job.profile.min_rho
    rho = lowest * 1.05
    job, seen = _green(kind, rho=rho), Steps()
    result = fit(job, hooks=[seen])
    assert all(s.rho_planned <= rho for s in seen.selections)
    spent = result.flops - result.selection_flops
    # batches are grouped anew each epoch, so padding differs a little from the first one's
    assert spent / result.full_flops <= rho * 1.01


def test_the_lowest_share_is_refused_below_and_where_nothing_is_stored():
    job = _green(rho=1.0)
    below = _lowest(job) * 0.99
    for refused in (_green(rho=below), dataclasses.replace(_green(rho=below * 1.05), reuse=None)):
        with pytest.raises(RhoInfeasible):
            fit(refused)
    # every interval must be able to keep it: here the last one is a single pass
    assert _lowest(_green(rho=1.0, n_epochs=3, selection_interval=2.0)) == job.profile.min_rho


def test_the_same_share_trains_more_where_passes_repeat():
    rho = 1.15 * _green(rho=1.0).profile.min_rho
    seen, plain = Steps(), Steps()
    fit(_green(rho=rho), hooks=[seen])
    fit(dataclasses.replace(_green(rho=rho), reuse=None), hooks=[plain])
    assert seen.selections[0].n_steps > plain.selections[0].n_steps
    # at the rate of what is trained
    assert seen.selections[0].importance > plain.selections[0].importance


@pytest.mark.parametrize("is_efficient", [False, True])
def test_stopped_and_resumed_gives_the_same_bits(is_efficient, tmp_path):
    def job():
        return _green(rho=0.8 if is_efficient else 0.4, is_efficient=is_efficient, n_epochs=3)

    whole_job = job()
    whole = fit(whole_job)
    for stop in (1, 5, whole.step - 2):
        folder, part, orders = tmp_path / str(stop), job(), iter([True] * stop)
        fit(
            part,
            checkpoints=folder,
            control=lambda orders=orders: (
                Control.CONTINUE if next(orders, False) else Control.CHECKPOINT_AND_STOP
            ),
        )
        resumed_job, again = job(), Steps()
        resumed = fit(resumed_job, checkpoints=folder, hooks=[again])
        assert [s.step for s in again.steps] == list(range(stop + 1, whole.step + 1))
        assert resumed.train_loss == whole.train_loss
        for (name, one), other in zip(
            whole_job.model.named_parameters(), resumed_job.model.parameters(), strict=True
        ):
            assert torch.equal(one, other), name


def test_efficient_tells_what_it_chose_and_full_is_chosen_where_it_is_best():
    # one batch again and again: what one half teaches, the other half wants
    job = dataclasses.replace(
        _green(rho=1.0, is_efficient=True, max_steps=2), feed=Batches(1), reuse=None
    )
    seen = Steps()
    fit(job, hooks=[seen])
    found = seen.selections[0]
    assert found.rho <= 1
    assert found.drop_per_flop == pytest.approx(
        found.importance / (found.rho_planned * job.profile.full_flops)
    )
    assert found.full_ratio <= 1
    # predicted drops, of which the curve is a low power
    drops = [(rho, share ** (1 / 0.15)) for rho, share in found.quality_curve]
    best = max(drop / rho for rho, drop in drops)
    chosen = found.rho_planned
    at = max(drop for rho, drop in drops if rho <= chosen * 1.05)
    assert at / chosen >= 0.9 * best


def test_what_measuring_costs_is_paid_out_of_the_share():
    rho, seen = 0.8, Steps()
    job = dataclasses.replace(_green(rho=rho, n_epochs=12, selection_interval=12.0), reuse=None)
    result = fit(job, hooks=[seen])
    [selection] = seen.selections
    full_steps = selection.flops / job.profile.full_flops
    assert selection.rho == rho
    assert selection.rho_planned <= rho - full_steps / job.total_steps < rho
    # the first epoch's batches are the mean; others differ a little in padding
    assert result.flops / result.full_flops <= rho * 1.01
    assert result.flops > result.selection_flops > 0
    assert selection.unpaid_share == 0
    assert selection.verdict == ""


def test_where_measuring_leaves_too_little_the_cheapest_step_is_still_made():
    lowest = _green(rho=1.0).profile.min_rho
    seen = Steps()
    job = _green(rho=lowest * 1.001, n_epochs=1)
    fit(dataclasses.replace(job, reuse=None), hooks=[seen])
    assert [s.rho_planned for s in seen.selections] == [pytest.approx(lowest)]


def test_a_job_too_short_to_pay_for_measuring_says_by_how_much_it_exceeds_its_share():
    seen = Steps()
    job = dataclasses.replace(_green(rho=0.6, n_epochs=1, max_steps=2), reuse=None)
    result = fit(job, hooks=[seen])
    [selection] = seen.selections
    assert selection.n_steps == 2
    measuring = selection.flops / (job.profile.full_flops * 2)
    spent = selection.rho_planned + measuring
    assert selection.unpaid_share > 0.1
    assert selection.rho + selection.unpaid_share == pytest.approx(spent, rel=0.01)
    # the two batches differ from the mean one in length
    assert result.flops / result.full_flops > selection.rho + 0.1
    assert (
        f"too few steps (2) to pay for measuring importance, which exceeds rho by "
        f"{selection.unpaid_share:.1%} of full fine-tuning's FLOPs over them" in selection.verdict
    )


@pytest.mark.parametrize("is_efficient", [False, True])
def test_nothing_is_kept_back_where_everything_may_be_trained(is_efficient):
    course = Course(total_steps=4, steps_per_epoch=4)
    job = _green(rho=1.0)
    importance = dict.fromkeys(job.profile.trainable, 1.0)
    method = method_named("green", is_efficient=is_efficient)
    found = [
        choose(
            course,
            method,
            job.profile,
            lambda: importance,
            step=0,
            rho=1.0,
            measuring_steps=measuring_steps,
        )
        for measuring_steps in (0.0, 1.5)
    ]
    assert found[0].choice == found[1].choice
    assert found[1].unpaid_share == 0
