"""What the loop hears from the world and what the world sees of the loop.

``Steering``       what the loop must do next: go on, save and stop, or stop
``Scribe``         how events and progress of one claimed job are said
``ProgressHook``   the job's row and its metrics events follow the loop

Checkpoints are `worker.uploads`' business, energy `worker.energy`'s.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, Final

from sqlalchemy.orm import Session

from core.jobs import service
from core.jobs.lifecycle import STEP_MESSAGE, Level
from core.jobs.records import Claim, HeldOutRecord, Progress
from core.training.hooks import (
    BestRecord,
    CompilationRecord,
    Control,
    EvaluationRecord,
    FitResult,
    Hook,
    SelectionRecord,
    StartRecord,
    StepRecord,
    ValidationRecord,
)
from worker.reporter import Reporter

# Weight of the newest step in the running mean behind tokens_per_s and the estimated finish.
_SMOOTHING: Final = 0.1


class Interrupted(Exception):
    """The job was told to end between two phases; `Steering` knows why."""


class Steering:
    """Turns orders, signals and a lost lease into the loop's next move; costs no I/O."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told_to_stop = threading.Event()

    def listen(self) -> None:
        """SIGTERM asks for a checkpoint and a release. Only from the main thread."""
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop.set()

    @property
    def is_cancelled(self) -> bool:
        return self._reporter.orders.cancel

    @property
    def is_paused(self) -> bool:
        return self._reporter.orders.pause

    def __call__(self) -> Control:
        """Polled by the loop before every step."""
        if self._reporter.is_lost or self.is_cancelled:
            return Control.STOP
        if self.is_paused or self._told_to_stop.is_set():
            return Control.CHECKPOINT_AND_STOP
        return Control.CONTINUE

    def check(self) -> None:
        """Between phases outside the loop.

        Raises:
            Interrupted: the job must not go on.
        """
        if self() is not Control.CONTINUE:
            raise Interrupted


class Scribe:
    """Says things about one claimed job: the claim's id and fence, filled in once."""

    def __init__(self, reporter: Reporter, claim: Claim) -> None:
        self._reporter = reporter
        self._claim = claim

    def event(
        self, message: str, *, level: Level = "info", data: Mapping[str, Any] | None = None
    ) -> None:
        """An event of type message; carbon and engine events carry their kind in ``data``."""
        self._append(message, "message", level, data)

    def metrics(self, message: str, data: Mapping[str, Any]) -> None:
        """An event of type metrics; absent and non-finite values are left out."""
        finite = {key: value for key, value in data.items() if _is_sayable(value)}
        self._append(message, "metrics", "info", finite)

    def progress(self, progress: Progress, remaining_s: float | None) -> None:
        job_id, fence = self._claim.job_id, self._claim.fence

        def write(session: Session, now: datetime) -> None:
            finish = None if remaining_s is None else now + timedelta(seconds=remaining_s)
            service.record_progress(session, job_id, fence, progress, estimated_finish=finish)

        self._reporter.post(write, replaces="progress")

    def held_out(self, held_out: HeldOutRecord) -> None:
        job_id, fence = self._claim.job_id, self._claim.fence
        self._reporter.post(
            lambda session, _now: service.record_held_out(session, job_id, fence, held_out),
            replaces="held_out",
        )

    def _append(
        self, message: str, kind: Any, level: Level, data: Mapping[str, Any] | None
    ) -> None:
        job_id, fence = self._claim.job_id, self._claim.fence

        def write(session: Session, now: datetime) -> None:
            service.append_event(
                session, job_id, fence, level=level, message=message, type=kind, data=data, now=now
            )

        self._reporter.post(write)


