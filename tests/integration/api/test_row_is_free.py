"""A worker's row is free while an answer is put together for its caller."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import openai
import pytest
from fastapi import FastAPI

from core.carbon.intensity import Intensity, IntensitySignal
from core.jobs import service, store
from core.jobs.database import Database
from core.jobs.records import JobRecord
from tests.integration.api.farm import PROGRESS, samples, take_up

Asked = Callable[[JobRecord], datetime | None]


class Watching:
    """A signal that looks, each time it is asked, at what another connection sees of a job."""

    def __init__(self, signal: IntensitySignal, look: Callable[[], datetime | None]) -> None:
        self._signal, self._look = signal, look
        self.seen: list[datetime | None] = []

    def at(self, zone: str, moment: datetime) -> Intensity:
        self.seen.append(self._look())
        return self._signal.at(zone, moment)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        self.seen.append(self._look())
        return self._signal.series(zone, start, end)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        self.seen.append(self._look())
        return self._signal.forecast(zone, now, end)


@pytest.mark.parametrize(
    ("change", "asked_at"),
    [
        ("cancel", lambda job: job.cancel_requested_at),
        ("pause", lambda job: job.pause_requested_at),
    ],
)
def test_an_order_is_there_before_the_grid_is_asked_for_the_answer(
    app: FastAPI,
    client: openai.OpenAI,
    database: Database,
    chat_lines: Callable[[int], bytes],
    change: str,
    asked_at: Asked,
) -> None:
    file = client.files.create(file=("t.jsonl", io.BytesIO(chat_lines(12))), purpose="fine-tune")
    job_id = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, extra_body={"green": {"zone": "FR"}}
    ).id
    _train(database, job_id)

    def look() -> datetime | None:
        with database.read() as session:
            return asked_at(store.get_job(session, "acme", job_id))

    held = app.state.services
    watching = Watching(held.signal, look)
    app.state.services = dataclasses.replace(held, signal=watching)
    answer = getattr(client.fine_tuning.jobs, change)(job_id)
    assert answer.green["baseline"] is not None
    assert watching.seen
    assert None not in watching.seen


def _train(database: Database, job_id: str) -> None:
    """Plays the worker up to the middle of a job."""
    start = datetime.now(UTC) - timedelta(minutes=1)
    with database.transaction() as session:
        own = take_up(session, job_id, now=start, lease_s=600)
        service.record_energy(*own, samples(start, 3))
        service.record_progress(*own, PROGRESS, estimated_finish=None)
