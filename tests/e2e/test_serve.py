"""`greentune serve` as its user meets it: refusals in one sentence, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.fixtures.serving import (
    Server,
    environment_of,
    processes_of,
    run_greentune,
    wait_until_gone,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

Lines = Callable[[int], bytes]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    # a path too long for a unix socket, with characters that need quoting
    return tmp_path / ("long " * 12 + "é%20") / "home"


@pytest.fixture
def server(home: Path, tiny_model: Path) -> Iterator[Server]:
    with Server(environment_of(home, models=f"tiny={tiny_model}")) as running:
        yield running


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.rstrip().endswith((".", ".)"))
    return done.stderr


def test_refusals_and_a_clean_end(server: Server, home: Path, tmp_path: Path) -> None:
    again = run_greentune("serve", "--port", "0", environment=server.environment)
    assert str(server.process.pid) in one_sentence(again)
    port = server.url.split(":")[2].removesuffix("/v1")
    other = environment_of(tmp_path / "other")
    taken = run_greentune("serve", "--port", port, environment=other)
    assert f"127.0.0.1:{port}" in one_sentence(taken)
    bad = run_greentune("serve", environment={**other, "GREENTUNE_PORT": "x"})
    assert "GREENTUNE_PORT" in one_sentence(bad)
    assert not processes_of(tmp_path / "other")

    assert home.stat().st_mode & 0o777 == 0o700
    server.wait_until_ready()
    assert len(processes_of(home)) >= 3
    key = server.first_key()
    assert server.stop(signal.SIGINT) == 130
    wait_until_gone(home, timeout_s=1)
    assert not any("Traceback" in line for line in server.lines), "".join(server.lines)
    said = [line for line in server.lines if line.startswith("Stop")]
    assert len(said) == 2
    assert "Ctrl-C again" in said[0]
    assert str(home) in said[1]
    stored = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert key.encode() not in stored

    with Server(server.environment) as second:
        with openai.OpenAI(base_url=second.url, api_key=key) as client:
            assert client.models.list().data[0].id == "tiny"
        assert not any("first API key" in line for line in second.lines)
        assert second.stop(signal.SIGTERM) == 0
    wait_until_gone(home, timeout_s=1)


def test_children_go_when_serve_is_killed(server: Server, home: Path) -> None:
    server.wait_until_ready()
    server.stop(signal.SIGKILL)
    wait_until_gone(home)
    with Server(server.environment) as second:  # the lock went with its holder
        second.wait_until_ready()


def test_a_dead_worker_is_replaced(server: Server, home: Path) -> None:
    server.wait_until_ready()
    [worker] = [pid for pid, command in processes_of(home).items() if "worker worker" in command]
    os.kill(worker, signal.SIGKILL)
    server.wait_for_line("The worker ended unexpectedly (-9); it starts again in 1 s.")
    deadline = time.monotonic() + 60
    while not any(
        "worker worker" in command for pid, command in processes_of(home).items() if pid != worker
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_gives_a_running_job_back(server: Server, home: Path, chat_lines: Lines) -> None:
    server.wait_until_ready()
    key = server.first_key()
    with openai.OpenAI(base_url=server.url, api_key=key) as client:
        file = client.files.create(file=chat_lines(200), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            hyperparameters={"n_epochs": 50, "batch_size": 1},
            extra_body={"green": {"rho": 0.7}},
        )
        deadline = time.monotonic() + 120
        while client.fine_tuning.jobs.retrieve(job.id).green["progress"]["step"] < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert server.stop(signal.SIGINT) == 130
    wait_until_gone(home, timeout_s=1)
    with (
        Server(server.environment, "--no-worker") as second,
        openai.OpenAI(base_url=second.url, api_key=key) as client,
    ):
        left = client.fine_tuning.jobs.retrieve(job.id)
        assert left.status == "queued"
        assert left.green["attempts"][0]["reason"] == "shutdown"
        [checkpoint, *_] = client.fine_tuning.jobs.checkpoints.list(job.id)
        assert checkpoint.step_number >= 20


def test_full_disk(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    (tmp_path / "home" / "tmp" / "probe").symlink_to("/dev/full")
    done = run_greentune("serve", environment=environment_of(tmp_path / "home"))
    assert "cannot be written (No space left on device)" in one_sentence(done)


def test_what_is_away_at_the_start_is_said(tmp_path: Path) -> None:
    """It may come later: the API starts, but nobody is left to wonder why jobs wait."""
    (tmp_path / "file").touch()
    away = environment_of(
        tmp_path / "home",
        broker_url="redis://127.0.0.1:1/0",
        objects_url=(tmp_path / "file" / "objects").as_uri(),
    )
    with Server(away, "--no-worker") as running:
        said = running.wait_for_line("Jobs cannot run yet: the object store does not take writes (")
        assert "Not a directory" in said
        running.wait_for_line("Jobs cannot run yet: the message broker does not answer")


def test_listens_on_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    environment = environment_of(tmp_path, host="::1")
    with Server(environment, "--no-worker") as running:
        assert running.url.startswith("http://[::1]:")
        with openai.OpenAI(base_url=running.url, api_key=running.first_key()) as client:
            assert client.models.list().data
