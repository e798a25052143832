"""A desk whose jobs have a plan: its hours are recorded, its steps take what the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch

from core.carbon.energy import EnergySample
from core.carbon.trace import Trace, TraceSignal
from core.jobs import service, store
from core.jobs.records import Claim, CostRecord, JobRecord
from core.objects.folders import get_folder
from core.training.hooks import Hook, StepRecord
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.desk import Desk
from worker.calibration import Calibration
from worker.hardware import hardware_and_device

HOUR = timedelta(hours=1)
DIRTY, CLEAN = 600.0, 40.0


class Clock:
    """Stands still until it is moved; begins at a full hour."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + HOUR

    def __call__(self) -> datetime:
        return self.now


class Planned(Desk):
    """A desk whose hours are recorded, and whose steps take as long as the test says."""

    def __init__(self, home: Path, model: Path, hours: str) -> None:
        super().__init__(home, model)
        self.clock = Clock()
        values = tuple(CLEAN if hour == "c" else DIRTY for hour in hours) + (DIRTY,) * 48
        trace = Trace(
            zone="FR", start=self.clock.now, step=HOUR, values_g_per_kwh=values, files=("test",)
        )
        self.start = self.clock.now
        self.world = replace(
            self.world, signal=TraceSignal({"FR": trace}), clock=self.clock, zone="FR"
        )
        #: joules that a step is metered to have used, by step
        self.surprises: dict[int, float] = {}

    def know_cost(self, s_per_token: float, rho: float = 0.7) -> None:
        with self.database.transaction() as session:
            cost = CostRecord(
                model="tiny",
                hardware=hardware_and_device()[0],
                rho=rho,
                s_per_token=s_per_token,
                j_per_token=100 * s_per_token,
                updated_at=self.clock.now,
            )
            store.put_cost(session, cost)

    def claim(self, job_id: str) -> Claim:
        """As a worker would at the clock's time."""
        return super().claim(job_id, moment=self.clock.now, lease_s=1e6)

    def sweep(self) -> list[str]:
        with self.database.transaction() as session:
            return service.sweep(session, now=self.clock.now, max_attempts=3)

    def kinds(self, job_id: str) -> list[str]:
        return [e.data["kind"] for e in self.events(job_id) if e.data and "kind" in e.data]

    def weights(self, job: JobRecord, folder: Path) -> dict[str, torch.Tensor]:
        from transformers import AutoModelForCausalLM

        with self.database.read() as session:
            assert job.fine_tuned_model is not None
            record = store.get_model(session, TENANT, job.fine_tuned_model)
        get_folder(self.objects, record.prefix, folder)
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()


class Pace(Hook):
    """Moves the clock with every step, and meters what the test wants metered."""

    def __init__(self, desk: Planned, step_s: float, calibration: Calibration) -> None:
        self._desk, self._step_s, self._log = desk, step_s, calibration._log

    def on_step(self, record: StepRecord) -> None:
        clock = self._desk.clock
        before = clock.now
        clock.now += timedelta(seconds=self._step_s)
        if (energy_j := self._desk.surprises.get(record.step)) is not None:
            sample = EnergySample(
                started_at=before,
                ended_at=clock.now,
                device="gpu",
                energy_j=energy_j,
                method="nvml_counter",
            )
            self._log.take((sample,))


Make = Callable[..., Planned]
