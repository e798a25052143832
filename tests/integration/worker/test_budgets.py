"""Jobs whose carbon budget is spent while they train, through the real runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from core.carbon.intensity import Intensity, IntensitySignal
from core.errors import SignalUnavailable
from core.jobs import service
from core.jobs.lifecycle import Status
from core.spec import EvalOptions
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.planned import Make


@pytest.mark.parametrize("on_budget", ["pause", "stop_and_save", "fail"])
def test_a_spent_budget(make: Make, chat_lines: Callable[[int], bytes], on_budget: str) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {3: 2e9}  # 22 kg
    job_id = desk.submit(
        chat_lines(24), green={"carbon_budget_g": 20_000.0, "on_budget": on_budget}
    )
    job = desk.carry_out(job_id)
    assert job.progress.step == 3
    expected = {
        "pause": Status.PAUSED,
        "stop_and_save": Status.SUCCEEDED,
        "fail": Status.FAILED,
    }
    assert job.status is expected[on_budget]
    said = "The carbon budget of 20000 g is spent."
    assert any(said in event.message for event in desk.events(job_id))
    if on_budget == "fail":
        assert job.error is not None
        assert (job.error.code, job.error.param) == (
            "carbon_budget_exhausted",
            "green.carbon_budget_g",
        )
    if on_budget == "stop_and_save":
        assert job.fine_tuned_model is not None
        assert "budget_reached" in desk.kinds(job_id)
    if on_budget == "pause":
        with desk.database.transaction() as session:
            service.resume(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
        again = desk.carry_out(job_id)
        assert (again.status, again.progress.step) == (Status.PAUSED, 3), "the budget is the job's"


class _Silenced:
    """A signal that has nothing to say of any time from ``since`` on."""

    def __init__(self, signal: IntensitySignal, since: datetime) -> None:
        self._signal, self._since = signal, since

    def at(self, zone: str, moment: datetime) -> Intensity:
        return self._signal.at(zone, moment)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        if start >= self._since:
            raise SignalUnavailable("silent")
        return self._signal.series(zone, start, end)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._signal.forecast(zone, now, end)


def test_energy_of_an_unknown_intensity_is_not_free_to_a_carbon_budget(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("cccc", step_s=1)
    since = desk.start + timedelta(seconds=3)
    desk.world = replace(desk.world, signal=_Silenced(desk.world.signal, since))
    desk.surprises = {2: 1e6, 4: 2e9}  # at 40 g/kWh: 13 g, and what would be 27 kg
    job_id = desk.submit(chat_lines(24), green={"carbon_budget_g": 20_000.0})
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.PAUSED, 4)
    assert "signal" in desk.kinds(job_id)


def test_a_clock_that_is_set_spends_nothing_of_a_budget(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    """What was used since the meter's last sample is taken at the measured power, and the time
    since then is not the wall clock's: an hour of it would be 100 Wh here.
    """
    desk = make("cccccc", step_s=3600)
    desk.know_cost(s_per_token=0.01)
    job_id = desk.submit(chat_lines(24), green={"energy_budget_wh": 20.0})
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 6)


def test_a_model_that_a_budget_left_is_not_told_with_scores_of_another_step(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {9: 2e9}  # in the middle of the second epoch of six steps
    wishes = {"carbon_budget_g": 20_000.0, "on_budget": "stop_and_save"}
    job_id = desk.submit(
        chat_lines(24),
        validation=chat_lines(4),
        evaluation=EvalOptions(metrics=("rougeL",), max_new_tokens=2),
        green=wishes,
        n_epochs=2,
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 9)
    held_out = job.held_out
    assert held_out is not None
    assert held_out.first_validation_loss is not None
    assert held_out.first_scores is not None
    assert (held_out.validation_loss, held_out.scores) == (None, None)
    desk.weights(job, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "before and after" not in card


def test_a_model_that_a_budget_left_has_its_best_weights_with_early_stopping(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {15: 2e9}  # in the third epoch of six steps
    job_id = desk.submit(
        chat_lines(24),
        validation=chat_lines(4),
        green={"carbon_budget_g": 20_000.0, "on_budget": "stop_and_save", "method": "full"},
        n_epochs=4,
        learning_rate=1.0,  # what it learns after the first epoch makes it worse
        warmup_ratio=0.0,
        early_stopping_patience=4,
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 15)
    told = {(e.data or {}).get("kind"): e for e in desk.events(job_id)}
    kept = told["early_stopping"].data["kept_step"]
    assert kept in (6, 12)
    assert f"has the weights of its best step, {kept}." in told["budget_reached"].message
    assert job.held_out is not None
    assert job.held_out.validation_loss is not None
    desk.weights(job, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"of step {kept}, where validation loss was lowest" in card
