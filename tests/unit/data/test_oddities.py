"""What is odd and not refused is told, of JSONL and of tables alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.lines import Problem
from core.data.oddities import overlap_warning
from core.data.tasks import TaskData, task_named
from core.data.validation import DataLimits, contents, validate

DIALOGSUM = task_named("dialogsum")


def completion(prompt: str, **options: Any) -> bytes:
    return json.dumps({"prompt": prompt, "completion": "b"}, **options).encode() + b"\n"


def warnings(*lines: bytes, max_tracked: int = 100) -> tuple[Problem, ...]:
    limits = DataLimits(min_examples=0, max_tracked=max_tracked)
    report = validate(io.BytesIO(b"".join(lines)), limits=limits)
    assert report.ok
    return report.warnings


def table(folder: Path, name: str, *rows: tuple[str, str]) -> TaskData:
    path = folder / name
    pairs = [dict(zip(("dialogue", "summary"), row, strict=True)) for row in rows]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(pairs), path)
    else:
        path.write_text("dialogue,summary\n" + "".join(f'"{a}","{b}"\n' for a, b in rows))
    return TaskData(task=DIALOGSUM, path=path)


def test_repeats_are_looked_for_among_a_bounded_number():
    lines = [completion(str(n)) for n in range(5)]
    (warning,) = warnings(*lines, lines[0], max_tracked=3)
    assert "among the first 3" in warning.message
    assert warnings(*lines, lines[4], max_tracked=3) == ()


@pytest.mark.parametrize("control", ["\x01", "\x08", "\x0c", "\x1b", "\x7f", "\x85"])
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_control_characters_are_told(control: str, ensure_ascii: bool):
    escaped = (completion(f"{control}{n}", ensure_ascii=ensure_ascii) for n in "12")
    lines = [completion("a"), *escaped]
    (warning,) = warnings(*lines)
    assert (warning.line, warning.code) == (2, "control_character")
    assert warning.message == (
        "2 example(s) hold control characters, which are learned too; "
        f"the first is U+{ord(control):04X} in line 2."
    )


def test_what_only_looks_like_control_characters_is_not():
    assert warnings(completion("tab\t, line\r\n, \\begin{b}, \\u0001, \xa0, é, \u4f60")) == ()


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_tables_are_told_of_repeats_and_control_characters(tmp_path: Path, name: str):
    data = table(tmp_path, name, ("a", "b"), ("c", "d\x1b"), ("a", " b"), ("a", "c"))
    first = 2 if name.endswith("csv") else 1
    assert [(w.line, w.code) for w in data.check().warnings] == [
        (first + 2, "duplicate_example"),
        (first + 1, "control_character"),
    ]


def test_overlap_of_training_and_validation(tmp_path: Path):
    training, validation = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    lines = [completion(str(n)) for n in range(6)]
    training.write_bytes(b"".join(lines[:4]))

    def overlap(*held_out: bytes) -> Problem | None:
        validation.write_bytes(b"".join(held_out))
        both = (contents(path, DataLimits()) for path in (training, validation))
        return overlap_warning(*both, max_tracked=100)

    assert overlap(*lines[4:]) is None
    assert overlap(*lines[2:]) == Problem(
        line=1,
        path="",
        code="train_validation_overlap",
        message="2 validation example(s) also stand in the training file, so the validation loss "
        "will look too good; the first is line 1 of the validation file.",
    )


def test_overlap_of_tables_is_of_their_rows_whatever_their_kind(tmp_path: Path):
    training = table(tmp_path, "train.csv", ("a", "b"), ("c", "d"))

    def overlap(held_out: TaskData) -> Problem | None:
        return overlap_warning(training.contents(), held_out.contents(), max_tracked=100)

    assert overlap(table(tmp_path, "held_out.csv", ("e", "f"))) is None
    found = overlap(table(tmp_path, "held_out.parquet", ("e", "f"), ("c", "d")))
    assert found is not None
    assert found.line == 2
