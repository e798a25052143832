"""What a step costs on this machine: timed and metered while the job's own first steps run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.orm import Session

from core.carbon import calibration
from core.carbon.calibration import TokenCost
from core.carbon.planner import CostPoint
from core.jobs import store
from core.jobs.records import CostRecord
from core.training.hooks import Hook, SelectionRecord, StepRecord
from worker.energy import EnergyLog
from worker.reporter import Reporter

#: a measurement spans at least so many steps and seconds (the meters' own grain), or many steps
MIN_STEPS: Final = 4
MIN_S: Final = 2.0
MANY_STEPS: Final = 32
#: at a selection the time is up: shorter than this is left out
LEAST_S: Final = 0.5


class Calibration(Hook):
    """Seconds and joules per trained token as a function of rho, better with every measurement.

    The first step after a selection warms up and is left out. Wall-clock time counts, with
    everything between the steps: a deadline does.

    Args:
        base: what was known before: stored measurements, or the assumption.
        read_meter: closes the meter's interval now (`EnergyMeter.sample`).
        on_full: told what full fine-tuning takes, whenever that has been measured.
    """

    def __init__(
        self,
        reporter: Reporter,
        log: EnergyLog,
        read_meter: Callable[[], None],
        *,
        model: str,
        hardware: str,
        base: TokenCost,
        on_full: Callable[[CostRecord], None] = lambda _: None,
    ) -> None:
        self._reporter = reporter
        self._log = log
        self._read_meter = read_meter
        self._model = model
        self._hardware = hardware
        self._base = base
        self._on_full = on_full
        self._points: dict[float, CostPoint] = {}
        self._mark: tuple[int, int, float, float] | None = None
        self._is_warm = False
        self._last: StepRecord | None = None
        #: share of FLOPs in force where rho counts something else: measurements are told apart by
        #: FLOPs, on any machine
        self._flops_share: float | None = None
        #: measurements so far
        self.count = 0

    @property
    def token_cost(self) -> TokenCost:
        points = list(self._points.values())
        if not points:
            return self._base
        if len(points) == 1:
            return calibration.through(self._base, points[0])
        return calibration.fitted(points, "measured")

    def on_selection(self, record: SelectionRecord) -> None:
        is_flops = record.currency == "flops"
        self._flops_share = None if is_flops else record.flops_share_planned
        self._mark, self._is_warm = None, False

    def on_step(self, record: StepRecord) -> None:
        self._last = record
        if not self._is_warm:
            self._is_warm = True
            return
        if self._mark is None:
            self._begin(record)
            return
        step, _, _, since_s = self._mark
        n_steps, elapsed_s = record.step - step, time.monotonic() - since_s
        enough = n_steps >= MIN_STEPS and elapsed_s >= MIN_S
        if enough or n_steps >= MANY_STEPS:
            self._measure(record)

    def close(self) -> None:
        """Before a selection: measure what has run since the last measurement, if it is enough."""
        if self._mark is None or self._last is None:
            return
        step, _, _, since_s = self._mark
        if self._last.step - step >= MIN_STEPS and time.monotonic() - since_s >= LEAST_S:
            self._measure(self._last)

    def _begin(self, record: StepRecord) -> None:
        self._read_meter()
        self._mark = (record.step, record.tokens, self._log.energy_j, time.monotonic())

    def _measure(self, record: StepRecord) -> None:
        assert self._mark is not None
        _, tokens_before, energy_before_j, since_s = self._mark
        elapsed_s = time.monotonic() - since_s
        self._read_meter()
        energy_j = self._log.energy_j - energy_before_j
        tokens = record.tokens - tokens_before
        if tokens <= 0 or elapsed_s <= 0:
            return
        s_per_token = elapsed_s / tokens
        rho = round(record.rho if self._flops_share is None else self._flops_share, 2)
        j_per_token = energy_j / tokens
        if energy_j <= 0:  # no meter works here: the power stays assumed
            j_per_token = s_per_token * self._base.cost.power_w(rho)
        self._points[rho] = CostPoint(rho=rho, s_per_step=s_per_token, j_per_step=j_per_token)
        self.count += 1
        # the next one spans the work until the next selection
        self._mark = (record.step, record.tokens, self._log.energy_j, time.monotonic())
        if energy_j > 0:
            self._remember(rho, s_per_token, j_per_token)

    def _remember(self, rho: float, s_per_token: float, j_per_token: float) -> None:
        cost = CostRecord(
            model=self._model,
            hardware=self._hardware,
            rho=rho,
            s_per_token=s_per_token,
            j_per_token=j_per_token,
            updated_at=datetime.now(UTC),
        )

        def write(session: Session, now: datetime) -> None:
            store.put_cost(session, replace(cost, updated_at=now))

        self._reporter.post(write, replaces=f"cost at {rho}")
        if rho == 1.0:
            self._on_full(cost)


def known_cost(
    records: tuple[CostRecord, ...], hardware: str, *, otherwise: TokenCost
) -> TokenCost:
    """Stored measurements of this hardware, else ``otherwise``."""
    points = [
        CostPoint(rho=r.rho, s_per_step=r.s_per_token, j_per_step=r.j_per_token)
        for r in records
        if r.hardware == hardware
    ]
    return calibration.fitted(points, "stored") if points else otherwise
