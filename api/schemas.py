"""The wire: requests as the openai client sends them, answers as it expects them.

Requests are strict (no coercion) and refuse unknown keys, because a misspelt option must not
silently cost carbon. Every optional field may be null. Timestamps are integer Unix seconds.
Answers may carry more than OpenAI's fields: the client keeps what it does not know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from core.moments import LONGEST_SAID
from core.training_options import RATE_MIN

Auto = Literal["auto"]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _moment(value: Any) -> Any:
    """RFC 3339 with its time zone, or Unix seconds."""
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("a moment needs its time zone, as in 2026-12-24T06:00:00Z")
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(
                f"no such moment in UTC; name one at most {LONGEST_SAID} ahead"
            ) from error
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC)
        except (OverflowError, OSError) as error:
            raise ValueError(
                f"no such moment in Unix seconds; name one at most {LONGEST_SAID} ahead"
            ) from error
    return value


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}),
]
_AHEAD = f"RFC 3339 with a time zone, or Unix seconds; at most {LONGEST_SAID} ahead."


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class HyperparametersIn(Request):
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, Field(ge=RATE_MIN)] | Auto | None = None
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto | None = None


class SupervisedIn(Request):
    hyperparameters: HyperparametersIn | None = None


class MethodIn(Request):
    type: str
    supervised: SupervisedIn | None = None
    #: accepted as keys so that the refusal can name the method rather than the key
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class TrainingIn(Request):
    """``green.training``: what OpenAI's hyperparameters cannot say. Null: the server's rule.

    Other ranges are `core.training_options.TrainingOptions`'s own.
    """

    learning_rate: Annotated[float, Field(ge=RATE_MIN)] | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    loss_on: str | None = None
    gradient_accumulation: int | None = None
    schedule: str | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    max_steps: int | None = None
    selection_interval: float | None = None
    checkpoint_every_s: float | None = None
    prefix_reuse: str | None = None
    precision: str | None = None
    gradient_checkpointing: bool | None = None
    compile: str | None = None
    early_stopping_patience: int | None = None


class MethodOptionsIn(Request):
    """What ``green.method`` is told; absent values are the method's own."""

    k: Annotated[
        int | None,
        Field(description="last_k: blocks to train. Absent: as many as rho pays for."),
    ] = None
    r: Annotated[int | None, Field(description="lora, green_lora: rank, 8.")] = None
    alpha: Annotated[float | None, Field(description="lora, green_lora: scale, 32.")] = None
    dropout: Annotated[float | None, Field(description="lora, green_lora: 0.")] = None
    target_modules: Annotated[
        str | None,
        Field(description='lora: "default" (PEFT\'s table for the model) or "all-linear".'),
    ] = None
    n_virtual_tokens: Annotated[int | None, Field(description="prefix: length, 20.")] = None
    merge: Annotated[
        bool | None,
        Field(description="lora, green_lora: deliver a plain model instead of the adapter."),
    ] = None


class TaskIn(Request):
    """The files are tables (CSV, Parquet, or JSONL of named columns), read by a task's template."""

    name: Annotated[Name, Field(description='"scitldr", "dialogsum", "webquestions" or "piqa".')]
    columns: Annotated[
        dict[Name, Name] | None,
        Field(
            max_length=16,
            description="Field of the template -> column of the files. Absent: as in the task's "
            "own data set.",
        ),
    ] = None


class EvalIn(Request):
    """Questions of the validation file that the model answers before and after training."""

    metrics: Annotated[
        list[Name] | None, Field(max_length=16, description="Absent: the task's, or rougeL.")
    ] = None
    max_examples: Annotated[int | None, Field(description="Absent: 100.")] = None
    decoding: Annotated[Name | None, Field(description='"greedy" or "beam".')] = None
    max_new_tokens: int | None = None


