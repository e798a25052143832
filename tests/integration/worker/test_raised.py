"""Real trainings that raise what nobody foresaw: what their job's caller is told, and how often
they are tried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.jobs import store
from core.jobs.lifecycle import Status
from core.jobs.records import Claim
from tests.integration.worker.conftest import Flaky, running
from tests.integration.worker.desk import Desk
from tests.integration.worker.test_supervisor import until
from worker.runner import Training

TIMEOUT_S = 400
ROOT = Path(__file__).resolve().parents[3]
# the training process as the worker starts it, but for a model whose forward pass is broken
BROKEN = """
import sys
sys.path.insert(0, {root!r})
from transformers import LlamaForCausalLM
def forward(self, *args, **kwargs):
    raise {error}
LlamaForCausalLM.forward = forward
from worker.__main__ import cli
cli(["train-child", "--job", sys.argv[1], "--fence", sys.argv[2]])
"""


@pytest.fixture
def settings(desk: Desk, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The desk's world for processes of their own."""
    monkeypatch.setenv("GREENTUNE_HOME", str(desk.world.home))
    monkeypatch.setenv("GREENTUNE_DATABASE_URL", f"sqlite:///{desk.world.home / 'jobs.db'}")
    monkeypatch.setenv("GREENTUNE_OBJECTS_URL", (desk.world.home / "objects").as_uri())
    monkeypatch.setenv("GREENTUNE_MODELS", f"tiny={tiny_model}")
    monkeypatch.setenv("GREENTUNE_METER_INTERVAL_S", "0.2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def broken(error: str) -> Callable[[Claim], list[str]]:
    code = BROKEN.format(root=str(ROOT), error=error)
    return lambda claim: [sys.executable, "-c", code, claim.job_id, str(claim.fence)]


def attempts(desk: Desk, job_id: str):
    with desk.database.read() as session:
        return store.list_attempts(session, job_id)


@pytest.mark.usefixtures("settings")
def test_an_exception_that_comes_again_ends_the_job_and_says_which(
    desk: Desk, chat_lines: Callable[[int], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = desk.submit(chat_lines(12))
    error = "no head of size 7 in /srv/models/x.bin\nand a second line"
    with running(Flaky(desk.database), broken(f"ValueError({error!r})"), max_attempts=5):
        until(lambda: desk.job(job_id).status.is_terminal, timeout_s=TIMEOUT_S)
    job = desk.job(job_id)
    assert (job.status, job.fence) == (Status.FAILED, 2)
    assert job.error is not None
    said = "Training failed with ValueError: no head of size 7 in <path>"
    assert job.error.code == "training_failed"
    assert job.error.message.startswith(f"{said}. ")
    first, second = attempts(desk, job_id)
    assert (first.outcome, second.outcome) == ("raised", "failed")
    assert first.failure == second.failure == said
    # what both have used stays
    assert min(first.energy_j, second.energy_j) > 0
    assert job.energy_j == pytest.approx(first.energy_j + second.energy_j)
    told = [event.message for event in desk.events(job_id)]
    assert f"{said}; the files will be validated again" in told
    assert told[-1] == f"The job failed: {job.error.message}"
    assert not any("Traceback" in message or "/srv" in message for message in told)
    log = capfd.readouterr().err
    assert log.count("Traceback (most recent call last)") == 2
    assert "and a second line" in log


@pytest.mark.usefixtures("settings")
def test_a_disk_that_is_full_as_safetensors_says_it_is_no_bug(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    """The second full disk in a row, within seconds, failed the job for good."""
    job_id = desk.submit(chat_lines(12))
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    error = f"__import__('safetensors').SafetensorError({said!r})"
    with running(Flaky(desk.database), broken(error), max_attempts=5):
        until(lambda: desk.job(job_id).retries == 1, timeout_s=TIMEOUT_S)
    first = attempts(desk, job_id)[0]
    assert (first.outcome, first.failure) == ("transient", None)
    assert not desk.job(job_id).status.is_terminal


@pytest.mark.usefixtures("settings")
def test_a_process_that_ends_before_it_can_say_why_is_a_crash(
    desk: Desk, chat_lines: Callable[[int], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the training stack could be loaded: the job keeps its attempts, the log tells."""
    job_id = desk.submit(chat_lines(12))
    code = "import no_such_library"
    with running(Flaky(desk.database), lambda _claim: [sys.executable, "-c", code], max_attempts=2):
        until(lambda: desk.job(job_id).status.is_terminal)
    job = desk.job(job_id)
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert [a.outcome for a in attempts(desk, job_id)] == ["died", "died"]
    told = [event.message for event in desk.events(job_id)]
    assert any("ended with status 1 without saying why" in message for message in told)
    assert "no_such_library" in capfd.readouterr().err


def test_a_write_that_the_database_refuses_is_told_as_well(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    job_id = desk.submit(chat_lines(12))
    claim = desk.claim(job_id)
    with desk.reporter(claim) as reporter:
        reporter.post(lambda _session, _now: 1 // 0)
        Training(claim, desk.world, reporter).run()
    job = desk.job(job_id)
    assert (job.is_owned, job.deaths) == (False, 1)
    (attempt,) = attempts(desk, job_id)
    assert attempt.outcome == "raised"
    assert attempt.failure is not None
    assert attempt.failure.startswith("Training failed with ZeroDivisionError: ")
