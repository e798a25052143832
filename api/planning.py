"""What a job would cost and whether its wishes can be met, before it is accepted.

Figures come from what earlier jobs on this service measured of the same base model; before there
are any, from the assumption that `core.carbon.calibration` states. Nobody is refused on an
assumption: then the job's own first steps decide, and say so in an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from api.deps import Services
from api.schemas import EstimateIn
from core.carbon import estimate as estimates
from core.carbon.calibration import TokenCost, assumed_of, fitted
from core.carbon.intensity import WORLD, Intensity
from core.carbon.offers import Offer, offers
from core.carbon.planner import (
    DEFAULT_SLACK,
    FARTHEST,
    CostPoint,
    Infeasible,
    Wish,
    Work,
    plan,
)
from core.carbon.quality import expected_quality, told_curves
from core.errors import InvalidInput, NotFound, SignalUnavailable
from core.jobs import store
from core.jobs.records import FileRecord
from core.moments import LONGEST, LONGEST_SAID, check_not_too_far
from core.spec import BYTES_PER_TOKEN, DEFAULT_BATCH_SIZE, RHO_FLOOR, JobSpec
from core.training_options import auto_epochs
from core.units import wh_to_joules

#: one checkpoint, release, claim and start, of a model that fits one device
SUSPEND_S: Final = 60.0
_CODES: Final = {
    "time": ("deadline_unreachable", "green.deadline"),
    "grams": ("carbon_budget_exhausted", "green.carbon_budget_g"),
    "energy": ("carbon_budget_exhausted", "green.energy_budget_wh"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCost:
    """Of a base model on this service."""

    token: TokenCost
    #: None: assumed
    hardware: str | None
    rho_min: float


def check_wishes(
    session: Session,
    spec: JobSpec,
    *,
    tenant: str,
    parent: str,
    held: Services,
    now: datetime,
) -> None:
    """Refuse a deadline or budget that measured costs say cannot be met.

    Args:
        parent: the server's own model that the job's base comes from.

    Raises:
        InvalidInput: a moment too far ahead; codes deadline_unreachable and
            carbon_budget_exhausted, whose message says what is missing and up to three wishes that
            can be met.
        NotFound: no such training file.
    """
    green = spec.green
    check_not_too_far(green.earliest_start, now, param="green.earliest_start")
    check_not_too_far(green.deadline, now, param="green.deadline")
    if green.deadline is not None and green.deadline <= now:
        raise InvalidInput(
            f"green.deadline {green.deadline.isoformat()} has passed.",
            param="green.deadline",
            code="deadline_unreachable",
        )
    known = known_cost(session, parent)
    if known.hardware is None:
        return
    file = training_file_of(session, tenant, spec.training_file, now)
    work = _work_of(spec, file, known)
    rho = green.fixed_rho
    wish = Wish(
        schedule=green.schedule,
        earliest_start=green.earliest_start,
        deadline=green.deadline,
        rho=known.rho_min if rho is None and not green.has_budget else rho,
        budget_g=green.carbon_budget_g,
        budget_j=None
        if green.energy_budget_wh is None
        else wh_to_joules(green.energy_budget_wh) / held.settings.pue,
        pue=held.settings.pue,
    )
    begin = max(now, green.earliest_start or now)
    longest = min(timedelta(seconds=work.duration_s(1.0) + SUSPEND_S), LONGEST)
    forecast = _forecast(held, green.zone, now, green.deadline or begin + longest + DEFAULT_SLACK)
    if forecast is None:
        return
    answer = plan(wish, work, forecast, now)
    if isinstance(answer, Infeasible):
        raise _refusal(answer, offers(wish, work, forecast, now))


def estimate_of(
    session: Session,
    request: EstimateIn,
    *,
    tenant: str,
    parent: str,
    held: Services,
    now: datetime,
) -> dict[str, Any]:
    """The answer of ``POST /v1/green/estimate``.

    Raises:
        InvalidInput: not exactly one of training_file and n_tokens; a deadline that has passed or
            is too far ahead; a rho outside (0, 1].
        NotFound: no such file.
        SignalUnavailable: nothing is known of the grid.
    """
    known = known_cost(session, parent)
    n_tokens, n_epochs = _amount_asked(session, request, tenant, now)
    if request.deadline is not None and request.deadline <= now:
        raise InvalidInput("deadline has passed.", param="deadline")
    check_not_too_far(request.deadline, now, param="deadline")
    _check_rhos(request.rho or ())
    work = _work_asked(request, known, n_tokens * n_epochs)
    end = request.deadline or now + FARTHEST
    forecast = _forecast(held, request.zone or held.settings.zone, now, end)
    if forecast is None:
        raise SignalUnavailable("The grid's carbon intensity is not known now; try again shortly.")
    selections = store.list_selections_on(session, tenant, parent)
    quality = expected_quality((), told_curves(selection.data for selection in selections))
    made = estimates.estimate(
        work,
        forecast,
        now,
        rhos=request.rho or estimates.DEFAULT_RHOS,
        start_hours=request.start_hours or estimates.DEFAULT_START_HOURS,
        deadline=request.deadline,
        pue=held.settings.pue,
        quality=quality.curve,
    ).to_dict()
    made["options"] = [{**option, "is_pareto": option["on_front"]} for option in made["options"]]
    made["basis"] = {
        "cost": known.token.basis,
        "hardware": known.hardware,
        "model": parent,
        "rho_min": known.rho_min,
        "n_tokens": n_tokens,
        "n_epochs": n_epochs,
        "s_per_token_full": known.token.cost.s_per_step(1.0),
        "j_per_token_full": known.token.cost.j_per_step(1.0),
        "pue": held.settings.pue,
        "quality": quality.to_dict(),
    }
    return made


def known_cost(session: Session, parent: str) -> KnownCost:
    """Measurements of the hardware that measured last; all that is known of it."""
    measured = store.list_costs(session, parent)
    rho_min = max(RHO_FLOOR, store.get_profile_minimum(session, parent) or 0.0)
    if not measured:
        return KnownCost(token=assumed_of(parent), hardware=None, rho_min=rho_min)
    hardware = measured[0].hardware
    points = [
        CostPoint(rho=r.rho, s_per_step=r.s_per_token, j_per_step=r.j_per_token)
        for r in measured
        if r.hardware == hardware
    ]
    return KnownCost(token=fitted(points, "stored"), hardware=hardware, rho_min=rho_min)


def _work_of(spec: JobSpec, file: FileRecord, known: KnownCost) -> Work:
    training = spec.training
    n_examples = examples_of(file) or 1
    epochs = training.n_epochs or auto_epochs(n_examples)
    samples = (training.batch_size or DEFAULT_BATCH_SIZE) * training.gradient_accumulation
    per_epoch = -(-n_examples // samples)
    steps = min(epochs * per_epoch, training.max_steps or epochs * per_epoch)
    tokens_per_step = file.n_bytes / BYTES_PER_TOKEN / per_epoch
    return Work(
        steps=steps,
        cost=known.token.per_step(tokens_per_step),
        rho_min=known.rho_min,
        suspend_s=SUSPEND_S,
    )


def examples_of(file: FileRecord) -> int | None:
    """None where nobody counted them."""
    report: Mapping[str, Any] = file.validation or {}
    return int(report.get("n_examples") or 0) or None


def _work_asked(request: EstimateIn, known: KnownCost, n_tokens: int) -> Work:
    work = Work(
        steps=1,
        cost=known.token.per_step(n_tokens),
        rho_min=known.rho_min,
        suspend_s=SUSPEND_S,
    )
    if work.duration_s(1.0) > LONGEST.total_seconds():
        raise InvalidInput(
            f"So many tokens would train for over {LONGEST_SAID} here; ask for fewer.",
            param="n_tokens" if request.training_file is None else "training_file",
        )
    return work


def _check_rhos(rhos: Sequence[float]) -> None:
    for rho in rhos:
        if not 0 < rho <= 1:
            raise InvalidInput(f"rho must be above 0 and at most 1; got {rho:g}.", param="rho")


def _amount_asked(
    session: Session, request: EstimateIn, tenant: str, now: datetime
) -> tuple[int, int]:
    """Tokens, and passes over them: of tokens alone one, unless more are asked for."""
    if (request.training_file is None) == (request.n_tokens is None):
        raise InvalidInput("Give training_file or n_tokens, one of them.", param="n_tokens")
    if request.n_tokens is not None:
        return request.n_tokens, request.n_epochs or 1
    assert request.training_file is not None
    file = training_file_of(session, tenant, request.training_file, now)
    n_tokens = max(round(file.n_bytes / BYTES_PER_TOKEN), 1)
    return n_tokens, request.n_epochs or auto_epochs(examples_of(file) or 1)


def training_file_of(session: Session, tenant: str, file_id: str, now: datetime) -> FileRecord:
    """Raises NotFound (param training_file)."""
    try:
        return store.get_file(session, tenant, file_id, now=now)
    except NotFound as error:
        error.param = "training_file"
        raise


def _forecast(
    held: Services, zone: str | None, now: datetime, end: datetime
) -> tuple[Intensity, ...] | None:
    """None: the signal is away, which stops no job."""
    try:
        return held.signal.forecast(zone or WORLD, now, min(end, now + FARTHEST))
    except SignalUnavailable:
        return None


def _refusal(infeasible: Infeasible, ways: tuple[Offer, ...]) -> InvalidInput:
    code, param = _CODES[infeasible.missing]
    words = " ".join(f"({number}) {offer.message}" for number, offer in enumerate(ways, start=1))
    return InvalidInput(
        infeasible.message + (f" What would do: {words}" if words else ""), param=param, code=code
    )
