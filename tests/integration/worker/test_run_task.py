"""`greentune run --task`: a table in, a model out that was asked before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "GREENTUNE_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "worker", "run", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    paths = (tmp_path / "train.parquet", tmp_path / "held_out.parquet")
    for path, count in zip(paths, (12, 4), strict=True):
        questions = [f"{n} + {n % 7}?" for n in range(count)]
        answers = [[str(n + n % 7), "many"] for n in range(count)]
        pq.write_table(pa.table({"q": questions, "answers": answers}), path)
    return str(paths[0]), str(paths[1])


def test_questions_from_parquet(tmp_path: Path, tiny_model: Path, tables: tuple[str, str]):
    train, held_out = tables
    out = tmp_path / "out"
    arguments = (
        *(train, "--validation", held_out, "--out", str(out), "--model", str(tiny_model)),
        *("--task", "webquestions", "--columns", "q=q", "--epochs", "1", "--rho", "0.8"),
        *("--eval-metrics", "f1,exact_match", "--eval-examples", "3", "--eval-new-tokens", "5"),
    )
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "3 held-out questions answered" in done.stdout
    assert "Answers before: F1 " in done.stdout
    found = json.loads((out / "evaluation.json").read_text())
    assert [found[at]["step"] for at in ("before", "after")] == [0, 3]
    assert set(found["after"]["scores"]) == {"f1", "exact_match"}
    assert found["references"] == [["0", "many"], ["2", "many"], ["4", "many"]]
    assert found["after"]["energy_j"] >= 0
    card = (out / "model" / "README.md").read_text()
    assert "| F1 of held-out answers before and after |" in card
    # the same command again finds its job done; the options of the exam belong to the job
    assert run(tmp_path, *arguments).returncode == 0
    other = run(tmp_path, *arguments[:-1], "6")
    assert other.returncode != 0
    assert "holds a job with --eval-new-tokens 5, not 6" in other.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--task", "samsum"], "There is no task 'samsum'; there are: scitldr, dialogsum"),
        (["--task", "piqa"], "has no column 'goal'; its columns are: q, answers"),
        (["--columns", "q=q"], "say which --task"),
        (["--task", "webquestions", "--columns", "q"], "field=column"),
        (["--task", "webquestions", "--eval-metrics", "bleu"], "--eval-metrics must be of"),
    ],
)
def test_refusals_are_one_sentence(
    tmp_path: Path, tables: tuple[str, str], options: list[str], complaint: str
):
    train, held_out = tables
    out = ("--out", str(tmp_path / "out"))
    done = run(tmp_path, train, "--validation", held_out, *out, *options)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_file_the_hub_is_asked(tmp_path: Path):
    done = run(tmp_path, "--task", "piqa", "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "ybisk/piqa cannot be loaded from the hub" in done.stderr
    assert "local .jsonl, .csv or .parquet file" in done.stderr
    done = run(tmp_path, "--out", str(tmp_path / "out"))
    assert "or a --task whose data set the hub has" in done.stderr
