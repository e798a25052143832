"""A task from its table to the model card: prepared, asked, trained, asked again, exported."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.carbon.energy import MeteredEnergy
from core.data.tasks import task_named
from core.data.validation import DataLimits
from core.errors import DataInvalid, InvalidInput
from core.spec import EvalOptions, GreenOptions, JobSpec, TaskOptions
from core.training.generation import decoding_named
from core.training.models import load_model
from core.training_options import TrainingOptions
from worker.corpus import corpus_of
from worker.evaluation import EvaluationFile, energy_within, evaluate_task
from worker.prepare import Prepared, export, prepare, train

N_ROWS = 12


def written(folder: Path, name: str, n_rows: int = N_ROWS) -> Path:
    """Sums: a table that dialogsum's template can be pointed at."""
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["nr", "text", "gold"])
        writer.writerows([n, f"{n} + {n % 7}", n + n % 7] for n in range(n_rows))
    return path


def spec_of(folder: Path) -> JobSpec:
    return JobSpec(
        model="tiny",
        training_file=str(written(folder, "train.csv")),
        validation_file=str(written(folder, "held_out.csv", 5)),
        training=TrainingOptions(n_epochs=1, batch_size=4),
        green=GreenOptions(rho=0.8),
        task=TaskOptions(name="dialogsum", columns={"src": "text", "summary": "gold"}),
        eval=EvalOptions(metrics=["rougeL", "exact_match"], max_examples=3, max_new_tokens=4),
    )


def prepared(spec: JobSpec, tiny_model: Path, cache: Path) -> Prepared:
    assert spec.validation_file is not None
    return prepare(
        spec,
        training_path=Path(spec.training_file),
        validation_path=Path(spec.validation_file),
        models={"tiny": str(tiny_model)},
        cache=cache,
        limits=DataLimits(min_examples=10),
    )


def test_a_task_from_its_table_to_the_model_card(tmp_path: Path, tiny_model: Path):
    job = prepared(spec_of(tmp_path), tiny_model, tmp_path / "cache")
    assert len(job.train_data) == job.training_report.n_examples == N_ROWS
    assert job.exam is not None
    tokenizer = job.loaded.tokenizer
    asked = [tokenizer.decode(list(prompt)) for prompt in job.exam.questions.prompts]
    assert asked == ["0 + 0 TL;DR:", "1 + 1 TL;DR:", "2 + 2 TL;DR:"]
    assert job.exam.questions.references == (("0",), ("2",), ("4",))

    kept = tmp_path / "evaluation.json"
    result = train(job, rho=lambda _step: 0.8, hooks=[EvaluationFile(kept, job.exam)])
    assert result.first_scores is not None
    assert result.scores is not None
    assert list(result.scores) == ["rougeL", "exact_match"]
    found = json.loads(kept.read_text())
    assert found["before"]["scores"] == dict(result.first_scores)
    assert found["after"]["scores"] == dict(result.scores)
    assert (found["after"]["step"], found["n_examples"]) == (3, 3)
    assert len(found["after"]["answers"]) == len(found["references"]) == 3
    assert result.evaluation_flops > found["before"]["flops"] + found["after"]["flops"] > 0

    folder = export(job, tmp_path / "model", result)
    before, after = result.first_scores["rougeL"], result.scores["rougeL"]
    line = f"| ROUGE-L of held-out answers before and after | {before:.2f} and {after:.2f} |"
    assert line in (folder / "README.md").read_text()

    # the exported model, asked again by itself, says what it said at the end of training
    loaded = load_model("again", folder=folder, cache=tmp_path)
    corpus = corpus_of(job.spec, tmp_path / "train.csv", tmp_path / "held_out.csv", DataLimits())
    again = evaluate_task(
        loaded.model,
        loaded.tokenizer,
        corpus.examples(tmp_path / "held_out.csv", loaded),
        ("exact_match", "rougeL"),
        decoding_named("greedy", max_new_tokens=4),
        max_examples=3,
    )
    assert list(again.answers) == found["after"]["answers"]
    assert dict(again.scores) == dict(result.scores)
    assert again.flops == pytest.approx(found["after"]["flops"])


def test_what_is_left_open_the_task_decides(tmp_path: Path, tiny_model: Path):
    spec = replace(spec_of(tmp_path), eval=EvalOptions(decoding="beam"))
    exam = prepared(spec, tiny_model, tmp_path).exam
    assert exam is not None
    task = task_named("dialogsum")
    assert (exam.metrics, len(exam.questions)) == (task.metrics, 5)
    decoding = exam.decoding
    assert (decoding.num_beams, decoding.repetition_penalty) == (4, 2.5)
    assert decoding.max_new_tokens == task.max_new_tokens


def test_energy_is_shared_by_time():
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def row(start_s: float, end_s: float, energy_j: float) -> MeteredEnergy:
        start, end = (noon + timedelta(seconds=s) for s in (start_s, end_s))
        return MeteredEnergy(
            device="cpu", started_at=start, ended_at=end, energy_j=energy_j, method="test"
        )

    rows = [row(0, 10, 100), row(10, 20, 40), row(20, 20, 7), row(20, 30, 30)]
    # half of the first, all of the second, a tenth of the last
    found = energy_within(rows, noon + timedelta(seconds=5), noon + timedelta(seconds=21))
    assert found == pytest.approx(50 + 40 + 3)
    assert energy_within(rows, noon - timedelta(seconds=9), noon) == 0


def test_bad_tables_are_refused_before_the_model_is_loaded(tmp_path: Path):
    spec = spec_of(tmp_path)
    nowhere = tmp_path / "no model"
    with pytest.raises(InvalidInput, match="there are: scitldr, dialogsum, webquestions, piqa"):
        prepared(replace(spec, task=TaskOptions(name="samsum")), nowhere, tmp_path)
    with pytest.raises(InvalidInput, match="which task it is for"):
        prepared(replace(spec, task=None), nowhere, tmp_path)
    with pytest.raises(DataInvalid, match="no column 'dialogue'; its columns are: nr, text, gold"):
        prepared(replace(spec, task=TaskOptions(name="dialogsum")), nowhere, tmp_path)
    table = tmp_path / "held_out.csv"
    table.write_text(table.read_text().replace("3,3 + 3,6", "3,,6"))
    with pytest.raises(DataInvalid, match=r"line 5: text must be .*; got an empty string") as found:
        prepared(spec, nowhere, tmp_path)
    assert found.value.param == "validation_file"
