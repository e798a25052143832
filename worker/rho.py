"""The share of full fine-tuning's FLOPs that a job gets: as asked, or from the grid's intensity."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from core.carbon.intensity import Intensity, IntensitySignal
from core.carbon.rho import RHO_REFERENCE, choose_rho
from core.errors import GreentuneError
from core.jobs.records import JobRecord
from worker.hooks import Scribe

_HISTORY: Final = timedelta(days=7)


def resolve_rho(
    job: JobRecord,
    scribe: Scribe,
    *,
    signal: IntensitySignal,
    zone: str,
    rho_min: float,
    now: datetime,
) -> float:
    """Decided once per job: a later attempt goes on with what the first one began with.

    Args:
        zone: whose grid feeds this host.
        rho_min: lowest feasible share of this model and data; what the method costs, where rho does
            not decide.
    """
    green = job.spec.green
    if not green.follows_rho:
        return rho_min
    if green.fixed_rho is not None:
        return green.fixed_rho
    if job.progress.rho_requested is not None:
        return max(job.progress.rho_requested, rho_min)
    try:
        marginal = signal.at(zone, now)
    except GreentuneError as error:
        rho = max(RHO_REFERENCE, rho_min)
        scribe.event(
            f"rho {rho:.3f}: no carbon intensity to follow ({error})",
            level="warn",
            data={"kind": "rho", "rho": rho},
        )
        return rho
    decision = choose_rho(marginal, history=_history(signal, zone, now), rho_min=rho_min)
    # "kind" is the event's in our data, the intensity's in the decision's
    data = {**decision.to_dict(), "kind": "rho", "intensity_kind": decision.kind}
    scribe.event(decision.reason, data=data)
    return decision.rho


def _history(signal: IntensitySignal, zone: str, now: datetime) -> tuple[Intensity, ...]:
    try:
        return signal.series(zone, now - _HISTORY, now)
    except GreentuneError:
        return ()  # a record that begins later: the absolute reference decides alone
