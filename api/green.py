"""The ``green`` block of a job: what its own row knows, and what its emissions report adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from api.views import OPENAI_OPTIONS, unix_or_none
from core.carbon.account import EmissionsReport
from core.carbon.report import to_dict
from core.jobs.records import AttemptRecord, JobRecord
from core.units import joules_to_wh

#: taken from the report as they stand there
_FROM_REPORT = ("energy_wh", "measured", "co2e_g", "intensity_g_per_kwh", "baseline", "savings")


def green_summary(record: JobRecord, *, pue: float) -> dict[str, Any]:
    """For lists: no query beyond the job's row. Energy and grams include PUE."""
    progress = record.progress
    rho = record.spec.green.rho
    return {
        "state": record.green_state,
        "hold_reason": record.hold_reason,
        "planned_start": unix_or_none(record.planned_start),
        "planned_finish": unix_or_none(record.planned_finish),
        **_wishes(record, pue),
        "method": record.spec.green.method,
        "options": asdict(record.spec.green.options),
        "importance": record.spec.green.importance,
        "zone": record.spec.green.zone,
        "rho": rho,
        "currency": record.spec.green.currency,
        "rho_requested": progress.rho_requested if isinstance(rho, str) else rho,
        "rho_measured": progress.rho_measured,
        "training": _own_options(record),
        "task": None if record.spec.task is None else asdict(record.spec.task),
        "eval": None if record.spec.eval is None else asdict(record.spec.eval),
        "progress": {
            "step": progress.step,
            "total_steps": progress.total_steps,
            "epoch": progress.epoch,
            "train_loss": progress.train_loss,
            "valid_loss": progress.valid_loss,
            "tokens_per_s": progress.tokens_per_s,
        },
        "flops": {
            "full_estimate": progress.full_estimate_flops,
            "full_so_far": progress.full_flops,
            "spent": progress.spent_flops,
        },
        "energy_wh": {"total": joules_to_wh(record.energy_j * pue)},
        **_grams(record, pue),
    }


def green_out(
    record: JobRecord, attempts: Sequence[AttemptRecord], report: EmissionsReport
) -> dict[str, Any]:
    """All that is known now. Totals are over all attempts, failed and cancelled ones included."""
    document = to_dict(report)
    own = {a.number: {"from_step": a.from_step, "failure": a.failure} for a in attempts}
    return {
        **green_summary(record, pue=report.pue),
        **{name: document[name] for name in _FROM_REPORT},
        "attempts": [
            {**attempt, **own.get(attempt["n"], {"from_step": None, "failure": None})}
            for attempt in document["attempts"]
        ],
    }


def _grams(record: JobRecord, pue: float) -> dict[str, Any]:
    """Kinds of intensity apart; ``co2e_g`` is of the one that covers most energy."""
    kinds = sorted(record.spent_by_kind, key=lambda part: part.energy_j, reverse=True)
    return {
        "co2e_g": kinds[0].emissions_g * pue if kinds else 0.0,
        "co2e_kind": kinds[0].kind if kinds else None,
        "co2e_g_by_kind": {part.kind: part.emissions_g * pue for part in kinds},
    }


def _wishes(record: JobRecord, pue: float) -> dict[str, Any]:
    """What was asked of the plan, and what is left of the budgets (below 0: overdrawn)."""
    green = record.spec.green
    grams, energy_wh = green.carbon_budget_g, green.energy_budget_wh
    spent_wh = joules_to_wh(record.energy_j * pue)
    return {
        "schedule": green.schedule,
        "earliest_start": unix_or_none(green.earliest_start),
        "deadline": unix_or_none(green.deadline),
        "max_hold_s": green.max_hold_s,
        "energy_budget_wh": energy_wh,
        "carbon_budget_g": grams,
        "on_budget": green.on_budget,
        "budget": {
            "energy_wh_left": None if energy_wh is None else energy_wh - spent_wh,
            "co2e_g_left": None if grams is None else grams - record.emissions_g * pue,
        },
    }


def _own_options(record: JobRecord) -> dict[str, Any]:
    options = asdict(record.spec.training)
    own = {name: value for name, value in options.items() if name not in OPENAI_OPTIONS}
    if record.hyperparameters is not None:
        own["learning_rate"] = record.hyperparameters.learning_rate
    return own
