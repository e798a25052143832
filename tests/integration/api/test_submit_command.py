"""`greentune submit` against the application itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner, Result

from api import cli
from api.client import ServerError
from core.errors import InvalidInput

# an upload has a time limit of its own, of which the in-process transport knows nothing
pytestmark = pytest.mark.filterwarnings("ignore:You should not use the 'timeout' argument")


@pytest.fixture
def submit(server: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs it."""
    monkeypatch.setattr(cli, "server", server)
    return lambda *arguments: CliRunner().invoke(cli.app, ["submit", *arguments])


@pytest.fixture
def training(chat_lines: Callable[[int], bytes], tmp_path: Path) -> str:
    file = tmp_path / "train.jsonl"
    file.write_bytes(chat_lines(12))
    return str(file)


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
    assert "green.rho" in str(refused.exception)
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
