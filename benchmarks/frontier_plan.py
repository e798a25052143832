"""Which runs the frontier needs, which are done, and what each will take. Trains nothing.

A folder of JSON files, one a run: calibrations first (what a step of each contender takes, which
turns a budget of seconds into a number of steps), then sweeps of learning rates at one budget or
more, then every budget and seed at the contender's best rate of the sweep at the last of these that
is not beyond the budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.budget_run import CALIBRATION_STEPS, CHECKPOINTS, Pace
from benchmarks.contenders import FULL, Contender

CALIBRATIONS: Final = "calibration-*.json"
#: of the sweep, whatever seeds the budgets are run with
SWEEP_SEED: Final = 0
#: a sweep goes on by this factor, up to so many rates
RATE_STEP: Final = 2.0
MOST_RATES: Final = 5
#: before anything is measured: full fine-tuning's step of SmolLM2-135M on two quiet cores, bf16
ASSUMED_STEP_S: Final = 1.8
#: interpreter, libraries, model, data
_START_S: Final = 15.0
#: a forward pass is a third of a step
_FORWARD: Final = 1 / 3
#: greedy answers, by experience, in full steps a question
_ANSWER_STEPS: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What makes results comparable; runs of other settings lie in other folders."""

    data: str
    digest: str
    model: str
    machine: str
    reference_steps: int
    batch_size: int
    n_validation: int
    n_questions: int
    #: machine whose seconds budgets are; empty: the one that trains
    paced_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """``budget`` None: a calibration; ``rate`` None: not known before the sweep is done."""

    contender: Contender
    budget: float | None = None
    rate: float | None = None
    seed: int = SWEEP_SEED

    @property
    def is_open(self) -> bool:
        """Whether it cannot start before others are done."""
        return self.budget is not None and self.rate is None

    @property
    def text(self) -> str:
        if self.budget is None:
            return f"calibrate {self.contender.label}"
        rate = "best rate" if self.rate is None else f"rate {self.rate:g}"
        return f"{self.contender.label}, budget {self.budget:g}, {rate}, seed {self.seed}"


class Cache:
    """Results of one ``Settings``."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    def file(self, job: Job) -> Path:
        name = job.contender.label.replace(" ", "-").replace(".", "_")
        if job.budget is None:
            return self.folder / f"calibration-{name}.json"
        assert job.rate is not None, "the sweep is done"
        return self.folder / f"{name}-b{job.budget:g}-lr{job.rate:g}-seed{job.seed}.json"

    def found(self, job: Job) -> dict[str, Any] | None:
        path = self.file(job)
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def pace(self, contender: Contender) -> Pace | None:
        """None: not measured, or the contender's rho is not feasible here."""
        found = self.found(Job(contender=contender))
        if found is None or "rho_min" in found:
            return None
        return Pace(step_s=found["step_s"], selection_s=found["selection_s"])

    def rho_min(self, contender: Contender) -> float | None:
        """Lowest feasible rho, where the contender's is below that."""
        found = self.found(Job(contender=contender)) or {}
        lowest: float | None = found.get("rho_min")
        return lowest

    def sweep(self, contender: Contender, budget: float) -> list[Job]:
        """The rates to try at ``budget``, lowest first: the contender's own on this model, and
        further ones as long as the best so far is at an edge.
        """
        calibration = self.found(Job(contender=contender)) or {}
        rates = sorted(contender.rates(calibration.get("weight_scale", 1.0)))
        while len(rates) < MOST_RATES:
            losses = self._losses([_at(contender, budget, rate) for rate in rates])
            if losses is None:
                break
            best = min(losses, key=lambda rate: losses[rate])
            if best == rates[0]:
                rates.insert(0, _round(best / RATE_STEP))
            elif best == rates[-1]:
                rates.append(_round(best * RATE_STEP))
            else:
                break
        return [_at(contender, budget, rate) for rate in rates]

    def best_rate(
        self, contender: Contender, budget: float, sweep_budgets: Sequence[float]
    ) -> float | None:
        """Of the lowest validation loss in the budget's sweep; None until all its rates are run."""
        losses = self._losses(self.sweep(contender, sweep_of(budget, sweep_budgets)))
        return None if losses is None else min(losses, key=lambda rate: losses[rate])

    def _losses(self, jobs: Sequence[Job]) -> dict[float, float] | None:
        """Rate -> validation loss; None where a job is not done."""
        losses = {}
        for job in jobs:
            found = self.found(job)
            if found is None or job.rate is None:
                return None
            losses[job.rate] = float(found["validation_loss"])
        return losses

    def budget_s(self, budget: float) -> float | None:
        """Seconds of ``budget``, a share of the reference: full fine-tuning's planned steps."""
        pace = self.pace(FULL)
        return None if pace is None else budget * self.settings.reference_steps * pace.step_s

    def estimate_s(self, job: Job) -> float:
        """Of the whole process."""
        pace, settings = self.pace(FULL), self.settings
        step_s = ASSUMED_STEP_S if pace is None else pace.step_s
        if job.budget is None:
            return _START_S + CALIBRATION_STEPS * step_s
        passes = len(CHECKPOINTS) * settings.n_validation / settings.batch_size * _FORWARD
        steps = job.budget * settings.reference_steps + passes
        return _START_S + step_s * (steps + settings.n_questions * _ANSWER_STEPS)


def sweep_of(budget: float, sweep_budgets: Sequence[float]) -> float:
    """The sweep that ``budget`` takes its rate from."""
    return max((each for each in sweep_budgets if each <= budget), default=min(sweep_budgets))


def _at(contender: Contender, budget: float, rate: float) -> Job:
    return Job(contender=contender, budget=budget, rate=rate)


def _round(rate: float) -> float:
    """As file names show it."""
    return float(f"{rate:.3g}")


def missing(
    cache: Cache,
    contenders: Sequence[Contender],
    *,
    budgets: Sequence[float],
    sweep_budgets: Sequence[float],
    seeds: Sequence[int],
) -> list[Job]:
    """What is not done yet, in the order in which it is best done: those whose rate is None cannot
    start before the others.
    """
    # without the reference no budget has seconds
    needed = dict.fromkeys((FULL, *contenders))
    wanted = [Job(contender=contender) for contender in needed]
    feasible = [c for c in dict.fromkeys(contenders) if cache.rho_min(c) is None]
    for contender in feasible:
        for budget in sweep_budgets:
            wanted += cache.sweep(contender, budget)
    wanted += _grid(cache, feasible, budgets, sweep_budgets, seeds)
    unique = dict.fromkeys(wanted)
    return [job for job in unique if job.is_open or not cache.file(job).exists()]


def _grid(
    cache: Cache,
    contenders: Sequence[Contender],
    budgets: Sequence[float],
    sweep_budgets: Sequence[float],
    seeds: Sequence[int],
) -> Iterator[Job]:
    for seed in seeds:
        for budget in budgets:
            for contender in contenders:
                rate = cache.best_rate(contender, budget, sweep_budgets)
                if rate is None and seed == SWEEP_SEED and budget in sweep_budgets:
                    continue  # the sweep holds it
                yield Job(contender=contender, budget=budget, rate=rate, seed=seed)
