"""Jobs without any training: the worker is played, through the calls that it makes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import openai
from sqlalchemy.orm import Session

from core.jobs import service
from core.jobs.database import Database
from core.jobs.lifecycle import Release
from core.jobs.records import Baseline, EnergyRecord, Hyperparameters, OverheadRecord, Progress

STEP = timedelta(seconds=5)
RESOLVED = Hyperparameters(n_epochs=1, batch_size=4, learning_rate=1e-5)
PROGRESS = Progress(
    step=9,
    total_steps=9,
    trained_tokens=64_000,
    train_loss=1.5,
    rho_measured=0.5,
    spent_flops=1e12,
    full_flops=2e12,
)


def samples(
    start: datetime, count: int, *, joules: float = 300.0, **options: Any
) -> list[EnergyRecord]:
    """``count`` intervals of 5 s of a CPU and of RAM with half its energy, at 100 g/kWh."""
    grid: dict[str, Any] = {
        "intensity_g_per_kwh": 100.0,
        "intensity_kind": "average",
        "intensity_source": "test",
        "intensity_is_estimated": False,
        "zone": "FR",
    }
    return [
        EnergyRecord(
            device=device,
            started_at=start + n * STEP,
            ended_at=start + (n + 1) * STEP,
            energy_j=joules * share,
            method=method,
            **(grid | options),
        )
        for n in range(count)
        for device, share, method in (("cpu", 1.0, "rapl"), ("ram", 0.5, "estimate"))
    ]


def take_up(
    session: Session, job_id: str, *, now: datetime, lease_s: float = 60, worker: str = "w"
) -> tuple[Session, str, int]:
    """Claim a job, find its data right and start it; what every further call begins with."""
    claim = service.claim(
        session, worker=worker, now=now, lease_s=lease_s, max_attempts=9, job_id=job_id
    )
    assert claim is not None
    own = (session, job_id, claim.fence)
    service.validated(*own, now=now)
    service.started(*own, now=now, hyperparameters=RESOLVED)
    return own


class Farm:
    """Plays the worker: jobs with two attempts, through the calls that workers make."""

    def __init__(self, client: openai.OpenAI, database: Database, file_id: str) -> None:
        self._client, self._database, self._file_id = client, database, file_id

    def job(self, *energy: list[EnergyRecord], model: str = "tiny", **green: Any) -> str:
        """A succeeded job with these rows, an attempt each."""
        job_id = self._client.fine_tuning.jobs.create(
            model=model, training_file=self._file_id, extra_body={"green": green}
        ).id
        for number, rows in enumerate(energy):
            self._attempt(job_id, rows, is_last=number == len(energy) - 1)
        return job_id

    def _attempt(self, job_id: str, rows: list[EnergyRecord], *, is_last: bool) -> None:
        start = rows[0].started_at
        with self._database.transaction() as session:
            own = take_up(session, job_id, now=start, worker="w<b>")
            service.append_event(
                *own,
                level="info",
                message="Selected",
                type="message",
                data={"kind": "selection", "rho": 0.5, "duration_s": 4.0},
                now=start + STEP,
            )
            selection = OverheadRecord(
                kind="selection",
                started_at=start + STEP - timedelta(seconds=4),
                ended_at=start + STEP,
            )
            service.record_overhead(*own, selection)
            service.record_attribution(*own, "machine")
            service.record_energy(*own, rows)
            service.record_progress(*own, PROGRESS, estimated_finish=None)
            end = rows[-1].ended_at
            if not is_last:
                service.release(*own, reason=Release.SHUTDOWN, max_attempts=9, now=end)
                return
            baseline = Baseline(kind="average", energy_j=7200.0, emissions_g=0.5)
            service.set_baseline(*own, baseline)
            service.succeed(
                *own, model_prefix=f"jobs/{job_id}", model_bytes=1, result_files=[], now=end
            )
