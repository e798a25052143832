"""A job that another release began goes on with what its first attempt made of open options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from core.errors import StorageUnavailable
from core.jobs.lifecycle import Status
from core.training import models, schedule
from core.training.hooks import Hook, StepRecord
from tests.integration.worker.desk import Desk
from worker import prepare, runner

#: epochs and batch size left open: 2 and 4 of 24 examples, 12 steps
N_EXAMPLES, EPOCH, BREAK = 24, 6, 8


class Breaks(Hook):
    def on_step(self, record: StepRecord) -> None:
        if record.step == BREAK:
            raise StorageUnavailable("The disk is away.")


@pytest.fixture
def attempt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``attempt(job_id, *more hooks)``: whatever back-off there is, is over."""
    real, more = runner.train, []

    def train(prepared: Any, *, hooks: Sequence[Hook], **rest: Any) -> Any:
        return real(prepared, hooks=[*hooks, *more], **rest)

    monkeypatch.setattr(runner, "train", train)

    def carry_out(job_id: str, *hooks: Hook) -> None:
        more[:] = hooks
        moment = datetime.now(UTC) + timedelta(hours=1)
        desk.train(desk.claim(job_id, moment=moment, lease_s=7200))

    return carry_out


def rates(desk: Desk, job_id: str) -> list[float]:
    """By step; of a step that was done again, the last."""
    told = [event.data or {} for event in desk.events(job_id)]
    by_step = {row["step"]: row["learning_rate"] for row in told if "learning_rate" in row}
    return [by_step[step] for step in sorted(by_step)]


def another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (0.4, 0.5, 0.7, 1.0)
    monkeypatch.setattr(schedule, "_RULE", (shares, np.log([5e-3, 2e-3, 1e-3, 9e-4])))
    for name in schedule._OWN_PEAKS:
        monkeypatch.setitem(schedule._OWN_PEAKS, name, 0.05)
    monkeypatch.setattr(models, "weight_scale", lambda _model: 0.3)
    monkeypatch.setattr(prepare, "DEFAULT_BATCH_SIZE", 2)
    monkeypatch.setattr(prepare, "auto_epochs", lambda _n: 5)


@pytest.mark.parametrize(
    ("green", "asked"),
    [
        ({"method": "green", "rho": 0.6}, {}),
        ({"method": "green", "rho": "auto"}, {"learning_rate_multiplier": 3.0}),
        ({"method": "lora", "rho": 1.0}, {}),
        ({"method": "full", "rho": 1.0}, {"learning_rate": 3e-4}),
    ],
)
def test_a_later_attempt_keeps_rates_batches_and_epochs_of_the_first(
    green: dict[str, Any],
    asked: dict[str, Any],
    desk: Desk,
    attempt: Callable[..., None],
    chat_lines: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"n_epochs": None, "batch_size": None, "prefix_reuse": "off", **asked}

    def submit() -> str:
        return desk.submit(chat_lines(N_EXAMPLES), green=green, **options)

    whole, broken = submit(), submit()
    attempt(whole)
    attempt(broken, Breaks())
    began = desk.job(broken)
    assert (began.retries, began.progress.step) == (1, BREAK)

    another_release(monkeypatch)
    attempt(broken)
    job = desk.job(broken)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.hyperparameters == began.hyperparameters == desk.job(whole).hyperparameters
    assert job.progress.step == job.progress.total_steps == 2 * EPOCH
    assert rates(desk, broken) == pytest.approx(rates(desk, whole), rel=1e-12)

    fresh = submit()
    attempt(fresh)
    assert desk.job(fresh).progress.total_steps == 5 * 2 * EPOCH
    if "learning_rate" not in asked:
        assert max(rates(desk, fresh)) > 1.5 * max(rates(desk, whole))


def test_a_job_whose_row_knows_no_share_goes_on_at_its_rate(
    desk: Desk,
    attempt: Callable[..., None],
    chat_lines: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As releases before wrote it."""
    whole, broken = (
        desk.submit(chat_lines(N_EXAMPLES), n_epochs=2, prefix_reuse="off") for _ in range(2)
    )
    attempt(whole)
    attempt(broken, Breaks())
    row = desk.job(broken).hyperparameters
    assert row is not None
    with desk.database.transaction() as session:
        session.execute(
            text("UPDATE jobs SET hyperparameters = json_remove(hyperparameters, '$.rho')")
        )
    assert desk.job(broken).hyperparameters != row
    another_release(monkeypatch)
    attempt(broken)
    assert rates(desk, broken) == pytest.approx(rates(desk, whole), rel=1e-12)
