"""From records to the wire, one function per object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from api.schemas import (
    CheckpointOut,
    CursorListOf,
    EventOut,
    FileOut,
    JobErrorOut,
    JobOut,
    ListOf,
    ModelOut,
    PartOut,
    UploadOut,
)
from core.jobs.lifecycle import Status
from core.jobs.records import (
    CheckpointRecord,
    EventRecord,
    FileRecord,
    JobRecord,
    ModelRecord,
    Page,
)
from core.jobs.uploads import PartRecord, UploadRecord

T = TypeVar("T")

#: OpenAI's `hyperparameters`; the other options are shown as `green.training`
OPENAI_OPTIONS = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})


def unix(moment: datetime) -> int:
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)


def list_of(page: Page[T], view: Callable[[T], Any]) -> ListOf:
    return ListOf(data=[view(item) for item in page.items], has_more=page.has_more)


def cursor_list_of(page: Page[T], view: Callable[[T], Any]) -> CursorListOf:
    data = [view(item) for item in page.items]
    return CursorListOf(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


def file_out(record: FileRecord) -> FileOut:
    return FileOut(
        id=record.id,
        bytes=record.n_bytes,
        created_at=unix(record.created_at),
        filename=record.filename,
        purpose=record.purpose,
        status=record.status,
        expires_at=unix_or_none(record.expires_at),
        status_details=record.status_details,
        validation=None if record.validation is None else dict(record.validation),
    )


def upload_out(record: UploadRecord, file: FileOut | None = None) -> UploadOut:
    """``file``: what a completed upload has become."""
    return UploadOut(
        id=record.id,
        bytes=record.n_bytes,
        created_at=unix(record.created_at),
        expires_at=unix(record.expires_at),
        filename=record.filename,
        status=record.status,
        file=file,
    )


def part_out(record: PartRecord) -> PartOut:
    return PartOut(id=record.id, created_at=unix(record.created_at), upload_id=record.upload_id)


def model_out(record: ModelRecord) -> ModelOut:
    return ModelOut(id=record.id, created=unix(record.created_at), owned_by=record.tenant)


def event_out(record: EventRecord) -> EventOut:
    return EventOut(
        id=record.id,
        created_at=unix(record.created_at),
        level=record.level,
        message=record.message,
        type=record.type,
        data=None if record.data is None else dict(record.data),
    )


def checkpoint_out(record: CheckpointRecord) -> CheckpointOut:
    return CheckpointOut(
        id=record.id,
        created_at=unix(record.created_at),
        fine_tuned_model_checkpoint=record.model,
        fine_tuning_job_id=record.job_id,
        metrics={"step": record.step, **record.metrics},
        step_number=record.step,
    )


def job_out(
    record: JobRecord, green: Mapping[str, Any], *, has_strict_status: bool = False
) -> JobOut:
    """``green`` is `api.green`'s block, whose state stays ``paused`` with a strict status."""
    shown = record.status
    if has_strict_status and shown is Status.PAUSED:
        shown = Status.QUEUED
    hyperparameters = _hyperparameters(record)
    return JobOut(
        id=record.id,
        created_at=unix(record.created_at),
        error=None if record.error is None else JobErrorOut(**asdict(record.error)),
        fine_tuned_model=record.fine_tuned_model,
        finished_at=unix_or_none(record.finished_at),
        hyperparameters=hyperparameters,
        model=record.spec.model,
        organization_id=record.tenant,
        result_files=list(record.result_files),
        status=shown.value,
        trained_tokens=record.progress.trained_tokens if record.status.is_terminal else None,
        training_file=record.spec.training_file,
        validation_file=record.spec.validation_file,
        seed=record.spec.seed,
        estimated_finish=unix_or_none(record.estimated_finish),
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata=None if record.metadata is None else dict(record.metadata),
        user_provided_suffix=record.spec.suffix,
        green=dict(green),
    )


def _hyperparameters(record: JobRecord) -> dict[str, Any]:
    """As resolved once training began; until then as asked, "auto" where left open."""
    asked = record.spec.training
    resolved = record.hyperparameters
    if resolved is None:
        return {name: getattr(asked, name) or "auto" for name in sorted(OPENAI_OPTIONS)}
    return {
        "batch_size": resolved.batch_size,
        "learning_rate_multiplier": resolved.learning_rate_multiplier or 1.0,
        "n_epochs": resolved.n_epochs,
    }
