"""What hooks make of a run's records, where rho counts another currency than FLOPs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.carbon.calibration import assumed
from core.jobs.records import HeldOutRecord
from core.training.hooks import (
    CheckpointRecord,
    EvaluationRecord,
    FitResult,
    SelectionRecord,
    StepRecord,
    ValidationRecord,
)
from tests.fixtures import rates
from tests.fixtures.hook_records import start_record
from worker.calibration import MANY_STEPS, Calibration
from worker.hooks import Interrupted, ProgressHook
from worker.overheads import OverheadHook

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
RATES = replace(rates.RATES, duration_s=30.0)


def _selection(**given):
    return SelectionRecord(
        step=0,
        epoch=0.0,
        rho=0.5,
        rho_planned=0.499,
        names=("a",),
        n_trained_parameters=10,
        peak_learning_rate=1.3e-05,
        importance=1.0,
        flops=1.0,
        duration_s=1.0,
        flops_share_planned=0.563,
        **given,
    )


def _step(step):
    return StepRecord(
        step=step,
        total_steps=40,
        epoch=0.0,
        loss=1.0,
        token_accuracy=0.5,
        learning_rate=1e-4,
        grad_norm=1.0,
        rho=0.5,
        flops=1.0,
        full_flops=2.0,
        selection_flops=0.0,
        evaluation_flops=0.0,
        tokens=100 * step,
        duration_s=0.1,
    )


class Scribe:
    def __init__(self):
        self.events = []
        self.kept = None

    def event(self, message, *, level="info", data=None):
        self.events.append((message, data))

    def metrics(self, message, data):
        pass

    def progress(self, progress, remaining_s):
        pass

    def held_out(self, held_out):
        self.kept = held_out


def test_events_tell_the_currency_its_prices_and_both_shares():
    scribe = Scribe()
    hook = ProgressHook(scribe, 0.5)
    hook.on_start(start_record(rates=RATES, full_step_cost=6.04))
    hook.on_selection(_selection(currency="seconds", full_ratio=1.2))
    (started, start), (selected, selection) = scribe.events
    assert started.endswith(
        "rho counts seconds: full fine-tuning's step costs about 6.04 s here, measured in 30.0 s"
    )
    assert start["rates"]["forward"] == RATES.forward
    assert start["full_step_cost"] == 6.04
    assert "at rho 0.5, 49.9% of full fine-tuning's time, 56.3% of its FLOPs" in selected
    assert selected.endswith("1.20 times as much per second")
    assert selection["currency"] == "seconds"
    assert selection["flops_share_planned"] == 0.563


def test_events_tell_what_measuring_takes_beyond_rho():
    scribe = Scribe()
    hook = ProgressHook(scribe, 0.5)
    hook.on_selection(_selection(currency="seconds", n_steps=4, unpaid_share=0.31))
    hook.on_selection(_selection(n_steps=400))
    (selected, selection), (paid, paid_data) = scribe.events
    assert selected.endswith(
        "; too few steps (4) to pay for measuring importance, which exceeds rho by 31.0% of full "
        "fine-tuning's time over them"
    )
    assert selection["unpaid_share"] == 0.31
    assert paid.endswith(", learning rate up to 1.3e-05")
    assert paid_data["peak_learning_rate"] == 1.3e-05
    assert paid_data["unpaid_share"] == 0


def _validation(step, loss):
    return ValidationRecord(
        step=step,
        epoch=0.0,
        loss=loss,
        token_accuracy=0.5,
        n_tokens=10,
        flops=1.0,
        duration_s=0.1,
    )


def _evaluation(step, score):
    return EvaluationRecord(
        step=step,
        epoch=0.0,
        scores={"f1": score},
        answers=("a",),
        n_cut=0,
        n_tokens=1,
        flops=1.0,
        duration_s=0.1,
    )


def _result(**given):
    return FitResult(
        step=40,
        total_steps=40,
        epoch=2.0,
        train_loss=1.0,
        validation_token_accuracy=0.5,
        trained_names=("a",),
        flops=1.0,
        full_flops=2.0,
        selection_flops=0.0,
        evaluation_flops=0.0,
        tokens=4000,
        train_duration_s=4.0,
        **given,
    )


def test_a_job_that_begins_again_forgets_what_came_after_its_base_model():
    scribe = Scribe()
    lost = HeldOutRecord(
        first_validation_loss=3.0,
        validation_loss=2.0,
        first_scores={"f1": 1.0},
        scores={"f1": 9.0},
    )
    hook = ProgressHook(scribe, 0.5, lost)
    hook.on_start(start_record())
    hook.on_validation(_validation(0, 3.0))
    hook.on_evaluation(_evaluation(0, 1.0))
    assert scribe.kept == HeldOutRecord(first_validation_loss=3.0, first_scores={"f1": 1.0})
    hook.on_validation(_validation(20, 2.5))
    assert scribe.kept == replace(lost, validation_loss=2.5, scores=None)


@pytest.mark.parametrize("outcome", ["finished", "paused"])
def test_a_finished_run_knows_figures_that_no_attempt_stored(outcome):
    """An earlier release began the job; a run that stops early has nothing of its end to tell."""
    scribe = Scribe()
    hook = ProgressHook(scribe, 0.5)
    figures = {
        "first_validation_loss": 3.0,
        "validation_loss": 2.0,
        "first_scores": {"f1": 1.0},
        "scores": {"f1": 9.0},
    }
    hook.on_end(_result(outcome=outcome, **figures))
    assert scribe.kept == (HeldOutRecord(**figures) if outcome == "finished" else None)


@pytest.mark.parametrize(("currency", "share"), [("flops", 0.5), ("seconds", 0.56)])
def test_measurements_for_plans_are_kept_by_their_share_of_flops(currency, share):
    posted, log = [], SimpleNamespace(energy_j=0.0)

    def read_meter():
        log.energy_j += 5.0

    calibration = Calibration(
        SimpleNamespace(post=lambda _write, replaces: posted.append(replaces)),
        log,
        read_meter,
        model="m",
        hardware="h",
        base=assumed(1e9, "cpu"),
    )
    calibration.on_selection(_selection(currency=currency))
    for step in range(1, MANY_STEPS + 3):
        calibration.on_step(_step(step))
    assert posted == [f"cost at {share}"]


@pytest.mark.parametrize(
    ("measuring_s", "spans"),
    [(0.0, [("preparation", 100)]), (30.0, [("preparation", 70), ("selection", 30)])],
)
def test_measuring_prices_is_time_spent_on_selection(measuring_s, spans):
    written = []
    hook = OverheadHook(written.append, since=NOON, clock=lambda: NOON + timedelta(seconds=100))
    hook.on_start(start_record(measuring_s=measuring_s))
    found = [(each.kind, (each.ended_at - each.started_at).total_seconds()) for each in written]
    assert found == spans


def _checkpoint():
    return CheckpointRecord(
        step=1,
        epoch=0.1,
        folder=Path("step-1"),
        is_milestone=False,
        train_loss=None,
        train_token_accuracy=None,
        validation_loss=None,
        validation_token_accuracy=None,
    )


def _broken_off(happens):
    """What an attempt has written that is given back 10 s after ``happens``."""
    now, written = [NOON], []
    hook = OverheadHook(written.append, since=NOON, clock=lambda: now[0])

    def give_back():
        with hook.attempt():
            happens(hook, now)
            now[0] += timedelta(seconds=10)
            raise Interrupted

    with pytest.raises(Interrupted):
        give_back()
    return [(each.kind, (each.ended_at - each.started_at).total_seconds()) for each in written]


def test_an_attempt_that_is_held_before_its_first_step_was_preparation():
    assert _broken_off(lambda _hook, _now: None) == [("preparation", 10)]


def test_what_a_suspended_job_waits_for_after_its_checkpoint_belongs_to_the_checkpoint():
    def save(hook, now):
        hook.on_start(start_record(measuring_s=0.0))
        now[0] += timedelta(seconds=5)
        hook.on_step(_step(1))
        now[0] += timedelta(seconds=3)
        hook.on_checkpoint(_checkpoint())

    assert _broken_off(save) == [("checkpoint", 3), ("checkpoint", 10)]


def test_a_step_that_fails_is_no_overhead():
    def step(hook, now):
        hook.on_start(start_record(measuring_s=0.0))
        now[0] += timedelta(seconds=5)
        hook.on_step(_step(1))

    assert _broken_off(step) == []
