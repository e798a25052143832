"""/v1/fine_tuning/jobs: submit, watch, cancel, pause, resume."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from api.deps import (
    AfterCommit,
    JobsCaller,
    Now,
    Reader,
    Services,
    ServicesDep,
    SettingsDep,
    Transaction,
)
from api.emissions import story_of
from api.green import green_out, green_summary
from api.idempotency import BodyDigest, IdempotencyDep
from api.json_bodies import JsonRoute
from api.metadata_options import request_with_options
from api.planning import check_wishes, examples_of, training_file_of
from api.routes.models import is_fine_tuned_name, unknown_model
from api.schemas import CreateJob, CursorListOf, JobOut, ListOf
from api.submission import check_rho, spec_of
from api.views import checkpoint_out, cursor_list_of, event_out, job_out, list_of
from core.carbon.signal import IntensitySignal
from core.data.tables import refuse_tables
from core.errors import InvalidInput, NotFound, SignalUnavailable
from core.jobs import ids, service, store
from core.jobs.records import Caller, JobRecord
from core.settings import Settings
from core.spec import JobSpec

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=JsonRoute)

Limit = Annotated[int, Query(ge=1, le=1000)]
RequestedJob = Annotated[CreateJob, Depends(request_with_options, scope="function")]
_METADATA = re.compile(r"metadata\[([^\[\]]{1,64})\]")


@router.post("", response_model=JobOut)
def create_job(
    caller: JobsCaller,
    request: RequestedJob,
    session: Transaction,
    outbox: AfterCommit,
    held: ServicesDep,
    idempotency: IdempotencyDep,
    body_digest: BodyDigest,
    now: Now,
) -> Response:
    """Accept a job at once; its files' content is judged by the worker before any training. Tables
    of no task are known by their names.
    """
    spec = spec_of(request, default_zone=held.settings.zone)
    # the grid is asked first: a provider may be slow, and its answer is stored in a transaction of
    # its own, which on SQLite would wait for this one
    _check_zone(spec.green.zone, held.signal, now)
    earlier = idempotency.earlier_reply(session, body_digest, now)
    if earlier is not None:
        return earlier
    _check_references(spec)
    base_model = base_model_of(session, caller.tenant, spec.model, held.settings)
    check_rho(
        spec,
        profiled_minimum=store.get_profile_minimum(session, base_model),
        n_examples=examples_of(training_file_of(session, caller.tenant, spec.training_file, now)),
    )
    if spec.green.is_planned:
        check_wishes(session, spec, tenant=caller.tenant, parent=base_model, held=held, now=now)
    record = service.submit(
        session,
        tenant=caller.tenant,
        spec=spec,
        metadata=request.metadata,
        most_active=held.settings.max_active_jobs,
        now=now,
    )
    # of files that are there and for training; where one is refused, the job is rolled back
    _check_tables(session, caller.tenant, spec, now)
    outbox.nudge(record.id)
    answer = _short(record, held.settings)
    return idempotency.remember(session, body_digest, answer)


@router.get("")
def list_jobs(
    request: Request,
    caller: JobsCaller,
    session: Reader,
    settings: SettingsDep,
    after: str | None = None,
    limit: Limit = 20,
) -> ListOf:
    """Newest first; ``metadata[k]=v`` keeps the jobs that carry these labels, ``metadata=null``
    those without any.
    """
    _check_after(ids.JOB, after)
    page = store.list_jobs(
        session, caller.tenant, after=after, limit=limit, metadata=_metadata_filter(request)
    )
    return list_of(page, lambda record: _short(record, settings))


@router.get("/{job_id}")
def retrieve_job(job_id: str, caller: JobsCaller, session: Reader, held: ServicesDep) -> JobOut:
    check_job_id(job_id)
    return _full(session, store.get_job(session, caller.tenant, job_id), held)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, caller: JobsCaller, held: ServicesDep, now: Now) -> JobOut:
    """A running job shows ``running`` until its worker can write no more results."""
    return _changed(service.cancel, job_id, caller, held, now)


@router.post("/{job_id}/pause")
def pause_job(job_id: str, caller: JobsCaller, held: ServicesDep, now: Now) -> JobOut:
    return _changed(service.pause, job_id, caller, held, now)


@router.post("/{job_id}/resume")
def resume_job(
    job_id: str, caller: JobsCaller, outbox: AfterCommit, held: ServicesDep, now: Now
) -> JobOut:
    answer = _changed(service.resume, job_id, caller, held, now)
    outbox.nudge(job_id)
    return answer


@router.get("/{job_id}/events")
def list_events(
    job_id: str,
    caller: JobsCaller,
    session: Reader,
    after: str | None = None,
    limit: Limit = 20,
) -> ListOf:
    check_job_id(job_id)
    _check_after(ids.EVENT, after)
    page = store.list_events(session, caller.tenant, job_id, after=after, limit=limit)
    return list_of(page, event_out)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str,
    caller: JobsCaller,
    session: Reader,
    after: str | None = None,
    limit: Limit = 10,
) -> CursorListOf:
    check_job_id(job_id)
    _check_after(ids.CHECKPOINT, after)
    page = store.list_checkpoints(session, caller.tenant, job_id, after=after, limit=limit)
    return cursor_list_of(page, checkpoint_out)


def check_job_id(job_id: str) -> None:
    """Raises `NotFound` for what cannot be a job's id."""
    if not ids.is_id(ids.JOB, job_id):
        raise NotFound(f"No such fine-tuning job: {job_id[:64]}", param="fine_tuning_job_id")


