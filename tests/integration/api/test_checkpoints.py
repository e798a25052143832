"""Checkpoints of jobs that did not succeed, through the unmodified openai client."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from core.errors import NotFound
from core.jobs import service, store
from core.jobs.database import Database
from core.jobs.records import NewCheckpoint
from core.objects.folders import put_folder, read_manifest
from tests.integration.api.farm import take_up

Lines = Callable[[int], bytes]


def start(client: openai.OpenAI, lines: bytes, model: str = "tiny") -> Any:
    file = client.files.create(file=io.BytesIO(lines), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=model, training_file=file.id)


def train(database: Database, job_id: str, prefixes: list[str]) -> int:
    """The worker's part, as far as a checkpoint under each prefix; its fence."""
    now = datetime.now(UTC)
    with database.transaction() as session:
        own = take_up(session, job_id, now=now)
        for step, prefix in enumerate(prefixes, 1):
            new = NewCheckpoint(step=step, prefix=prefix, n_bytes=1)
            service.record_checkpoint(*own, new, now=now)
    return own[2]


def test_checkpoints_of_a_failed_job_are_deleted_by_their_names(
    client: openai.OpenAI,
    rival: openai.OpenAI,
    chat_lines: Lines,
    database: Database,
    app: Any,
    tmp_path: Path,
) -> None:
    objects = app.state.services.objects
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights.safetensors").write_bytes(b"x")
    prefixes = [f"jobs/x/checkpoints/{step}" for step in range(1, 13)]
    put_folder(objects, prefixes[-1], tmp_path / "in")
    job_id = start(client, chat_lines(12)).id
    fence = train(database, job_id, prefixes)
    newest = client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    name = newest.fine_tuned_model_checkpoint

    with pytest.raises(openai.ConflictError) as running:
        client.models.delete(name)
    assert (running.value.code, running.value.param) == ("model_in_use", "model")
    assert f"job {job_id}, which is running" in running.value.message
    with database.transaction() as session:
        who = (session, job_id, fence)
        service.fail(*who, code="nan_loss", message="It diverged.", now=datetime.now(UTC))
    further = start(client, chat_lines(12), name)
    with pytest.raises(openai.ConflictError, match=further.id):
        client.models.delete(name)
    client.fine_tuning.jobs.cancel(further.id)
    with pytest.raises(openai.NotFoundError) as unknown:
        rival.models.delete(name)
    assert unknown.value.code == "model_not_found"

    assert client.models.delete(name).to_dict() == {"id": name, "object": "model", "deleted": True}
    with pytest.raises(NotFound):
        read_manifest(objects, prefixes[-1])
    for late in (client.models.delete, client.models.retrieve):
        with pytest.raises(openai.NotFoundError):
            late(name)
    # more than a page of them, each deleted as it comes
    steps = []
    for row in client.fine_tuning.jobs.checkpoints.list(job_id):
        client.models.delete(row.fine_tuned_model_checkpoint)
        steps.append(row.step_number)
    assert steps == list(range(11, 0, -1))
    assert client.fine_tuning.jobs.checkpoints.list(job_id).data == []
    assert client.fine_tuning.jobs.retrieve(job_id).status == "failed"
    with database.read() as session:
        due = store.list_discarded(session, now=datetime.now(UTC), limit=100)
    assert {item.key for item in due} >= set(prefixes)
