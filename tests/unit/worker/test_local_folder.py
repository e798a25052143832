"""What `greentune run` and its neighbours say where they may not write."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.errors import Conflict, StartRefused
from core.spec import GreenOptions, JobSpec, MethodOptions, TaskOptions
from core.training.hooks import StepRecord, ValidationRecord
from core.training_options import TrainingOptions
from tests.fixtures.full_disk import full_disk
from tests.fixtures.hook_records import start_record
from worker.__main__ import main
from worker.local_folder import LocalFolder, MetricsFile


def stepped(step: int) -> StepRecord:
    others = ("epoch", "token_accuracy", "learning_rate", "grad_norm", "rho", "duration_s")
    flops = ("flops", "full_flops", "selection_flops", "evaluation_flops")
    rest: dict[str, Any] = dict.fromkeys((*others, *flops), 1.0)
    return StepRecord(step=step, total_steps=40, loss=step / 8, tokens=100 * step, **rest)


def validated(step: int) -> ValidationRecord:
    return ValidationRecord(
        step=step, epoch=1.0, loss=2.5, token_accuracy=0.5, n_tokens=9, flops=1.0, duration_s=1.0
    )


def rows_of(path: Path) -> list[tuple[str, str, str]]:
    with path.open(newline="") as file:
        return [(row["step"], row["train_loss"], row["tokens"]) for row in csv.DictReader(file)]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StartRefused, match=r"cannot be made \(Not a directory\); .* --out"),
        LocalFolder(path=tmp_path / "file" / "out").held(),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": TrainingOptions(batch_size=8)}, "--batch-size None, not 8"),
        ({"training": TrainingOptions(max_steps=2)}, "--max-steps None, not 2"),
        ({"green": GreenOptions(rho=0.5)}, "--rho 0.7, not 0.5"),
        (
            {"green": GreenOptions(rho=0.7, method="lora", options=MethodOptions(r=4))},
            "--method 'green', not",
        ),
        ({"task": TaskOptions(name="piqa")}, "--task None, not"),
        ({"seed": 3}, "--seed 0, not 3"),
        ({"training_file": "b.jsonl"}, "training_file 'a.jsonl', not 'b.jsonl'"),
    ],
)
def test_another_job_is_told_from_the_folder_s_by_its_option(
    tmp_path: Path, changes: dict[str, Any], told: str
):
    folder = LocalFolder(path=tmp_path)
    spec = JobSpec(model="m", training_file="a.jsonl", green=GreenOptions(rho=0.7))
    folder.begin(spec, [])
    folder.settle_rho(lambda: 0.7)
    folder.begin(spec, [])
    with pytest.raises(Conflict, match=f"holds a job with {told}"):
        folder.begin(replace(spec, **changes), [])


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path):
    folder = LocalFolder(path=tmp_path / "out")
    with (
        folder.held(),
        pytest.raises(Conflict, match="Another `greentune run` works in"),
        folder.held(),
    ):
        pass
    with folder.held():
        pass


def test_a_job_that_never_trained_may_be_mended_in_its_folder(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    folder = LocalFolder(path=tmp_path)

    def begin(text: str, seed: int) -> datetime:
        data.write_text(text)
        return folder.begin(JobSpec(model="m", training_file=str(data), seed=seed), [data])

    first = begin("a mistake", seed=1)
    assert begin("mended", seed=2) == first
    folder.settle_rho(lambda: 0.5)
    assert begin("mended", seed=2) == first
    for text, seed in (("other data", 2), ("mended", 3)):
        with pytest.raises(Conflict, match="choose another --out"):
            begin(text, seed)


def test_a_disk_that_fills_up_leaves_what_was_settled_or_nothing(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    data.touch()
    folder, spec = LocalFolder(path=tmp_path), JobSpec(model="m", training_file=str(data))
    with full_disk(50):
        folder.begin(spec, [data])
    since = folder.begin(spec, [data])
    with full_disk(1):
        folder.settle_rho(lambda: 0.5)
    assert folder.settle_rho(lambda: 0.75) == 0.75
    assert folder.settle_rho(lambda: 0.5) == 0.75
    assert folder.begin(spec, [data]) == since
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "job.json", "rho.json"}


def test_a_disk_that_fills_up_costs_no_line_of_metrics(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    first.on_start(start_record(step=0))
    for step in range(1, 13):
        first.on_step(stepped(step))
    whole = rows_of(path)
    with full_disk(60):
        first.on_validation(validated(12))
    assert rows_of(path) == whole
    # of the line of step 13 its first digit and no more
    with full_disk(path.stat().st_size + 1):
        first.on_step(stepped(13))

    again = MetricsFile(path)
    again.on_start(start_record(step=12))
    assert rows_of(path) == whole


def test_output_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    counts = ["--train", "1", "--validation", "1", "--test", "1"]
    monkeypatch.setattr(sys, "argv", ["greentune", "demo-data", "/dev/null/data", *counts])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == "Input or output failed: Not a directory (/dev/null/data)."
