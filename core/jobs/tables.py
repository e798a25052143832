"""The mapped classes. ``migrations/`` builds the same schema; ``alembic check`` compares them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.jobs.columns import AsJson, FreeText, UtcDateTime, flat_record, flat_records
from core.jobs.lifecycle import Status
from core.jobs.records import (
    Baseline,
    FirstIntensity,
    FullCostRecord,
    HeldOutRecord,
    Hyperparameters,
    JobError,
    KindSpent,
    Progress,
)
from core.spec import JobSpec

_ID = String(40)
_WORD = String(40)
_NAME = String(255)
_STATUS = Enum(
    Status,
    native_enum=False,
    create_constraint=False,
    length=40,
    values_callable=lambda kind: [member.value for member in kind],
)
# the jobs that a worker or the sweeper may look at: few, however long the history
_CLAIMABLE = text("status IN ('validating_files', 'queued', 'running')")
# the files and checkpoints that a sweep may look at
_EXPIRES = text("expires_at IS NOT NULL")
_DELETED = text("deleted_at IS NOT NULL")
# the uploads that a sweep may look at: those that wait for parts, and those that are over
_PENDING = text("ended_at IS NULL")
_ENDED = text("ended_at IS NOT NULL")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: Integer,
        float: Double,
        bool: Boolean,
        datetime: UtcDateTime,
    }


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    tenant: Mapped[str] = mapped_column(_NAME, index=True)
    name: Mapped[str] = mapped_column(_NAME)
    sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[frozenset[str]] = mapped_column(AsJson(load=frozenset, dump=sorted))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(Base):
    __tablename__ = "files"
    __table_args__ = (
        Index(None, "tenant", "created_at", "id"),
        Index(None, "expires_at", postgresql_where=_EXPIRES, sqlite_where=_EXPIRES),
        Index(None, "deleted_at", postgresql_where=_DELETED, sqlite_where=_DELETED),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    tenant: Mapped[str] = mapped_column(_NAME)
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(_WORD)
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    object_key: Mapped[str]
    status: Mapped[str] = mapped_column(_WORD)
    status_details: Mapped[str | None] = mapped_column(FreeText)
    validation: Mapped[dict[str, Any] | None] = mapped_column(AsJson())
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    #: the row outlives the deletion for a day: who pages through a list may be standing on it
    deleted_at: Mapped[datetime | None]


class Upload(Base):
    """A file that arrives in parts. The row outlives its end for a day."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index(None, "expires_at", postgresql_where=_PENDING, sqlite_where=_PENDING),
        Index(None, "ended_at", postgresql_where=_ENDED, sqlite_where=_ENDED),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    tenant: Mapped[str] = mapped_column(_NAME)
    filename: Mapped[str]
    #: as announced
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(_WORD)
    #: of the file that it becomes
    file_expires_after_s: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class UploadPart(Base):
    """Gone once its upload has ended; the object is then left to `Discarded`."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str]
    created_at: Mapped[datetime]


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant", "created_at", "id"),
        Index(
            "ix_jobs_claim",
            "priority",
            "created_at",
            postgresql_where=_CLAIMABLE,
            sqlite_where=_CLAIMABLE,
        ),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    tenant: Mapped[str] = mapped_column(_NAME)
    status: Mapped[Status] = mapped_column(_STATUS)
    spec: Mapped[JobSpec] = mapped_column(AsJson(load=JobSpec.from_dict, dump=JobSpec.to_dict))
    #: "metadata" in the database; the name is taken in a mapped class
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", AsJson())
    training_file: Mapped[str] = mapped_column(_ID)
    validation_file: Mapped[str | None] = mapped_column(_ID)
    priority: Mapped[int] = mapped_column(SmallInteger, default=0)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None] = mapped_column(_NAME)
    not_before: Mapped[datetime | None]
    #: when a message for this job was last sent, or about to be
    nudged_at: Mapped[datetime | None]
    deaths: Mapped[int] = mapped_column(default=0)
    retries: Mapped[int] = mapped_column(default=0)
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]

    progress: Mapped[Progress] = mapped_column(flat_record(Progress), default=Progress)
    hyperparameters: Mapped[Hyperparameters | None] = mapped_column(flat_record(Hyperparameters))
    estimated_finish: Mapped[datetime | None]
    error: Mapped[JobError | None] = mapped_column(flat_record(JobError))
    result_files: Mapped[tuple[str, ...]] = mapped_column(
        AsJson(load=tuple, dump=list), default=tuple
    )
    fine_tuned_model: Mapped[str | None]

    hold_reason: Mapped[str | None]
    planned_start: Mapped[datetime | None]
    planned_finish: Mapped[datetime | None]
    baseline: Mapped[Baseline | None] = mapped_column(flat_record(Baseline))
    full_cost: Mapped[FullCostRecord | None] = mapped_column(flat_record(FullCostRecord))
    held_out: Mapped[HeldOutRecord | None] = mapped_column(flat_record(HeldOutRecord))
    energy_j: Mapped[float] = mapped_column(default=0.0)
    emissions_g: Mapped[float] = mapped_column(default=0.0)
    spent_by_kind: Mapped[tuple[KindSpent, ...]] = mapped_column(
        flat_records(KindSpent), default=tuple, server_default=text("'[]'")
    )
    #: the last event's ``seq``
    n_events: Mapped[int] = mapped_column(default=0)


class Attempt(Base):
    """One claim; ``number`` is its fence."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(_NAME)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(_WORD)
    failure: Mapped[str | None] = mapped_column(FreeText)
    from_step: Mapped[int]
    attribution: Mapped[str | None] = mapped_column(_WORD)
    energy_j: Mapped[float] = mapped_column(default=0.0)
    emissions_g: Mapped[float] = mapped_column(default=0.0)


