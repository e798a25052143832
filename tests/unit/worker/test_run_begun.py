"""`greentune run`: a folder that another release began goes on as it began."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from core.errors import StorageUnavailable
from core.settings import Settings
from core.spec import GreenOptions, JobSpec
from core.training import schedule
from core.training.hooks import Hook, StepRecord
from core.training_options import TrainingOptions
from worker import prepare, run_local

#: epochs and batch size left open: 2 and 4 of 24 examples, 12 steps
N_EXAMPLES, BREAK = 24, 8


class Breaks(Hook):
    def on_step(self, record: StepRecord) -> None:
        if record.step == BREAK:
            raise StorageUnavailable("The disk is away.")


Attempt = Callable[..., Path]


@pytest.fixture
def attempt(
    tmp_path: Path,
    tiny_model: Path,
    chat_lines: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Attempt:
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(N_EXAMPLES))
    settings = Settings(home=tmp_path / "home", meter_interval_s=0.2)
    real = run_local.train

    def carry_out(name: str, green: dict[str, Any], *more: Hook) -> Path:
        def train(prepared: Any, *, hooks: Sequence[Hook], **rest: Any) -> Any:
            return real(prepared, hooks=[*hooks, *more], **rest)

        spec = JobSpec(
            model=str(tiny_model),
            training_file=str(data),
            training=TrainingOptions(prefix_reuse="off"),
            green=GreenOptions(zone="FR", **green),
        )
        with monkeypatch.context() as patched:
            patched.setattr(run_local, "train", train)
            run_local.run_local(spec, tmp_path / name, settings, Console(quiet=True))
        return tmp_path / name

    return carry_out


def steps(out: Path) -> list[tuple[str, float]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [(row["step"], float(row["learning_rate"])) for row in csv.DictReader(file)]


def another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (0.4, 0.5, 0.7, 1.0)
    monkeypatch.setattr(schedule, "_RULE", (shares, np.log([5e-3, 2e-3, 1e-3, 9e-4])))
    monkeypatch.setitem(schedule._OWN_PEAKS, "lora", 0.05)
    monkeypatch.setattr(prepare, "DEFAULT_BATCH_SIZE", 2)
    monkeypatch.setattr(prepare, "auto_epochs", lambda _n: 5)


# PEFT asks transformers 5 for an attribute by its old name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("green", [{"rho": 0.6}, {"method": "lora"}])
def test_a_later_run_keeps_rates_batches_and_epochs_of_the_first(
    green: dict[str, Any], attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steps(attempt("whole", green))
    with pytest.raises(StorageUnavailable):
        attempt("broken", green, Breaks())
    another_release(monkeypatch)
    again = steps(attempt("broken", green))
    assert [step for step, _ in again] == [step for step, _ in whole]
    assert [rate for _, rate in again] == pytest.approx([r for _, r in whole], rel=1e-12)
    fresh = steps(attempt("fresh", green))
    assert len(fresh) == 5 * len(whole)
    assert max(rate for _, rate in fresh) > 1.5 * max(rate for _, rate in whole)


def test_a_folder_of_a_release_that_kept_none_goes_on_by_the_rules(
    attempt: Attempt, tmp_path: Path
) -> None:
    green = {"rho": 0.6}
    with pytest.raises(StorageUnavailable):
        attempt("broken", green, Breaks())
    out = tmp_path / "broken"
    begun = json.loads((out / "begun.json").read_text())
    (out / "begun.json").unlink()
    attempt("broken", green)
    assert json.loads((out / "begun.json").read_text()) == begun
    assert len(steps(out)) == len(steps(attempt("whole", green)))