def _changed(
    change: Callable[..., JobRecord], job_id: str, caller: Caller, held: Services, now: datetime
) -> JobOut:
    """The whole object, put together once the change is committed: a carbon provider that is asked
    for it, and may be slow, must not keep the job's row from its worker.
    """
    check_job_id(job_id)
    with held.database.transaction() as session:
        record = change(session, tenant=caller.tenant, job_id=job_id, now=now)
    with held.database.read() as session:
        return _full(session, record, held)


def _full(session: Session, record: JobRecord, held: Services) -> JobOut:
    """The whole object: with energy, emissions and attempts."""
    story = story_of(session, record, held, are_merged=True)
    green = green_out(record, story.attempts, story.report)
    return job_out(record, green, has_strict_status=held.settings.strict_status)


def _short(record: JobRecord, settings: Settings) -> JobOut:
    """What the job's own row tells."""
    green = green_summary(record, pue=settings.pue)
    return job_out(record, green, has_strict_status=settings.strict_status)


def _check_references(spec: JobSpec) -> None:
    """Whether the files' ids can be ids; whether they exist is the store's to say."""
    files = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    for param, file_id in files.items():
        if file_id is not None and not ids.is_id(ids.FILE, file_id):
            raise NotFound(f"No such File object: {file_id[:64]}", param=param)


def _check_tables(session: Session, tenant: str, spec: JobSpec, now: datetime) -> None:
    """Raises `InvalidInput` for a table that no task reads."""
    if spec.task is not None:
        return
    training = store.get_file(session, tenant, spec.training_file, now=now)
    validation = None
    if spec.validation_file is not None:
        validation = store.get_file(session, tenant, spec.validation_file, now=now)
    refuse_tables(
        Path(training.filename), None if validation is None else Path(validation.filename)
    )


def _check_zone(zone: str | None, signal: IntensitySignal, now: datetime) -> None:
    """Raises `InvalidInput` for a zone that is not one; a signal that is away stops no job."""
    if zone is None:
        return
    with suppress(SignalUnavailable):
        signal.forecast(zone, now, now + timedelta(hours=1))


def base_model_of(session: Session, tenant: str, model: str, settings: Settings) -> str:
    """The base of the model that a job names: one of the server's, or the tenant's own tuned one,
    finished or as a checkpoint.

    Raises:
        ModelNotFound: neither.
    """
    if model in settings.model_folders:
        return model
    if not is_fine_tuned_name(model):
        raise unknown_model(model)
    if ids.is_checkpoint_model(model):
        checkpoint = store.get_checkpoint(session, tenant, model)
        return store.get_job(session, tenant, checkpoint.job_id).spec.model
    return store.get_model(session, tenant, model).base_model


def _check_after(prefix: str, after: str | None) -> None:
    if after is not None and not ids.is_id(prefix, after):
        raise InvalidInput("after must be an id that this list has returned.", param="after")


def _metadata_filter(request: Request) -> dict[str, str] | None:
    if request.query_params.get("metadata") == "null":
        return {}
    pairs = request.query_params.multi_items()
    wanted = {m[1]: value for key, value in pairs if (m := _METADATA.fullmatch(key))}
    return wanted or None
