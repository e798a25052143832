"""Workers, trainings and brokers die; jobs do not.

Every test runs on SQLite with an embedded Valkey and on Postgres with Redis.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis
from safetensors.torch import load_file

import migrations
from api.broker import running_broker
from core.jobs.lifecycle import Status
from tests.e2e.farm import Farm, until

#: short enough that every run leaves several checkpoints behind
CHECKPOINT_EVERY_S = 0.2


@pytest.fixture(params=["embedded", "servers"])
def farm(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        if request.param == "embedded":
            # a socket's path is short, pytest's folders are not
            folder = Path(tempfile.mkdtemp())
            stack.callback(shutil.rmtree, folder)
            stack.enter_context(running_broker(folder / "data", folder / "broker.sock"))
            broker_url = f"redis+socket://{folder / 'broker.sock'}"
            database_url = f"sqlite:///{tmp_path / 'greentune.db'}"
        else:
            database_url = request.getfixturevalue("postgres_url")
            broker_url = request.getfixturevalue("redis_url")
        migrations.upgrade(database_url)
        farm = Farm(tmp_path, database_url=database_url, broker_url=broker_url, model=tiny_model)
        stack.callback(farm.stop)
        yield farm


@pytest.fixture
def lines(chat_lines: Callable[[int], bytes]) -> bytes:
    return chat_lines(320)


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_killed_trainings_resume_and_end_with_the_same_weights(farm, lines, tmp_path):
    """kill -9 of the training, then of supervisor: as if nothing had happened, bit for bit."""
    worker = farm.worker()
    undisturbed = farm.submit(lines, checkpoint_every_s=CHECKPOINT_EVERY_S)
    farm.nudge(undisturbed)
    until(lambda: farm.job(undisturbed).status is Status.SUCCEEDED)

    job_id = farm.submit(lines, checkpoint_every_s=CHECKPOINT_EVERY_S)
    farm.nudge(job_id)
    until(lambda: farm.checkpoints(job_id))
    farm.trainings(worker)[0].kill()
    until(lambda: farm.job(job_id).fence == 2 and farm.trainings(worker))
    (training,) = farm.trainings(worker)
    n_before = len(farm.checkpoints(job_id))
    until(lambda: len(farm.checkpoints(job_id)) > n_before)
    worker.kill()
    until(lambda: not is_running(training), timeout_s=5)
    farm.worker()
    until(lambda: farm.job(job_id).status is Status.SUCCEEDED)

    assert farm.outcomes(job_id) == ["died", "lease_expired", "succeeded"]
    expected = load_file(farm.result(undisturbed, tmp_path / "a") / "model.safetensors")
    found = load_file(farm.result(job_id, tmp_path / "b") / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    # the history tells one loss for a step, however often it was trained
    losses: dict[int, set[float]] = {}
    for event in farm.events(job_id):
        if event.type == "metrics" and "train_loss" in event.data:
            losses.setdefault(event.data["step"], set()).add(event.data["train_loss"])
    assert sorted(losses) == list(range(1, 161))
    assert all(len(found) == 1 for found in losses.values())


def test_a_lost_message_and_a_hundred_doubled_ones_make_one_run(farm, lines):
    farm.worker(sweep_every_s="2")
    job_id = farm.submit(lines, max_steps=20)
    broker(farm).flushdb()
    until(lambda: farm.job(job_id).is_owned)
    for _ in range(100):
        farm.nudge(job_id)
    until(lambda: farm.job(job_id).status is Status.SUCCEEDED)
    assert farm.outcomes(job_id) == ["succeeded"]
    assert [e.message for e in farm.events(job_id)].count("Fine-tuning job started") == 1


def test_cancel_takes_effect_within_a_step_and_the_worker_goes_on(farm, lines):
    worker = farm.worker()
    job_id = farm.submit(lines, n_epochs=50)
    following = farm.submit(lines, max_steps=4)
    until(lambda: farm.job(job_id).progress.step > 3)
    farm.cancel(job_id)
    ordered_at = farm.job(job_id).progress.step
    until(lambda: farm.job(job_id).status is Status.CANCELLED)
    job = farm.job(job_id)
    # orders are looked for every quarter of a second, and these steps take milliseconds
    assert job.progress.step - ordered_at < 400
    assert 0 < job.progress.step < job.progress.total_steps
    assert job.energy_j > 0
    step = job.progress.step
    until(lambda: farm.job(following).status is Status.SUCCEEDED)
    assert farm.job(job_id).progress.step == step
    assert worker.poll() is None


def test_sigterm_and_pause_lose_no_step(farm, lines):
    """SIGTERM checkpoints and gives the job back at once; so does a pause, for the resume."""
    worker = farm.worker()
    # long enough that no order comes after the last step, however busy the machine
    job_id = farm.submit(lines, checkpoint_every_s=3600.0, n_epochs=12)
    until(lambda: farm.job(job_id).progress.step > 3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    job = farm.job(job_id)
    assert (job.status, job.is_owned, job.not_before) == (Status.QUEUED, False, None)
    assert farm.checkpoints(job_id)[0].step == job.progress.step

    farm.worker()
    until(lambda: farm.job(job_id).progress.step > job.progress.step)
    farm.pause(job_id)
    until(lambda: farm.job(job_id).status is Status.PAUSED)
    job = farm.job(job_id)
    assert farm.checkpoints(job_id)[0].step == job.progress.step
    farm.resume(job_id)
    until(lambda: farm.job(job_id).status is Status.SUCCEEDED)
    assert farm.outcomes(job_id) == ["shutdown", "paused", "succeeded"]
    steps = [
        event.data["step"]
        for event in farm.events(job_id)
        if event.type == "metrics" and "train_loss" in event.data
    ]
    assert steps == list(range(1, 961)), "no step was lost, none was trained twice"


@pytest.mark.parametrize("farm", ["embedded"], indirect=True)
def test_work_goes_on_without_a_broker_and_so_does_the_end_of_it(farm, chat_lines):
    farm.broker_url = "redis://127.0.0.1:1/0"
    worker = farm.worker(broker_url=farm.broker_url)
    job_id = farm.submit(chat_lines(3))
    until(lambda: farm.job(job_id).status is Status.FAILED)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0


def broker(farm: Farm) -> redis.Redis:
    url = farm.broker_url.replace("redis+socket://", "unix://")
    return redis.Redis.from_url(url)
