"""The life of a job: states, edges and the events they leave, as data. Pure.

::

                     claimed, validated            claimed, started
    validating_files ------------------> queued -------------------> running ----> succeeded
          |     ^                        |   ^ ^                     |  |  |
          |     |  worker lost           |   | +--- worker lost, ----+  |  |
          |     +--- or released         |   |      released            |  |
          |                       pause  v   | resume                   |  |
          |                            paused <----------- pause -------+  |
          +----------------------------------------------------------------+---> failed
          every state that is not terminal ----------------------------------> cancelled

A *claim* is not a state: a worker owns a job while ``lease_until`` is set and ``fence`` is its
own. Cancelling or pausing an owned job is an *order* that the owner carries out; an order on a job
that nobody owns is carried out at once. Where several orders meet, `settle` says which one wins.

OpenAI's event messages are kept to the letter: clients search for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]
GreenState = Literal["planned", "held", "running", "pausing", "paused", "cancelling", "done"]


class Status(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Never left, never overwritten; ``finished_at`` is set exactly then."""
        return self in TERMINAL


TERMINAL: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
ACTIVE: Final = frozenset(set(Status) - TERMINAL)
#: states in which a worker may own the job
CLAIMABLE: Final = frozenset({Status.VALIDATING_FILES, Status.QUEUED, Status.RUNNING})
PAUSABLE: Final = frozenset({Status.QUEUED, Status.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One arrow of the graph and the event that it leaves (``message`` is a format string)."""

    sources: frozenset[Status]
    target: Status
    level: Level = "info"
    message: str


VALIDATED: Final = Edge(
    sources=frozenset({Status.VALIDATING_FILES}),
    target=Status.QUEUED,
    message="Files validated, moving job to queued state",
)
STARTED: Final = Edge(
    sources=frozenset({Status.QUEUED}),
    target=Status.RUNNING,
    message="Fine-tuning job started",
)
SUCCEEDED: Final = Edge(
    sources=frozenset({Status.RUNNING}),
    target=Status.SUCCEEDED,
    message="The job has successfully completed",
)
FAILED: Final = Edge(
    sources=CLAIMABLE, target=Status.FAILED, level="error", message="The job failed: {message}"
)
CANCELLED: Final = Edge(
    sources=ACTIVE, target=Status.CANCELLED, message="Fine-tuning job cancelled"
)
PAUSED: Final = Edge(sources=PAUSABLE, target=Status.PAUSED, message="Fine-tuning job paused")
RESUMED: Final = Edge(
    sources=frozenset({Status.PAUSED}),
    target=Status.QUEUED,
    message="Fine-tuning job resumed, moving job to queued state",
)
REQUEUED: Final = Edge(
    sources=PAUSABLE,
    target=Status.QUEUED,
    level="warn",
    message="{reason}; moving job back to queued state",
)
REVALIDATED: Final = Edge(
    sources=frozenset({Status.VALIDATING_FILES}),
    target=Status.VALIDATING_FILES,
    level="warn",
    message="{reason}; the files will be validated again",
)
HELD: Final = Edge(
    sources=PAUSABLE, target=Status.QUEUED, message="Holding the job until {until}: {reason}"
)
BUDGET_SPENT: Final = Edge(
    sources=PAUSABLE,
    target=Status.PAUSED,
    level="warn",
    message="Fine-tuning job paused: {reason}",
)
EDGES: Final = (
    VALIDATED,
    STARTED,
    SUCCEEDED,
    FAILED,
    CANCELLED,
    PAUSED,
    RESUMED,
    REQUEUED,
    REVALIDATED,
    HELD,
    BUDGET_SPENT,
)

#: events that belong to no edge
CREATED_MESSAGE: Final = "Created fine-tuning job: {job_id}"
VALIDATING_MESSAGE: Final = "Validating training file: {file_id}"
STEP_MESSAGE: Final = "Step {step}/{total_steps}: training loss={loss:.2f}"
CHECKPOINT_MESSAGE: Final = "Checkpoint created at step {step}"
CONTINUED_MESSAGE: Final = "Fine-tuning job continues from the checkpoint at step {step}"
MODEL_MESSAGE: Final = "New fine-tuned model created: {model}"
CANCEL_ORDERED_MESSAGE: Final = "Cancelling: waiting for the worker to stop"
PAUSE_ORDERED_MESSAGE: Final = "Pausing: waiting for the worker to save a checkpoint"
PAUSE_WITHDRAWN_MESSAGE: Final = "Pause withdrawn"


class Release(StrEnum):
    """Why a worker gives a job back before its end."""

    #: the worker is stopping (SIGTERM); another may go on at once
    SHUTDOWN = "shutdown"
    #: a service failed; tried again after a growing wait, `TRANSIENT_LIMIT` times
    TRANSIENT = "transient"
    #: the training process died; tried again after a growing wait, ``max_attempts`` times
    DIED = "died"


RELEASE_REASONS: Final[dict[Release, str]] = {
    Release.SHUTDOWN: "The worker is shutting down",
    Release.TRANSIENT: "A service that the job needs is not available",
    Release.DIED: "The training process died",
}
LEASE_EXPIRED_REASON: Final = "The worker stopped answering"

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_CAP_S: Final = 300.0
#: transient failures in a row, without a new checkpoint, after which the job fails: the waits add
#: up to more than an hour
TRANSIENT_LIMIT: Final = 24


def backoff_s(failures: int) -> float:
    """Seconds to wait after the ``failures``-th failure in a row (1, 2, ...): 1, 2, 4 ... 300."""
    # 2**9 is past the cap already; the bound keeps the power small
    return min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def settle(status: Status, *, cancel: bool, pause: bool) -> Edge:
    """The edge that an unfinished job takes when its owner lets go of it.

    A cancel order beats a pause order, and both beat another attempt.
    """
    if cancel:
        return CANCELLED
    if status is Status.VALIDATING_FILES:
        return REVALIDATED
    return PAUSED if pause else REQUEUED


def green_state(
    status: Status, *, cancel: bool, pause: bool, owned: bool, held: bool
) -> GreenState:
    """``green.state`` of the wire contract: what ``status`` cannot say.

    Args:
        status: the job's state.
        cancel: a cancel order is pending.
        pause: a pause order is pending.
        owned: a worker holds the job.
        held: the job waits on purpose (for a greener hour, or before another try).
    """
    if status.is_terminal:
        return "done"
    if cancel:
        return "cancelling"
    if status is Status.PAUSED:
        return "paused"
    if pause:
        return "pausing"
    if owned:
        return "running"
    return "held" if held else "planned"
