"""The Celery app: settings that the engine rests on."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.errors import StartRefused
from core.settings import Settings
from core.wire import CONTROL_QUEUE, JOBS_QUEUE, REVISE, RUN_JOB, SWEEP, TIDY
from worker import tasks
from worker.__main__ import cli
from worker.app import make_app, terms_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, sweep_every_s=7.0, lease_s=9.0)


def test_only_json_is_accepted_and_nothing_is_kept(settings: Settings):
    conf = make_app(settings).conf
    assert conf.accept_content == ["json"]
    assert conf.task_ignore_result
    assert not conf.task_acks_late
    assert not conf.worker_enable_remote_control


def test_a_long_outage_of_the_broker_does_not_end_the_worker(settings: Settings):
    conf = make_app(settings).conf
    assert conf.broker_connection_max_retries is None
    assert conf.broker_connection_retry_on_startup


def test_the_sweep_goes_to_the_control_queue_and_does_not_pile_up(settings: Settings):
    entry = make_app(settings).conf.beat_schedule["sweep"]
    assert entry["task"] == SWEEP
    assert entry["schedule"] == 7.0
    assert entry["options"] == {"queue": CONTROL_QUEUE, "expires": 7.0}


def test_discarded_objects_are_removed_every_minute(settings: Settings):
    entry = make_app(settings).conf.beat_schedule["tidy"]
    assert (entry["task"], entry["schedule"]) == (TIDY, 60.0)
    assert entry["options"] == {"queue": CONTROL_QUEUE, "expires": 60.0}


def test_a_nudge_wakes_and_a_sweep_nudges_again(settings: Settings):
    app = make_app(settings)
    woken: list[bool] = []
    sent: list[tuple[str, list[str], str]] = []
    revised: list[int] = []
    tidied: list[int] = []
    tasks.register(
        app,
        wake=lambda: woken.append(True),
        sweep=lambda: ["ftjob-1", "ftjob-2"],
        revise=lambda: revised.append(1) or 0,
        tidy=lambda: tidied.append(1) or 0,
    )
    app.send_task = lambda name, args, queue: sent.append((name, args, queue))
    app.tasks[RUN_JOB]("ftjob-9")
    app.tasks[SWEEP]()
    app.tasks[REVISE]()
    app.tasks[TIDY]()
    assert (woken, revised, tidied) == ([True], [1], [1])
    assert sent == [(RUN_JOB, ["ftjob-1"], JOBS_QUEUE), (RUN_JOB, ["ftjob-2"], JOBS_QUEUE)]


def test_a_worker_trains_past_its_lease_for_as_long_again(settings: Settings):
    terms = terms_of(settings)
    assert (terms.lease_s, terms.outage_grace_s, terms.poll_s) == (9.0, 9.0, 7.0)


@pytest.mark.parametrize(
    "command",
    [
        ["worker"],
        ["beat"],
        ["beat-health"],
        ["worker-health"],
        ["profile", "x"],
        ["ask", "--model", "x"],
    ],
)
def test_commands_name_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "questions.jsonl").touch()
    if command[0] == "ask":
        command = [*command, "--questions", str(tmp_path / "questions.jsonl")]
    monkeypatch.setenv("GREENTUNE_BROKER_URL", "nonsense")
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, StartRefused), done.output
    assert done.exception.message.startswith("GREENTUNE_BROKER_URL is wrong: must begin with")
