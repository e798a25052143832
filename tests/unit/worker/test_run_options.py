"""Options that a method ignores: the API and `greentune run` refuse the same ones, by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.schemas import CreateJob
from api.submission import spec_of
from core.errors import DataInvalid, InvalidInput
from core.spec import METHODS
from worker.__main__ import cli

LORA, RANKING = {"lora", "green_lora"}, {"green", "green_lora"}
#: field, a value, the option of `run` that sets it, and the methods that heed it
HEEDED = [
    ("options.k", 2, "--k", {"last_k"}),
    ("options.r", 8, "--lora-r", LORA),
    ("options.alpha", 16.0, "--lora-alpha", LORA),
    ("options.dropout", 0.1, "--lora-dropout", LORA),
    ("options.target_modules", "all-linear", "--lora-targets", {"lora"}),
    ("options.n_virtual_tokens", 5, "--virtual-tokens", {"prefix"}),
    ("options.merge", True, "--merge", LORA),
    ("importance", "fisher", "--importance", RANKING),
    ("rho", 0.7, "--rho", RANKING | {"last_k"}),
    ("currency", "seconds", "--currency", {"green", "last_k"}),
    ("training.selection_interval", 0.5, "--selection-interval", RANKING | {"last_k"}),
    ("training.prefix_reuse", "on", "--prefix-reuse", RANKING | {"last_k"}),
]
EVERY_PAIR = [
    pytest.param(method, *rest, id=f"{method}-{rest[0]}") for rest in HEEDED for method in METHODS
]


def post(method: str, **green: Any) -> None:
    body = {"model": "m", "training_file": "f", "green": {"method": method, **green}}
    spec_of(CreateJob.model_validate(body), default_zone="FR")


def nested(field: str, value: Any) -> dict[str, Any]:
    block, _, name = field.rpartition(".")
    return {block: {name: value}} if block else {name: value}


@pytest.fixture
def run(tmp_path: Path):
    """`greentune run`, up to its refusal: of the method, or else of the last option, which stands
    beside all that has come through before it.
    """
    train = tmp_path / "train.jsonl"
    train.touch()

    def refusal(*options: str) -> InvalidInput:
        last = ("--early-stopping-patience", "1")  # there is no validation file
        command = ["run", str(train), "--out", str(tmp_path / "out"), *options, *last]
        error = CliRunner().invoke(cli, command).exception
        assert isinstance(error, InvalidInput), error
        return error

    return refusal


@pytest.mark.parametrize(("method", "field", "value", "option", "heeding"), EVERY_PAIR)
def test_both_doors_refuse_what_a_method_ignores(
    run, method: str, field: str, value: Any, option: str, heeding: set[str]
) -> None:
    words = [option] if value is True else [option, str(value)]
    told = run("--method", method, *words)
    if method in heeding:
        post(method, **nested(field, value))
        assert told.param == "green.training.early_stopping_patience"
        assert "--early-stopping-patience" in told.message
        assert "give --validation" in told.message
        return
    with pytest.raises(InvalidInput) as refused:
        post(method, **nested(field, value))
    assert refused.value.param == told.param == f"green.{field}"
    assert (refused.value.code, told.code) == ("invalid_value", "invalid_value")
    assert f"green.{field}" in refused.value.message
    assert option in told.message
    assert "green." not in told.message
    for message in (refused.value.message, told.message):
        assert f"method {method}" in message or "A prefix" in message
        assert "leave" in message


def test_a_fixed_number_of_blocks_is_another_method(run) -> None:
    fixed = ("--method", "last_k", "--k", "2")
    for option, value in (
        ("--rho", "0.7"),
        ("--selection-interval", "1"),
        ("--currency", "seconds"),
    ):
        assert option in run(*fixed, option, value).message
    assert "--method last_k with --k" in run(*fixed, "--rho", "0.7").message
    with pytest.raises(InvalidInput, match=r"green.method last_k with green.options.k costs"):
        post("last_k", options={"k": 2}, rho=0.7)


def test_what_happens_anyway_may_be_said(run) -> None:
    post("full", rho=1, options={"merge": False, "r": None}, importance=None, currency="flops")
    plain = run("--method", "full", "--rho", "1", "--no-merge", "--currency", "flops")
    assert plain.param == "green.training.early_stopping_patience"
    for word in ("auto", "off"):
        post("lora", training={"prefix_reuse": word})
        stored = run("--method", "lora", "--prefix-reuse", word)
        assert stored.param == "green.training.early_stopping_patience"


def test_a_fixed_number_of_blocks_may_store_what_is_below_them(run) -> None:
    post("last_k", options={"k": 2}, training={"prefix_reuse": "on"})
    told = run("--method", "last_k", "--k", "2", "--prefix-reuse", "on")
    assert told.param == "green.training.early_stopping_patience"


def test_other_mistakes_are_told_in_the_words_of_options(run) -> None:
    for option, value in (
        ("--lora-r", "0"),
        ("--epochs", "99"),
        ("--accumulation", "0"),
        ("--method", "bitfit"),
        ("--rho", "much"),
        ("--eval-examples", "0"),
    ):
        assert run("--method", "lora", option, value).message.startswith(f"{option} must be ")


@pytest.mark.parametrize("option", [None, "--validation"])
def test_a_pipe_is_no_training_file(tmp_path: Path, option: str | None) -> None:
    """It was read once for its hash; the check then waited for ever, or found no example."""
    pipe, train = tmp_path / "pipe", tmp_path / "train.jsonl"
    os.mkfifo(pipe)
    train.touch()
    files = [str(pipe)] if option is None else [str(train), option, str(pipe)]
    found = CliRunner().invoke(cli, ["run", *files, "--out", str(tmp_path / "out")])
    assert isinstance(found.exception, InvalidInput)
    assert found.exception.message.startswith(f"{pipe} is a pipe or a device")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [None, "--validation"])
def test_a_table_of_no_task_is_refused_before_anything_is_said(
    tmp_path: Path, option: str | None
) -> None:
    """ "Preparing" stood before it, and the folder was made."""
    table, train = tmp_path / "t.CSV", tmp_path / "train.jsonl"
    for file in (table, train):
        file.touch()
    files = [str(table)] if option is None else [str(train), option, str(table)]
    found = CliRunner().invoke(cli, ["run", *files, "--out", str(tmp_path / "out")])
    assert isinstance(found.exception, InvalidInput)
    assert found.exception.message == (
        "t.CSV is a table; say which task it is for: --task, with --columns where its columns have "
        "other names than the task's."
    )
    assert found.exception.param == ("training_file" if option is None else "validation_file")
    assert found.output == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("train.JSONL", "--validation"), ("--validation",)])
def test_a_file_that_no_task_reads_is_refused_before_anything_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """ "Preparing" stood before it, and the folder was made; the hub was asked for the rest."""
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "train.JSONL"):
        Path(name).write_text("{}\n")
    command = ["run", *options, "notes.txt", "--task", "scitldr", "--out", "out"]
    found = CliRunner().invoke(cli, command)
    assert isinstance(found.exception, InvalidInput)
    assert found.exception.message == (
        "notes.txt is of no kind that a task reads (.jsonl, .csv, .parquet): convert it, or name "
        "it after what it is."
    )
    assert found.exception.param == ("validation_file" if options else "training_file")
    assert found.output == ""
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "--method full --k 3",
            "--k is for last_k; --method full ignores it: leave it out, or choose such a method.",
        ),
        (
            "--task haiku",
            "There is no task 'haiku'; there are: scitldr, dialogsum, webquestions, piqa.",
        ),
        (
            "--task piqa --columns sol3=third",
            "The task piqa has no field 'sol3'; its fields are: goal, sol1, sol2, label.",
        ),
    ],
    ids=["option", "task", "column"],
)
def test_a_refusal_loads_no_training_stack_and_is_one_sentence(
    tmp_path: Path, wrong: str, told: str
) -> None:
    train = tmp_path / "train.jsonl"
    train.touch()
    script = (
        "import json, sys\n"
        "from worker.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    print(json.dumps([ended.code, 'torch' in sys.modules]))\n"
    )
    options = ["run", str(train), "--out", str(tmp_path / "out"), *wrong.split()]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=True
    )
    message, is_loaded = json.loads(done.stdout)
    assert message == told
    assert not is_loaded
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "rho"),
    [((), 0.7), (("--zone", "FR"), "auto"), (("--rho", "auto"), "auto"), (("--rho", "0.4"), 0.4)],
)
def test_a_share_that_nobody_names_is_the_same_at_both_doors(
    options: tuple[str, ...], rho: float | str, tmp_path: Path
) -> None:
    """`run` followed the world's average where the API takes 0.7."""
    train, out = tmp_path / "train.jsonl", tmp_path / "out"
    train.write_text("{}\n")
    told = CliRunner().invoke(cli, ["run", str(train), "--out", str(out), *options])
    assert isinstance(told.exception, DataInvalid)
    assert json.loads((out / "job.json").read_text())["spec"]["green"]["rho"] == rho
    zone = "FR" if "--zone" in options else None
    body = {"model": "m", "training_file": "f", "green": {"zone": zone}}
    if "--rho" not in options:
        assert spec_of(CreateJob.model_validate(body), default_zone=None).green.rho == rho
