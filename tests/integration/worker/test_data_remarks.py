"""What is odd in a job's data and not refused is told, once, through both doors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import InvalidInput
from core.jobs.lifecycle import Status
from core.settings import Settings
from core.spec import GreenOptions, JobSpec
from core.training_options import TrainingOptions
from tests.integration.worker.desk import Desk
from worker.run_local import run_local

N_EXAMPLES = 12
CUT = (
    "samples are longer than green.training.max_input_tokens or green.training.max_output_tokens, "
    "and were cut."
)
TYPED = "samples are longer than --max-input-tokens or --max-output-tokens, and were cut."
SAID = (
    "Training file: line 13: 1 example(s) repeat an earlier one; the first repeat is line 13.",
    "Training file: line 14: the key 'label' is not part of the chat format and is ignored.",
    f"Training file: 14 of 14 {CUT}",
    f"Validation file: 1 of 1 {CUT}",
    (
        "1 validation example(s) also stand in the training file, so the validation loss will look "
        "too good; the first is line 1 of the validation file."
    ),
)


@pytest.fixture
def files(chat_lines: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    lines = chat_lines(N_EXAMPLES + 1).splitlines(keepends=True)
    labelled = json.dumps(json.loads(lines[-1]) | {"label": 1}).encode() + b"\n"
    return b"".join([*lines[:N_EXAMPLES], lines[0], labelled]), lines[1]


def test_a_job_tells_it_in_events(desk: Desk, files: tuple[bytes, bytes]) -> None:
    training, validation = files
    made = desk.submit(training, validation=validation, max_input_tokens=8)
    assert desk.carry_out(made).status == Status.SUCCEEDED
    told = [event for event in desk.events(made) if (event.data or {}).get("kind") == "data"]
    assert [event.message for event in told] == list(SAID)
    assert {(event.level, event.type) for event in told} == {("warn", "message")}


def test_a_job_with_nothing_odd_tells_nothing(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    lines = chat_lines(N_EXAMPLES + 1).splitlines(keepends=True)
    made = desk.submit(b"".join(lines[:N_EXAMPLES]), validation=lines[-1])
    desk.carry_out(made)
    assert not [event for event in desk.events(made) if (event.data or {}).get("kind") == "data"]


def local(folder: Path, model: Path, training: Path, validation: Path | None) -> str:
    spec = JobSpec(
        model=str(model),
        training_file=str(training),
        validation_file=None if validation is None else str(validation),
        training=TrainingOptions(n_epochs=1, max_input_tokens=8),
        green=GreenOptions(zone="FR", rho=0.7),
    )
    out = io.StringIO()
    settings = Settings(home=folder / "home", meter_interval_s=0.2)
    run_local(spec, folder / "out", settings, Console(file=out, width=200))
    return out.getvalue()


def test_greentune_run_prints_it(
    files: tuple[bytes, bytes], tmp_path: Path, tiny_model: Path
) -> None:
    training, validation = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    training.write_bytes(files[0])
    validation.write_bytes(files[1])
    printed = local(tmp_path, tiny_model, training, validation)
    typed = [line.replace(CUT, TYPED) for line in SAID]
    assert [line for line in typed if line in printed] == typed


def test_a_table_by_any_case_of_its_name_wants_its_task(tmp_path: Path, tiny_model: Path) -> None:
    training = tmp_path / "DATA.CSV"
    training.write_text("prompt,completion\n" + "a,b\n" * N_EXAMPLES)
    with pytest.raises(InvalidInput, match=r"DATA.CSV is a table; say which task"):
        local(tmp_path, tiny_model, training, None)
