"""Records of a job's checkpoints, whose files lie in the object store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A complete checkpoint: its manifest was uploaded before this row was written."""

    id: str
    job_id: str
    created_at: datetime
    attempt: int
    step: int
    #: object key prefix of its files
    prefix: str
    n_bytes: int
    metrics: Mapping[str, float]
    #: ``ft:...:ckpt-step-<n>``
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    step: int
    prefix: str
    n_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    #: kept for good; others only while they are the newest
    is_milestone: bool = True
    #: names of those of its files that only its own job has a use for, to go on from
    state_files: tuple[str, ...] = ()
