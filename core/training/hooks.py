"""What the training loop tells the world, and what the world may ask of it.

`fit` calls hooks with frozen records at its phases; it never learns who listens. Records are plain
numbers and names (no tensors), so that they can be written, sent and drawn as they are.

FLOPs convention: one multiply-add is two FLOPs; ``flops`` is cumulative over the whole job,
attempts before a resume included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final, Literal

from core.spec import Currency
from core.training.rates import NOUNS, UNITS, Rates

#: share of full fine-tuning below which an excess over rho is not put into words
_WORTH_SAYING: Final = 0.001


class Control(Enum):
    """The answer of the control callable, polled before every step."""

    CONTINUE = "continue"
    #: finish the current step, write a checkpoint, return with outcome "paused"
    CHECKPOINT_AND_STOP = "checkpoint_and_stop"
    #: the same of a run that will not go on: with early stopping the model first gets the weights
    #: of its best step so far
    KEEP_BEST_AND_STOP = "keep_best_and_stop"
    #: return with outcome "cancelled"; nothing is written
    STOP = "stop"


Outcome = Literal["finished", "paused", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """Before the first step of this process. ``step`` > 0: resumed from a checkpoint."""

    step: int
    total_steps: int
    steps_per_epoch: int
    n_parameters: int
    method: str
    #: lowest feasible share of full fine-tuning's cost for this model and data, 0..1
    rho_min: float
    #: full fine-tuning's FLOPs for the mean step of this data, and its forward part
    full_step_flops: float
    forward_step_flops: float
    device: str
    precision: str
    #: seconds and errors of the ways to multiply that were tried at start-up; empty: none were
    probe: str = ""
    #: that the job is expected to take of the device, bytes; None: not estimated
    memory_estimate_bytes: int | None = None
    #: prices of the currency that rho counts in, and full fine-tuning's mean optimiser step in
    #: their unit; None: FLOPs
    rates: Rates | None = None
    full_step_cost: float | None = None
    #: seconds that measuring those prices took just now; 0: they were known
    measuring_s: float = 0.0

    @property
    def currency_note(self) -> str:
        """What rho counts, to be added to a sentence; empty: FLOPs."""
        if self.rates is None or self.full_step_cost is None:
            return ""
        unit = "s" if self.rates.unit == "seconds" else "J"
        why = ""
        if self.rates.currency != self.rates.unit:
            why = " (power is only modelled here, so that energy goes with time)"
        return (
            f"; rho counts {self.rates.currency}{why}: full fine-tuning's step costs about "
            f"{self.full_step_cost:.3g} {unit} here, measured in {self.rates.duration_s:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRecord:
    """A new set of trained tensors, in force from ``step`` (the next one to run) on."""

    step: int
    epoch: float
    #: share asked for, and share that the chosen set costs on the mean step, both in ``currency``
    rho: float
    rho_planned: float
    names: tuple[str, ...]
    n_trained_parameters: int
    #: highest of the schedule
    peak_learning_rate: float
    #: predicted loss drop of one optimiser step with this set (first order), at the rate of the
    #: first step that it is in force for; None: not measured
    importance: float | None
    #: FLOPs and seconds that this selection itself cost
    flops: float
    duration_s: float
    #: (rho, loss drop expected at that rho as a share, 0..1, of the best that any rho gives), both
    #: rising, at most 33 points, from this selection's own measurement; empty: it measured nothing
    quality_curve: tuple[tuple[float, float], ...] = ()
    #: steps that it is in force for
    n_steps: int | None = None
    #: ``importance`` per FLOP of the mean step; None: not measured
    drop_per_flop: float | None = None
    #: predicted drop per unit of the currency of full fine-tuning over the best at this cost; from
    #: 1 on, full fine-tuning for fewer steps is the better use; None: "efficient" was not asked for
    full_ratio: float | None = None
    #: what rho counts, and share of full fine-tuning's FLOPs that the mean step costs
    currency: Currency = "flops"
    flops_share_planned: float | None = None
    #: what measuring takes beyond ``rho``, as a share of full fine-tuning over ``n_steps``; above 0
    #: where a job or interval is too short to pay for it
    unpaid_share: float = 0.0

    @property
    def shares(self) -> str:
        """What the mean step costs, in words."""
        planned = f"{self.rho_planned:.1%} of full fine-tuning's {NOUNS[self.currency]}"
        if self.currency == "flops" or self.flops_share_planned is None:
            return planned
        return f"{planned}, {self.flops_share_planned:.1%} of its FLOPs"

    @property
    def verdict(self) -> str:
        """What is to be known of this selection, to be added to a sentence; may be empty."""
        return self._of_full_fine_tuning + self._of_measuring

    @property
    def _of_measuring(self) -> str:
        if self.unpaid_share < _WORTH_SAYING:
            return ""
        return (
            f"; too few steps ({self.n_steps}) to pay for measuring importance, which exceeds rho "
            f"by {self.unpaid_share:.1%} of full fine-tuning's {NOUNS[self.currency]} over them"
        )

    @property
    def _of_full_fine_tuning(self) -> str:
        if self.full_ratio is None or self.full_ratio < 1:
            return ""
        if self.rho >= 1:
            return (
                "; full fine-tuning for fewer steps is predicted to be the best use of its "
                f"{NOUNS[self.currency]}"
            )
        return (
            "; full fine-tuning for fewer steps is predicted to lower the loss "
            f"{self.full_ratio:.2f} times as much per {UNITS[self.currency]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilationRecord:
    """Whether the blocks are compiled (`core.training.compiled`) from ``step`` (the next) on."""

    step: int
    is_kept: bool
    #: of blocks that differ in what is trained in them
    n_kinds: int
    #: seconds of compiling, as far as it came
    build_s: float
    #: a pass's time, as a part of what it takes without; None: not measured
    ratio: float | None = None
    #: steps after which compiling is paid back; None: not measured, or never
    earned_back_in: float | None = None
    #: what stood against it; empty: nothing, or ``ratio`` alone
    why: str = ""
    #: FLOPs and seconds that finding out and compiling took
    flops: float = 0.0
    duration_s: float = 0.0

    def after(self, duration_s: float, *, flops: float) -> CompilationRecord:
        return replace(self, duration_s=duration_s, flops=flops)

    @property
    def text(self) -> str:
        """In words."""
        kinds = "one kind" if self.n_kinds == 1 else f"{self.n_kinds} kinds"
        took = f"{kinds} of blocks in {self.build_s:.1f} s"
        if self.ratio is None:
            return f"Compiled {took}" if self.is_kept else f"Not compiled: {self.why}"
        measured = f"a step takes {self.ratio:.2f} of its time"
        if not self.is_kept:
            return f"Not compiled: {measured}, which does not pay for compiling {took}"
        return f"Compiled {took}: {measured}, which pays for it in {self.earned_back_in:.0f} steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimiser step is done. ``step`` counts from 1 to ``total_steps``."""

    step: int
    total_steps: int
    #: epochs finished, as a fraction
    epoch: float
    #: mean over this step's label tokens: cross-entropy in nats, and share predicted right, 0..1
    loss: float
    token_accuracy: float
    learning_rate: float
    #: norm of the trained tensors' gradient before clipping
    grad_norm: float
    #: share asked for at the last selection
    rho: float
    #: cumulative training FLOPs, selection included, evaluation not
    flops: float
    #: cumulative FLOPs that full fine-tuning would have spent on the same batches
    full_flops: float
    #: the part of ``flops`` spent on selection; and evaluation's, counted apart
    selection_flops: float
    evaluation_flops: float
    #: cumulative real tokens processed in training steps (no padding), all attempts
    tokens: int
    #: seconds of this step alone
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """Mean over all label tokens of the validation set, after ``step`` steps (0: the base)."""

    step: int
    epoch: float
    loss: float
    token_accuracy: float
    n_tokens: int
    flops: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRecord:
    """Training is over after ``step`` steps, and the weights of an earlier one are the model's."""

    step: int
    total_steps: int
    kept_step: int
    kept_epoch: float
    #: on the validation set, of what was kept
    loss: float

    @property
    def text(self) -> str:
        """In words."""
        ended = "" if self.step == self.total_steps else " early"
        return (
            f"Training ended{ended} after step {self.step} of {self.total_steps}; kept are the "
            f"weights of step {self.kept_step} (epoch {self.kept_epoch:.3g}), whose validation "
            f"loss of {self.loss:.4f} was the lowest"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """The model's own answers to held-out questions after ``step`` steps (0: the base's)."""

    step: int
    epoch: float
    #: metric -> mean over the questions, percent (`core.training.metrics`)
    scores: Mapping[str, float]
    answers: tuple[str, ...]
    #: questions that were too long and asked in part
    n_cut: int
    #: new tokens of all answers, and FLOPs and seconds that asking took
    n_tokens: int
    flops: float
    duration_s: float

    @property
    def n_examples(self) -> int:
        return len(self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A complete checkpoint lies in ``folder``; older ones may be pruned after the hook returns."""

    step: int
    epoch: float
    folder: Path
    #: at an epoch's or the job's end, as opposed to one taken against loss of work
    is_milestone: bool
    #: of the last step's batch
    train_loss: float | None
    train_token_accuracy: float | None
    #: of these weights; None: not validated, not evaluated at this step
    validation_loss: float | None
    validation_token_accuracy: float | None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """How the run ended. All sums span every attempt that the checkpoints remember."""

    outcome: Outcome
    step: int
    total_steps: int
    epoch: float
    train_loss: float | None
    #: before any training, and of the weights as they are; None: not measured at this step
    first_validation_loss: float | None
    validation_loss: float | None
    validation_token_accuracy: float | None
    #: every tensor that was trained at least once
    trained_names: tuple[str, ...]
    flops: float
    full_flops: float
    selection_flops: float
    evaluation_flops: float
    tokens: int
    #: seconds inside steps, selections included
    train_duration_s: float
    #: of the model's own answers, likewise
    first_scores: Mapping[str, float] | None = None
    scores: Mapping[str, float] | None = None
    #: with early stopping: the step whose weights the model has; None: the last
    kept_step: int | None = None

    @property
    def flops_share(self) -> float | None:
        """Measured share of full fine-tuning's FLOPs, selection included; None before a step."""
        return self.flops / self.full_flops if self.full_flops else None


class Hook:
    """Base with every phase a no-op; override what you need.

    A hook that raises ends the run: one that must not (metering) catches its own errors.
    """

    def on_start(self, record: StartRecord) -> None: ...
    def on_selection(self, record: SelectionRecord) -> None: ...
    def on_compilation(self, record: CompilationRecord) -> None: ...
    def on_step(self, record: StepRecord) -> None: ...
    def on_validation(self, record: ValidationRecord) -> None: ...
    def on_best_kept(self, record: BestRecord) -> None: ...
    def on_evaluation(self, record: EvaluationRecord) -> None: ...
    def on_checkpoint(self, record: CheckpointRecord) -> None: ...
    def on_end(self, result: FitResult) -> None: ...