class ProgressHook(Hook):
    """Keeps ``progress`` (the job's row) and the metrics events in step with the loop.

    Args:
        held_out: of the attempts before this one.
    """

    def __init__(self, scribe: Scribe, rho: float, held_out: HeldOutRecord | None = None) -> None:
        self._scribe = scribe
        self._progress = Progress(rho_requested=rho)
        self._held_out = held_out or HeldOutRecord()
        self._total_steps = 0
        self._tokens_before = 0
        self._step_s: float | None = None
        self._tokens_per_s: float | None = None

    @property
    def progress(self) -> Progress:
        """As of the last step."""
        return self._progress

    def on_start(self, record: StartRecord) -> None:
        self._total_steps = record.total_steps
        self._progress = replace(
            self._progress,
            step=record.step,
            total_steps=record.total_steps,
            full_estimate_flops=record.full_step_flops * record.total_steps,
        )
        self._scribe.event(
            f"Training on {record.device} in {record.precision}{record.currency_note}",
            data={
                "kind": "start",
                "step": record.step,
                "device": record.device,
                "precision": record.precision,
                "probe": record.probe,
                "memory_estimate_bytes": record.memory_estimate_bytes,
                "rates": None if record.rates is None else asdict(record.rates),
                "full_step_cost": record.full_step_cost,
            },
        )

    def on_selection(self, record: SelectionRecord) -> None:
        self._progress = replace(self._progress, rho_requested=record.rho)
        counted = "" if record.currency == "flops" else f", {record.shares}"
        self._scribe.event(
            f"Selected {len(record.names)} tensors ({record.n_trained_parameters:,} parameters) "
            f"to train at rho {record.rho:.3g}{counted}, learning rate up to "
            f"{record.peak_learning_rate:.2g}{record.verdict}",
            data={
                "kind": "selection",
                "step": record.step,
                "rho": record.rho,
                "rho_planned": record.rho_planned,
                "currency": record.currency,
                "flops_share_planned": record.flops_share_planned,
                "n_tensors": len(record.names),
                "n_parameters": record.n_trained_parameters,
                "peak_learning_rate": record.peak_learning_rate,
                "duration_s": record.duration_s,
                "n_steps": record.n_steps,
                "predicted_drop": record.importance,
                "drop_per_flop": record.drop_per_flop,
                "full_ratio": record.full_ratio,
                "unpaid_share": record.unpaid_share,
                "quality_curve": [list(point) for point in record.quality_curve],
            },
        )

    def on_compilation(self, record: CompilationRecord) -> None:
        self._scribe.event(record.text, data={"kind": "compilation", **asdict(record)})

    def on_step(self, record: StepRecord) -> None:
        self._measure_speed(record)
        self._progress = replace(
            self._progress,
            step=record.step,
            epoch=record.epoch,
            trained_tokens=record.tokens,
            rho_measured=record.flops / record.full_flops if record.full_flops else None,
            spent_flops=record.flops,
            full_flops=record.full_flops,
            train_loss=record.loss if math.isfinite(record.loss) else None,
            tokens_per_s=self._tokens_per_s,
        )
        assert self._step_s is not None
        self._scribe.progress(self._progress, (record.total_steps - record.step) * self._step_s)
        self._scribe.metrics(
            STEP_MESSAGE.format(step=record.step, total_steps=record.total_steps, loss=record.loss),
            {
                "step": record.step,
                "total_steps": record.total_steps,
                "epoch": record.epoch,
                "train_loss": record.loss,
                "train_mean_token_accuracy": record.token_accuracy,
                "learning_rate": record.learning_rate,
                "flops_share": self._progress.rho_measured,
                "tokens_per_s": self._tokens_per_s,
            },
        )

    def on_validation(self, record: ValidationRecord) -> None:
        self._progress = replace(self._progress, valid_loss=record.loss)
        if record.step == 0:  # also of a job that begins again: what came after does not count
            self._keep(first_validation_loss=record.loss, validation_loss=None)
        else:
            self._keep(validation_loss=record.loss)
        self._scribe.metrics(
            f"Step {record.step}/{self._total_steps}: full validation loss={record.loss:.2f}",
            {
                "step": record.step,
                "total_steps": self._total_steps,
                "epoch": record.epoch,
                "valid_loss": record.loss,
                "valid_mean_token_accuracy": record.token_accuracy,
                # the whole validation set is used every time, so OpenAI's two pairs are the same
                "full_valid_loss": record.loss,
                "full_valid_mean_token_accuracy": record.token_accuracy,
            },
        )

    def on_best_kept(self, record: BestRecord) -> None:
        self._progress = replace(self._progress, valid_loss=record.loss)
        self._scribe.event(record.text, data={"kind": "early_stopping", **asdict(record)})

    def on_evaluation(self, record: EvaluationRecord) -> None:
        if record.step == 0:
            self._keep(first_scores=record.scores, scores=None)
        else:
            self._keep(scores=record.scores)
        scores = ", ".join(f"{name}={value:.2f}" for name, value in record.scores.items())
        self._scribe.metrics(
            f"Step {record.step}/{self._total_steps}: held-out answers {scores}",
            {
                "step": record.step,
                "total_steps": self._total_steps,
                "epoch": record.epoch,
                **{f"eval_{name}": value for name, value in record.scores.items()},
                "eval_examples": record.n_examples,
                "eval_flops": record.flops,
                "eval_duration_s": record.duration_s,
            },
        )

    def on_end(self, result: FitResult) -> None:
        self._progress = replace(
            self._progress, spent_flops=result.flops, full_flops=result.full_flops
        )
        self._scribe.progress(self._progress, None)
        if result.outcome == "finished":
            # a checkpoint knows of attempts whose release did not store this
            self._keep(**asdict(held_out_of(result)))

    def _keep(self, **changes: Any) -> None:
        kept = replace(self._held_out, **changes)
        if kept != self._held_out:
            self._held_out = kept
            self._scribe.held_out(kept)

    def _measure_speed(self, record: StepRecord) -> None:
        tokens_per_s = (record.tokens - self._tokens_before) / max(record.duration_s, 1e-9)
        if self._step_s is None or self._tokens_per_s is None:
            self._step_s = record.duration_s
            # of a resumed run the tokens before are not known: the first step gives no rate
            self._tokens_per_s = tokens_per_s if record.step == 1 else None
        else:
            self._step_s += _SMOOTHING * (record.duration_s - self._step_s)
            self._tokens_per_s += _SMOOTHING * (tokens_per_s - self._tokens_per_s)
        self._tokens_before = record.tokens


def held_out_of(result: FitResult) -> HeldOutRecord:
    """What a run's model was before and is now on held-out data: nothing where the last that was
    measured was another step's.
    """
    names = (each.name for each in fields(HeldOutRecord))
    return HeldOutRecord(**{name: getattr(result, name) for name in names})


def _is_sayable(value: object) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))
