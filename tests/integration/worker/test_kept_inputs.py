"""What a job was accepted with is there when a worker takes it up, however late."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update

from core.jobs import service
from core.jobs.database import now
from core.jobs.lifecycle import Status
from core.jobs.tables import File
from tests.integration.worker.desk import Desk
from worker.tidying import tidy


def _expire_all(desk: Desk) -> None:
    """As if the job had waited, and the sweeps had gone on."""
    with desk.database.transaction() as session:
        session.execute(update(File).values(expires_at=now(session) - timedelta(seconds=1)))
        service.sweep(session, now=now(session), max_attempts=3)
    tidy(desk.database, desk.objects)


def test_a_job_whose_files_expired_meanwhile_still_succeeds(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    lines = chat_lines(12)
    job_id = desk.submit(lines, validation=lines)
    _expire_all(desk)
    job = desk.carry_out(job_id)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.progress.valid_loss is not None
    _expire_all(desk)
    kept = {path.name for path in (desk.world.home / "objects" / "files").iterdir()}
    assert job.spec.training_file not in kept


def test_checkpoints_against_loss_are_pruned_while_the_job_trains(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    """One at every step, an epoch of three steps: uploads may overtake, milestones never."""
    job = desk.carry_out(desk.submit(chat_lines(12), n_epochs=3, checkpoint_every_s=0.001))
    assert job.status is Status.SUCCEEDED
    tidy(desk.database, desk.objects)
    folder = desk.world.home / "objects" / "jobs" / job.id / "checkpoints"
    steps = {int(path.relative_to(folder).parts[0]) for path in folder.rglob("manifest.json")}
    assert {3, 6, 9} <= steps
    assert len(steps - {3, 6, 9}) <= 2
