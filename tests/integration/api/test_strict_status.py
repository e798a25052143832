"""One paused job must not keep a client that validates strictly from listing all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest

from core.jobs import service
from core.jobs.database import Database
from core.settings import Settings
from migrations import upgrade


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    made = Settings(home=tmp_path, models=("tiny",), strict_status=request.param)
    upgrade(made.resolved_database_url)
    return made


@pytest.mark.parametrize(
    ("settings", "status"), [(True, "queued"), (False, "paused")], indirect=["settings"]
)
def test_how_a_paused_job_is_told(
    client: openai.OpenAI, chat_lines: Callable[[int], bytes], database: Database, status: str
) -> None:
    file = client.files.create(file=chat_lines(12), purpose="fine-tune")
    jobs = client.fine_tuning.jobs
    job_id = jobs.create(model="tiny", training_file=file.id).id
    now = datetime.now(UTC)
    with database.transaction() as session:
        claim = service.claim(session, worker="w", now=now, lease_s=60, max_attempts=3)
        assert claim is not None
        service.validated(session, job_id, claim.fence, now=now)
    jobs.pause(job_id)
    with database.transaction() as session:
        service.paused(session, job_id, claim.fence, now=now)
    raw = jobs.with_raw_response
    answers = [a.http_response.json() for a in (raw.pause(job_id), raw.retrieve(job_id))]
    for told in (*answers, *raw.list().http_response.json()["data"]):
        assert (told["status"], told["green"]["state"]) == (status, "paused")
    if status == "queued":
        assert [job.id for job in jobs.list()] == [job_id]
    else:
        with pytest.raises(openai.APIResponseValidationError):
            jobs.list()
