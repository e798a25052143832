"""Carbon: the grid's intensity, and what a job would emit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import AnyCaller, JobsCaller, Now, Reader, ServicesDep, SettingsDep, Signal
from api.json_bodies import JsonRoute
from api.planning import estimate_of
from api.routes.jobs import base_model_of
from api.schemas import EstimateIn
from api.views import unix, unix_or_none
from core.errors import InvalidInput, MissingParameter

router = APIRouter(prefix="/v1", tags=["carbon"], route_class=JsonRoute)


@router.get("/green/intensity")
def intensity(
    _: AnyCaller,
    signal: Signal,
    settings: SettingsDep,
    now: Now,
    zone: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """The carbon intensity in force now in ``zone`` (the server's own zone if none is named)."""
    zone = zone or settings.zone
    if zone is None:
        raise MissingParameter('Name a grid zone, for example "FR".', param="zone")
    with _fields_of_this_route():
        value = signal.at(zone, now)
    return {
        "object": "green.intensity",
        "zone": value.zone,
        "intensity_g_per_kwh": value.value_g_per_kwh,
        "kind": value.kind,
        "factor": value.factor,
        "source": value.source,
        "is_estimated": value.is_estimated,
        "is_forecast": value.is_forecast,
        "valid_from": unix(value.moment),
        "valid_until": unix_or_none(value.until),
    }


@router.post("/green/estimate")
def estimate(
    request: EstimateIn, caller: JobsCaller, session: Reader, held: ServicesDep, now: Now
) -> dict[str, Any]:
    """Energy, grams, finish and expected quality of a job for each rho and start, before it is
    submitted: a table with its Pareto front.
    """
    parent = base_model_of(session, caller.tenant, request.model, held.settings)
    with _fields_of_this_route():
        return estimate_of(
            session, request, tenant=caller.tenant, parent=parent, held=held, now=now
        )


@contextmanager
def _fields_of_this_route() -> Iterator[None]:
    """What core calls a job's ``green.zone`` stands at the top of these requests."""
    try:
        yield
    except InvalidInput as error:
        if error.param is not None:
            error.param = error.param.removeprefix("green.")
        raise
