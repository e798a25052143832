"""What crosses the border of this room: frozen records. Datetimes are aware UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from core.jobs import ids
from core.jobs.checkpoint_records import CheckpointRecord, NewCheckpoint
from core.jobs.energy_records import (
    Baseline,
    CostRecord,
    EnergyRecord,
    FirstIntensity,
    FullCostRecord,
    KindSpent,
    OverheadRecord,
    SpentRecord,
)
from core.jobs.lifecycle import EventType, GreenState, Level, Status, green_state
from core.spec import JobSpec

__all__ = [
    "AtWorkRecord",
    "AttemptRecord",
    "Baseline",
    "Caller",
    "CheckpointRecord",
    "Claim",
    "CostRecord",
    "EnergyRecord",
    "EventRecord",
    "FilePurpose",
    "FileRecord",
    "FileStatus",
    "FirstIntensity",
    "FullCostRecord",
    "HeldOutRecord",
    "Hyperparameters",
    "JobError",
    "JobRecord",
    "KeyRecord",
    "KindSpent",
    "ModelRecord",
    "NewCheckpoint",
    "NewFile",
    "Order",
    "Orders",
    "Outcome",
    "OverheadRecord",
    "Page",
    "Progress",
    "Scope",
    "SpentRecord",
    "StoredReply",
    "WorkerRecord",
]

T = TypeVar("T")

FilePurpose = Literal["fine-tune", "fine-tune-results"]
FileStatus = Literal["uploaded", "processed", "error"]
Order = Literal["asc", "desc"]
#: how an attempt ended; None while it lives
Outcome = Literal[
    "succeeded",
    "failed",
    "cancelled",
    "paused",
    "held",
    "shutdown",
    "transient",
    "died",
    "raised",
    "lease_expired",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list; the next one starts after the id of the last item."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """``job.error`` of the wire contract; ``code`` as in `core.errors`."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """What ``auto`` and unset options came to, known when training first starts."""

    n_epochs: int
    batch_size: int
    #: peak, ``learning_rate_multiplier`` included
    learning_rate: float
    learning_rate_multiplier: float | None = None
    #: epochs; None: chosen with each selection
    selection_interval: float | None = None
    #: share of full fine-tuning's cost that ``learning_rate`` belongs to; None: written before this
    #: was remembered
    rho: float | None = None

    def kept_in(self, asked: JobSpec) -> JobSpec:
        """As asked, with what an earlier attempt began with where that was left open: a rule that
        has changed since must neither move the job's end nor train its rest otherwise.
        """
        training = replace(
            asked.training,
            n_epochs=self.n_epochs,
            batch_size=self.batch_size,
            selection_interval=asked.training.selection_interval or self.selection_interval,
        )
        return replace(asked, training=training)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the job stands, all attempts together. Counts grow; numbers are finite or None."""

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    trained_tokens: int = 0
    rho_requested: float | None = None
    #: spent_flops / full_flops
    rho_measured: float | None = None
    #: selection included
    spent_flops: float = 0.0
    #: what full fine-tuning would have spent up to this step
    full_flops: float = 0.0
    #: what full fine-tuning would spend on the whole job
    full_estimate_flops: float | None = None
    train_loss: float | None = None
    valid_loss: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecord:
    """Held-out data before any training and after the last step that was evaluated; None: not."""

    first_validation_loss: float | None = None
    validation_loss: float | None = None
    #: metric -> percent
    first_scores: Mapping[str, float] | None = None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    id: str
    tenant: str
    status: Status
    spec: JobSpec
    #: the caller's labels
    metadata: Mapping[str, str] | None
    #: higher first
    priority: int
    created_at: datetime
    finished_at: datetime | None

    #: number of claims so far: the current attempt, and the token every worker write must show
    fence: int
    #: set exactly while a worker owns the job
    lease_until: datetime | None
    worker: str | None
    #: not claimed before this moment (back-off, or a hold)
    not_before: datetime | None
    #: consecutive attempts that ended in a dead worker or an exception that nobody foresaw, without
    #: a new checkpoint in between
    deaths: int
    #: consecutive transient failures, likewise
    retries: int
    cancel_requested_at: datetime | None
    pause_requested_at: datetime | None

    progress: Progress
    hyperparameters: Hyperparameters | None
    estimated_finish: datetime | None
    error: JobError | None
    result_files: tuple[str, ...]
    #: set when the job succeeded
    fine_tuned_model: str | None

    hold_reason: str | None
    planned_start: datetime | None
    planned_finish: datetime | None
    baseline: Baseline | None
    #: None: never measured
    full_cost: FullCostRecord | None
    #: None: nothing was evaluated
    held_out: HeldOutRecord | None
    #: sums over the samples of all attempts; never decrease
    energy_j: float
    #: of the samples whose intensity is known, whatever its kind: what budgets count, for which
    #: grams left out would be grams overspent
    emissions_g: float
    #: the same, kinds of intensity apart
    spent_by_kind: tuple[KindSpent, ...]

    @property
    def is_owned(self) -> bool:
        return self.lease_until is not None

    @property
    def green_state(self) -> GreenState:
        return green_state(
            self.status,
            cancel=self.cancel_requested_at is not None,
            pause=self.pause_requested_at is not None,
            owned=self.is_owned,
            held=self.not_before is not None,
        )

    @property
    def model_name(self) -> str:
        """The name that the job's result has, or will have."""
        return ids.fine_tuned_model(
            base=self.spec.model, tenant=self.tenant, suffix=self.spec.suffix, job_id=self.id
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    id: str
    job_id: str
    #: 1, 2, ... within the job, in the order of commits
    seq: int
    created_at: datetime
    level: Level
    message: str
    type: EventType
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWorkRecord:
    """What sums over many jobs need of each."""

    id: str
    tenant: str
    spec: JobSpec
    baseline: Baseline | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    job_id: str
    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: Outcome | None
    #: the exception that ended it, in one sentence without a full stop; None: it ended otherwise
    failure: str | None
    from_step: int
    #: whose energy its samples are: "machine" or "process"; None: not recorded
    attribution: str | None
    energy_j: float
    #: as `JobRecord.emissions_g`
    emissions_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that the caller owns until the lease ends or `heartbeat` says otherwise."""

    job: JobRecord
    fence: int
    #: the last complete checkpoint, if an earlier attempt left one
    resume: CheckpointRecord | None

    @property
    def job_id(self) -> str:
        return self.job.id

    @property
    def tenant(self) -> str:
        return self.job.tenant

    @property
    def spec(self) -> JobSpec:
        """As asked, and as the first attempt began (`Hyperparameters.kept_in`)."""
        asked, began = self.job.spec, self.job.hyperparameters
        return asked if began is None else began.kept_in(asked)

    @property
    def attempt(self) -> int:
        return self.fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the owner of a job must do at its next step."""

    cancel: bool
    pause: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file whose bytes already lie in the object store."""

    id: str
    filename: str
    purpose: FilePurpose
    n_bytes: int
    sha256: str
    object_key: str
    status: FileStatus = "uploaded"
    status_details: str | None = None
    #: a validation report as plain JSON
    validation: Mapping[str, Any] | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    id: str
    tenant: str
    #: the caller's words: data, never a path
    filename: str
    purpose: FilePurpose
    n_bytes: int
    sha256: str
    object_key: str
    status: FileStatus
    status_details: str | None
    validation: Mapping[str, Any] | None
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A fine-tuned model that is ready for use."""

    id: str
    tenant: str
    base_model: str
    job_id: str
    created_at: datetime
    #: object key prefix of its files
    prefix: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    name: str
    slots: int
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """The answer that an earlier request with the same idempotency key got."""

    status_code: int
    body: str


Scope = Literal["files", "jobs", "models", "admin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is asking: the outcome of authentication."""

    tenant: str
    key_id: str
    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """An API key as it can be shown: never the secret."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
