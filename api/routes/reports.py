"""Emissions reports: of one job in three forms, and of many jobs together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response

from api.accept import preferred
from api.deps import JobsCaller, Now, Reader, ServicesDep, SettingsDep
from api.emissions import Story, story_of
from api.fleet import GroupBy, default_start, fleet_document
from api.routes.jobs import check_job_id
from core.carbon.account import EmissionsReport
from core.carbon.history import SELECTION, rho_history
from core.carbon.page import to_html
from core.carbon.report import to_csv, to_dict
from core.carbon.signal import Intensity, IntensitySignal
from core.errors import InvalidInput, SignalUnavailable
from core.jobs import store

router = APIRouter(prefix="/v1", tags=["carbon"])

Form = Literal["json", "csv", "html"]
_MEDIA: dict[str, Form] = {
    "application/json": "json",
    "text/csv": "csv",
    "text/html": "html",
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report; CSV has codecarbon's columns, HTML opens offline.",
        "content": {media: {"schema": {}} for media in _MEDIA},
    }
}
#: the page runs the charts that it carries and reaches for nothing
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


@router.get("/fine_tuning/jobs/{job_id}/emissions", response_class=Response, responses=_ANSWERS)
def emissions(
    job_id: str,
    caller: JobsCaller,
    session: Reader,
    held: ServicesDep,
    form: Annotated[
        Form | None, Query(alias="format", description="Goes before the header Accept.")
    ] = None,
    include: Annotated[
        Literal["samples"] | None,
        Query(description="samples: with the raw rows that every figure follows from (JSON)."),
    ] = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """What the job has spent and emitted so far, over all its attempts, failed ones included."""
    check_job_id(job_id)
    story = story_of(session, store.get_job(session, caller.tenant, job_id), held)
    match form or _MEDIA[preferred(accept, list(_MEDIA))]:
        case "csv":
            return _csv(story)
        case "html":
            history = rho_history(store.list_remarks(session, job_id, SELECTION))
            return _html(story, held.signal, history)
        case "json":
            return _json(story, with_samples=include == "samples")


def _json(story: Story, *, with_samples: bool) -> Response:
    body = to_dict(story.report)
    if with_samples:
        body["evidence"] = story.evidence.to_dict()
    return JSONResponse(body, headers={"vary": "accept"})


def _csv(story: Story) -> Response:
    return Response(
        to_csv(story.report),
        media_type="text/csv; charset=utf-8",
        headers=_headers(f'attachment; filename="emissions-{story.record.id}.csv"'),
    )


def _html(
    story: Story, signal: IntensitySignal, history: Sequence[tuple[datetime, float]]
) -> Response:
    page = to_html(
        story.report,
        grid=_grid(story.report, signal),
        rho_history=history,
        budget_g=story.record.spec.green.carbon_budget_g,
    )
    headers = _headers(f'inline; filename="emissions-{story.record.id}.html"')
    return Response(
        page,
        media_type="text/html; charset=utf-8",
        headers=headers | {"content-security-policy": _PAGE_POLICY},
    )


def _grid(report: EmissionsReport, signal: IntensitySignal) -> tuple[Intensity, ...]:
    """What the zone had from the submission on, pauses included; for the eye only."""
    end = max((row.ended_at for row in report.rows), default=report.submitted_at)
    if end <= report.submitted_at:
        return ()
    try:
        return signal.series(report.zone, report.submitted_at, end)
    except (SignalUnavailable, InvalidInput):
        return ()


def _headers(disposition: str) -> dict[str, str]:
    return {
        "content-disposition": disposition,
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }


@router.get("/green/report")
def fleet(
    caller: JobsCaller,
    session: Reader,
    settings: SettingsDep,
    now: Now,
    start: Annotated[
        datetime | None, Query(description="UTC unless it says otherwise; else 30 days before end.")
    ] = None,
    end: Annotated[datetime | None, Query(description="Else now.")] = None,
    group_by: Annotated[
        list[GroupBy], Query(description="Repeatable; each kind of intensity has its own lines.")
    ] = ["zone"],  # noqa: B006  FastAPI copies it
) -> dict[str, Any]:
    """Energy, grams, baseline and savings of all the caller's jobs in a time range."""
    until = now if end is None else _utc(end, "end")
    since = default_start(until) if start is None else _utc(start, "start")
    if since >= until:
        raise InvalidInput("start must be earlier than end.", param="start")
    return fleet_document(
        session,
        caller.tenant,
        start=since,
        end=until,
        group_by=list(dict.fromkeys(group_by)),
        pue=settings.pue,
    )


def _utc(moment: datetime, name: str) -> datetime:
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise InvalidInput(f"{name} is beyond the calendar.", param=name) from None
