"""What is typed wrong is told in a line, never as a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from api.cli import app
from core.errors import InvalidInput
from worker.__main__ import cli


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("submit", "FILE", "--deadline", "+99999999999h"), "--deadline"),
        (("submit", "FILE", "--earliest-start", "9999-12-31T23:59:59-12:00"), "--earliest-start"),
        (("estimate", "--tokens", "9", "--deadline", "+99999999999h"), "--deadline"),
        (("report", "--fleet", "--start", "-99999999999d"), "--start"),
        (("report", "--fleet", "--end", "+99999999999d"), "--end"),
    ],
)
def test_a_moment_that_no_calendar_has(
    arguments: tuple[str, ...], option: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("{}\n")
    told = CliRunner().invoke(app, [str(file) if a == "FILE" else a for a in arguments])
    # `api.cli.main` prints the message of these, and nothing else
    assert isinstance(told.exception, InvalidInput)
    assert f"{option} must be within 100 years of now" in str(told.exception)


@pytest.mark.parametrize("days", ["36526", "99999999"])
def test_a_key_that_outlives_the_calendar(days: str) -> None:
    told = CliRunner().invoke(app, ["keys", "create", "x", "--days", days])
    assert told.exit_code == 2
    assert "36525" in told.output


def test_no_help_is_taken_for_markup() -> None:
    """Rich takes words in brackets for tags, and shows nothing of them."""
    shown = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).output
    assert "Serve on when done (default: in a terminal)." in shown


def _options_of(half: typer.Typer) -> list[tuple[str, str]]:
    commands = typer.main.get_command(half).commands  # type: ignore[attr-defined]
    return [
        (name, word)
        for name, command in commands.items()
        if not command.hidden
        for param in command.params
        for word in (*param.opts, *param.secondary_opts)
        if word.startswith("--")
    ]


@pytest.mark.parametrize("half", [app, cli])
def test_help_names_every_option_whole_in_a_narrow_terminal(half: typer.Typer) -> None:
    """A name that is cut short cannot be typed."""
    shown: dict[str, str] = {}
    for name, option in _options_of(half):
        if name not in shown:
            told = CliRunner().invoke(half, [name, "--help"], env={"COLUMNS": "80"})
            shown[name] = told.output
        assert option in shown[name].split(), (name, option)


def test_help_tells_what_each_command_does_in_a_narrow_terminal() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    assert "Run the whole service here" in shown
    assert "..." not in shown.replace("COMMAND [ARGS]...", "")


def test_a_command_that_is_handed_over_is_called_by_its_name() -> None:
    command = [sys.executable, "-m", "worker", "demo-data", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: greentune demo-data " in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("report", "JOB", "--start", "-7d"), "--start is for --fleet"),
        (("report", "JOB", "--end", "-7d"), "--end is for --fleet"),
        (("report", "JOB", "--group-by", "zone"), "--group-by is for --fleet"),
        (("report", "JOB", "--all-tenants"), "--all-tenants is for --fleet"),
        (("report", "--fleet", "--verify"), "--verify is for one job"),
        (("report", "--fleet", "--html", "a.html"), "--html is for one job"),
        (("report", "--fleet", "--csv", "a.csv"), "--csv is for one job"),
        (("report", "JOB", "--verify", "--json"), "--verify prints a table"),
        (("estimate",), "Name a file, or say how many --tokens; one of them"),
        (("estimate", "FILE", "--tokens", "9"), "Name a file, or say how many --tokens"),
    ],
)
def test_an_option_that_would_have_no_effect(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("{}\n")
    refused = CliRunner().invoke(app, [str(file) if a == "FILE" else a for a in arguments])
    assert isinstance(refused.exception, InvalidInput), refused.exception
    assert told in str(refused.exception)


def test_submit_has_every_option_of_run() -> None:
    """But the folder: a job's results stay with the server."""
    doors = {}
    for name, half in (("submit", app), ("run", cli)):
        commands = typer.main.get_command(half).commands  # type: ignore[attr-defined]
        doors[name] = {word for p in commands[name].params for word in (*p.opts, *p.secondary_opts)}
    assert {"--learning-rate", "--eval-metrics", "--no-merge"} <= doors["submit"]
    assert doors["run"] - doors["submit"] == {"--out", "train"}