class Event(Base):
    """Append-only."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "seq"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    seq: Mapped[int]
    created_at: Mapped[datetime]
    level: Mapped[str] = mapped_column(_WORD)
    message: Mapped[str] = mapped_column(FreeText)
    type: Mapped[str] = mapped_column(_WORD)
    data: Mapped[dict[str, Any] | None] = mapped_column(AsJson())


class Checkpoint(Base):
    """Complete checkpoints only. One that goes leaves its files to `Discarded`."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job_id", "step"),
        Index(None, "deleted_at", postgresql_where=_DELETED, sqlite_where=_DELETED),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]
    attempt: Mapped[int]
    step: Mapped[int]
    prefix: Mapped[str]
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, float]] = mapped_column(AsJson())
    model: Mapped[str]
    #: kept for good; others guard against loss of work, and the newest suffice
    is_milestone: Mapped[bool] = mapped_column(default=True, server_default=true())
    #: names of the files that only its own job has a use for, to go on from; gone when that ends
    state_files: Mapped[tuple[str, ...]] = mapped_column(
        AsJson(load=tuple, dump=list), default=tuple, server_default=text("'[]'")
    )
    #: as `File.deleted_at`
    deleted_at: Mapped[datetime | None]


class EnergySample(Base):
    """Append-only but for `revise_energy`; the key makes writing a window twice harmless."""

    __tablename__ = "energy_samples"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(_NAME, primary_key=True)
    started_at: Mapped[datetime] = mapped_column(primary_key=True)
    ended_at: Mapped[datetime]
    energy_j: Mapped[float]
    method: Mapped[str] = mapped_column(_WORD)
    intensity_g_per_kwh: Mapped[float | None]
    intensity_kind: Mapped[str | None] = mapped_column(_WORD)
    intensity_source: Mapped[str | None] = mapped_column(_NAME)
    intensity_is_estimated: Mapped[bool | None]
    zone: Mapped[str | None] = mapped_column(_WORD)
    revised_from: Mapped[FirstIntensity | None] = mapped_column(flat_record(FirstIntensity))


class Overhead(Base):
    """Append-only, as `EnergySample`."""

    __tablename__ = "overheads"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(_WORD, primary_key=True)
    started_at: Mapped[datetime] = mapped_column(primary_key=True)
    ended_at: Mapped[datetime]


class Model(Base):
    """Fine-tuned models."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant", "created_at"),)

    id: Mapped[str] = mapped_column(String(512), primary_key=True)
    tenant: Mapped[str] = mapped_column(_NAME)
    base_model: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]
    prefix: Mapped[str]
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    #: the row outlives the deletion: plans go by what its job's selections told
    deleted_at: Mapped[datetime | None]


class Discarded(Base):
    """Objects that no row names, until they are removed: not any more, or not yet.

    Written in the transaction that takes their row away, or before their first byte is stored and
    until they have a row: whoever crashes where, either a row names the objects or this one does.
    """

    __tablename__ = "discarded"

    #: an object's key, or the prefix of a folder
    key: Mapped[str] = mapped_column(String(512), primary_key=True)
    is_folder: Mapped[bool]
    #: not to be removed before: of what a caller sends, as long as that may take; NULL: not while
    #: the attempt that announced it goes on
    due_at: Mapped[datetime | None] = mapped_column(index=True)
    #: whose attempt announced it; NULL: it had a row once
    job_id: Mapped[str | None] = mapped_column(_ID)
    attempt: Mapped[int | None]


class ModelProfile(Base):
    """What jobs found out about a base model."""

    __tablename__ = "model_profiles"

    model: Mapped[str] = mapped_column(String(512), primary_key=True)
    rho_min: Mapped[float]
    updated_at: Mapped[datetime]


class StepCost(Base):
    """What jobs measured in their first steps, per base model, hardware and rho."""

    __tablename__ = "step_costs"

    model: Mapped[str] = mapped_column(String(512), primary_key=True)
    hardware: Mapped[str] = mapped_column(_NAME, primary_key=True)
    #: rounded to a hundredth, so that there are few
    rho: Mapped[float] = mapped_column(primary_key=True)
    s_per_token: Mapped[float]
    j_per_token: Mapped[float]
    updated_at: Mapped[datetime]


class SignalText(Base):
    """What a live carbon signal has told; the text is `core.carbon`'s business."""

    __tablename__ = "signal_texts"

    key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class Worker(Base):
    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    slots: Mapped[int]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class Idempotency(Base):
    """A request that must take effect once; ``status_code`` is NULL while it is under way."""

    __tablename__ = "idempotency"

    tenant: Mapped[str] = mapped_column(_NAME, primary_key=True)
    route: Mapped[str] = mapped_column(_NAME, primary_key=True)
    key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    status_code: Mapped[int | None]
    body: Mapped[str | None]
