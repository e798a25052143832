"""Which times of a training go into something other than its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from core.carbon.account import Overhead
from core.training.hooks import (
    CheckpointRecord,
    EvaluationRecord,
    Hook,
    SelectionRecord,
    StartRecord,
    StepRecord,
    ValidationRecord,
)


class OverheadHook(Hook):
    """Preparation, selections, validations, evaluations, checkpoints and the delivery, for the
    report's own lines. Goes last among a training's hooks, so that a checkpoint's time holds what
    the others do with it.

    Args:
        write: takes each time as it ends.
        since: when the attempt began.
    """

    def __init__(
        self,
        write: Callable[[Overhead], None],
        *,
        since: datetime,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._write = write
        self._clock = clock
        #: when the loop was last heard of
        self._heard = since
        #: what goes on since then, where it is none of the loop's own work
        self._meanwhile: str | None = "preparation"

    def on_start(self, record: StartRecord) -> None:
        if record.measuring_s:
            # what a step costs here, for selections to count with
            began = self._clock() - timedelta(seconds=record.measuring_s)
            self._span("preparation", self._heard, began)
            self._heard = max(self._heard, began)
        self._ended("selection" if record.measuring_s else "preparation")

    def on_selection(self, record: SelectionRecord) -> None:
        self._ended("selection", record.duration_s)

    def on_step(self, record: StepRecord) -> None:  # noqa: ARG002  as above
        self._heard, self._meanwhile = self._clock(), None

    def on_validation(self, record: ValidationRecord) -> None:
        self._ended("validation", record.duration_s)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._ended("evaluation", record.duration_s)

    def on_checkpoint(self, record: CheckpointRecord) -> None:  # noqa: ARG002  as above
        self._ended("checkpoint")
        # it is uploaded while training goes on, or while a training that stopped waits for it
        self._meanwhile = "checkpoint"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around a whole attempt: one that is broken off before its first step has prepared for
        nothing, and one that stops at a checkpoint has waited for its upload.
        """
        try:
            yield
        except BaseException:
            if self._meanwhile is not None:
                self._ended(self._meanwhile)
            raise

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """A time outside the loop, however it ends."""
        self._heard = self._clock()
        try:
            yield
        finally:
            self._ended(kind)

    def _ended(self, kind: str, duration_s: float | None = None) -> None:
        """Now; it took ``duration_s``, or as long as nothing was heard."""
        now = self._clock()
        start = self._heard
        if duration_s is not None:
            # two clocks: what was heard before is over
            start = max(start, now - timedelta(seconds=duration_s))
        self._heard, self._meanwhile = now, None
        self._span(kind, start, now)

    def _span(self, kind: str, start: datetime, end: datetime) -> None:
        if end > start:
            self._write(Overhead(kind=kind, started_at=start, ended_at=end))
