"""`greentune submit` against the application itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from api import cli, submit_command
from api.client import ServerError
from core.errors import InvalidInput, MissingParameter
from core.jobs.database import Database
from core.jobs.tables import Job
from core.spec import EvalOptions, JobSpec, MethodOptions, TaskOptions
from core.training_options import TrainingOptions

# an upload has a time limit of its own, of which the in-process transport knows nothing
pytestmark = pytest.mark.filterwarnings("ignore:You should not use the 'timeout' argument")


@pytest.fixture
def submit(server: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs it."""
    monkeypatch.setattr(submit_command, "server", server)
    return lambda *arguments: CliRunner().invoke(cli.app, ["submit", *arguments])


@pytest.fixture
def training(chat_lines: Callable[[int], bytes], tmp_path: Path) -> str:
    file = tmp_path / "train.jsonl"
    file.write_bytes(chat_lines(12))
    return str(file)


@pytest.fixture
def arrived(
    submit: Callable[..., Result], database: Database, training: str
) -> Callable[..., JobSpec]:
    """The job that the server made of a submission."""

    def spec(*options: str, file: str = training) -> JobSpec:
        done = submit(file, "--model", "tiny", *options)
        assert done.exception is None, done.exception
        with database.transaction() as session:
            found: JobSpec = session.scalars(select(Job.spec)).one()
        return found

    return spec


def test_a_job_keeps_its_files(
    submit: Callable[..., Result], client: openai.OpenAI, training: str
) -> None:
    done = submit(training, "--validation", training, "--model", "tiny")
    assert done.exception is None, done.exception
    job = client.fine_tuning.jobs.retrieve(done.output.strip())
    assert {file.id for file in client.files.list()} == {job.training_file, job.validation_file}


def test_a_refused_job_leaves_no_file_behind(
    submit: Callable[..., Result], client: openai.OpenAI, training: str
) -> None:
    refused = submit(training, "--validation", training, "--model", "tiny", "--rho", "7")
    assert isinstance(refused.exception, ServerError)
    assert str(refused.exception).startswith("--rho must be a number above 0")
    assert list(client.files.list()) == []


def test_a_file_with_mistakes_names_them_and_leaves_none_behind(
    submit: Callable[..., Result], client: openai.OpenAI, training: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": 1}\n' * 12)
    refused = submit(training, "--validation", str(wrong))
    assert isinstance(refused.exception, InvalidInput)
    assert f"{wrong}: " in str(refused.exception)
    assert "prompt" in str(refused.exception)
    assert list(client.files.list()) == []


def test_what_is_not_said_is_as_the_server_has_it(arrived: Callable[..., JobSpec]) -> None:
    spec = arrived()
    assert (spec.training, spec.task, spec.eval) == (TrainingOptions(), None, None)
    assert (spec.green.rho, spec.green.importance) == (0.7, "importance")
    assert spec.green.options == MethodOptions()


def test_how_to_train_arrives(arrived: Callable[..., JobSpec], training: str) -> None:
    spec = arrived(
        *("--validation", training, "--epochs", "3", "--batch-size", "2", "--accumulation", "5"),
        *("--learning-rate", "1e-4", "--max-steps", "70", "--max-input-tokens", "80"),
        *("--max-output-tokens", "90", "--selection-interval", "0.5", "--prefix-reuse", "off"),
        *("--checkpoint-every-s", "30", "--precision", "fp32", "--gradient-checkpointing"),
        *("--early-stopping-patience", "2", "--seed", "11", "--importance", "fisher"),
    )
    assert spec.training == TrainingOptions(
        n_epochs=3,
        batch_size=2,
        gradient_accumulation=5,
        learning_rate=1e-4,
        max_steps=70,
        max_input_tokens=80,
        max_output_tokens=90,
        selection_interval=0.5,
        prefix_reuse="off",
        checkpoint_every_s=30.0,
        precision="fp32",
        gradient_checkpointing=True,
        early_stopping_patience=2,
    )
    assert (spec.seed, spec.green.importance) == (11, "fisher")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("last_k --k 2", MethodOptions(k=2)),
        ("prefix --virtual-tokens 5", MethodOptions(n_virtual_tokens=5)),
        (
            "lora --lora-r 4 --lora-alpha 16 --lora-dropout 0.1 --lora-targets all-linear --merge",
            MethodOptions(r=4, alpha=16.0, dropout=0.1, target_modules="all-linear", merge=True),
        ),
    ],
)
def test_options_of_a_method_arrive(
    arrived: Callable[..., JobSpec], options: str, expected: MethodOptions
) -> None:
    spec = arrived("--method", *options.split())
    assert options.startswith(spec.green.method)
    assert spec.green.options == expected