class GreenIn(Request):
    """Ours. Travels as ``extra_body={"green": {...}}`` in the openai client."""

    rho: Annotated[
        float | Auto | Literal["efficient"] | None,
        Field(
            description="Share of full fine-tuning's FLOPs to spend, above about 1/3 (less where "
            "samples pass more than once between two selections) and at most 1; "
            '"auto": set from the carbon intensity of the zone; "efficient": where a FLOP is '
            "predicted to lower the loss most, measured at each selection. "
            'Absent: "auto" where a zone is known, else 0.7.'
        ),
    ] = None
    currency: Annotated[
        Name | None,
        Field(
            description='What rho is a share of: "flops"; "seconds" or "joules", as measured on '
            "the machine before training, for green and last_k without a carbon plan."
        ),
    ] = None
    zone: Annotated[
        Name | None,
        Field(description='Grid zone, such as "FR" or "US-CA". Absent: the server\'s own, if set.'),
    ] = None
    method: Annotated[
        Name | None,
        Field(
            description='"green" (trains the tensors worth their cost), "full", "last_k", "lora", '
            '"prefix" or "green_lora" (LoRA on the projections worth it). rho is for green, '
            "green_lora and last_k without k; the others cost what they cost."
        ),
    ] = None
    options: MethodOptionsIn | None = None
    importance: Annotated[
        Name | None,
        Field(
            description='What green and green_lora rank tensors by: "importance", or for '
            'comparison "taylor" (the paper\'s criterion), "random", "magnitude" or "fisher".'
        ),
    ] = None
    training: TrainingIn | None = None
    task: TaskIn | None = None
    eval: EvalIn | None = None
    schedule: Annotated[
        Name | None,
        Field(description='"now", or "green": wait for and pause between the greener hours.'),
    ] = None
    earliest_start: Annotated[Moment | None, Field(description=_AHEAD)] = None
    deadline: Annotated[Moment | None, Field(description=_AHEAD)] = None
    max_hold_s: Annotated[
        float | None,
        Field(
            description="So long after submission (or earliest_start) nothing is held back; at "
            "most 100 years."
        ),
    ] = None
    energy_budget_wh: Annotated[
        float | None, Field(description="Of the whole job, PUE included.")
    ] = None
    carbon_budget_g: Annotated[
        float | None, Field(description="Grams of CO2e of the whole job, PUE included.")
    ] = None
    on_budget: Annotated[
        Name | None,
        Field(description='Once a budget is spent: "pause", "stop_and_save" or "fail".'),
    ] = None


class EstimateIn(Request):
    model: Name
    #: one of the two
    training_file: Name | None = None
    n_tokens: Annotated[int | None, Field(ge=1, le=10**13)] = None
    n_epochs: Annotated[int | None, Field(ge=1, le=50)] = None
    rho: Annotated[
        list[float] | None, Field(max_length=16, description="Each above 0 and at most 1.")
    ] = None
    #: hours from now
    start_hours: (
        Annotated[list[Annotated[float, Field(ge=0, le=336)]], Field(max_length=16)] | None
    ) = None
    zone: Name | None = None
    deadline: Annotated[Moment | None, Field(description=_AHEAD)] = None


class CreateJob(Request):
    model: Name
    training_file: Name
    validation_file: Name | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: Metadata | None = None
    method: MethodIn | None = None
    #: OpenAI's deprecated twin of ``method.supervised.hyperparameters``
    hyperparameters: HyperparametersIn | None = None
    integrations: list[Any] | None = None
    green: GreenIn | None = None


class ExpiresAfterIn(Request):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class CreateUpload(Request):
    bytes: Annotated[int, Field(ge=1, description="Of the whole file.")]
    filename: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    #: asked for by the client; what a file is, its content decides
    mime_type: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    purpose: str
    expires_after: ExpiresAfterIn | None = None


class CompleteUpload(Request):
    part_ids: Annotated[
        list[Name],
        Field(min_length=1, max_length=10_000, description="In the order of the file."),
    ]
    md5: (
        Annotated[
            str,
            StringConstraints(pattern="^[0-9A-Fa-f]{32}$"),
            Field(description="Of the whole file, in hexadecimal."),
        ]
        | None
    ) = None


class ListOf(BaseModel):
    """``has_more`` is always there: without it the client asks until data is empty."""

    object: Literal["list"] = "list"
    data: list[Any]
    has_more: bool


class CursorListOf(ListOf):
    first_id: str | None
    last_id: str | None


class FileOut(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = None
    status_details: str | None = None
    #: ours: the whole report of the data check (counts, up to 100 problems with line numbers)
    validation: dict[str, Any] | None = None


class UploadOut(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileOut | None


class PartOut(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True


class ModelOut(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class JobErrorOut(BaseModel):
    code: str
    message: str
    param: str | None = None


class JobOut(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobErrorOut | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    integrations: None = None
    seed: int
    estimated_finish: int | None
    method: dict[str, Any]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    green: dict[str, Any]


class EventOut(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointOut(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(BaseModel):
    error: ErrorDetail