def test_questions_arrive(arrived: Callable[..., JobSpec], training: str) -> None:
    spec = arrived(
        *("--validation", training, "--eval-metrics", "rougeL, f1", "--eval-examples", "7"),
        *("--eval-decoding", "beam", "--eval-new-tokens", "9"),
    )
    assert spec.eval == EvalOptions(
        metrics=("rougeL", "f1"), max_examples=7, decoding="beam", max_new_tokens=9
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", "doc,gold\na,b\n"), ("t.jsonl", '{"doc": "a", "gold": "b"}\n')],
)
def test_a_task_arrives_with_its_table(
    arrived: Callable[..., JobSpec], tmp_path: Path, name: str, content: str
) -> None:
    table = tmp_path / name
    table.write_text(content * 12)
    spec = arrived("--task", "scitldr", "--columns", "src=doc,summary=gold", file=str(table))
    assert spec.task == TaskOptions(name="scitldr", columns={"src": "doc", "summary": "gold"})


def test_columns_of_no_task_upload_nothing(
    submit: Callable[..., Result], client: openai.OpenAI, training: str
) -> None:
    refused = submit(training, "--columns", "src=doc")
    assert isinstance(refused.exception, MissingParameter)
    assert "say which --task" in str(refused.exception)
    assert list(client.files.list()) == []


def test_a_table_of_no_task_is_not_uploaded(
    submit: Callable[..., Result], client: openai.OpenAI, training: str, tmp_path: Path
) -> None:
    """It became a job, and failed there."""
    table = tmp_path / "t.csv"
    table.write_text("doc,gold\na,b\n")
    for files in ([str(table)], [training, "--validation", str(table)]):
        refused = submit(*files, "--model", "tiny")
        assert isinstance(refused.exception, InvalidInput), refused.exception
        assert "t.csv is a table; say which task it is for: --task" in str(refused.exception)
    assert list(client.files.list()) == []


def test_a_table_that_cannot_be_read_is_refused_of_a_task_too(
    submit: Callable[..., Result], client: openai.OpenAI, tmp_path: Path
) -> None:
    table = tmp_path / "t.parquet"
    table.write_text("no Parquet")
    refused = submit(str(table), "--task", "scitldr")
    assert isinstance(refused.exception, InvalidInput)
    assert f"{table}: " in str(refused.exception)
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--task haiku", "There is no task 'haiku'"),
        ("--task scitldr --columns text=doc", "has no field 'text'"),
        ("--importance luck", "--importance must be one of"),
        ("--precision fp8", "--precision must be one of"),
        ("--prefix-reuse maybe", "--prefix-reuse must be one of"),
        ("--accumulation 0", "--accumulation must be 1..1024"),
        ("--method lora --lora-targets some", "--lora-targets must be"),
        ("--method full --k 2", "--k is for last_k; --method full ignores it"),
        ("--method lora --lora-alpha nan", "--lora-alpha must be a finite number"),
        (
            "--early-stopping-patience 1",
            "give --validation, or leave --early-stopping-patience out",
        ),
        ("--eval-metrics bleu", "--eval-metrics must be of"),
        ("--eval-metrics f1,", "--eval-metrics: string should have at least 1 character"),
        ("--eval-examples 5", "--eval-metrics asks about the examples of a validation file"),
        ("--seed -1", "--seed must be 0.."),
        ("--suffix a/b", "--suffix must be 1 to 64 letters"),
        ("--model tiny --rho 0.05 --prefix-reuse off", "--rho 0.05 cannot be reached"),
        ("--rho auto", "name the grid in --zone"),
        ("--schedule green", '--schedule "green" follows a grid'),
        ("--max-hold 5", "--max-hold ends the wait for greener hours, and --schedule now"),
        ("--on-budget fail", "give --carbon-budget or --energy-budget"),
        ("--model tiny --deadline -1h", "--deadline 20"),
        (
            "--currency joules --schedule green --zone FR",
            "leave out --currency joules, or --schedule, --earliest-start, --deadline and budgets",
        ),
    ],
)
@pytest.mark.usefixtures("submit")
def test_an_unknown_value_is_one_sentence_and_no_file_stays(
    client: openai.OpenAI,
    training: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    told: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["greentune", "submit", training, *options.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert re.search(r"green\.|hyperparameters|_file", said.err) is None
    assert list(client.files.list()) == []
