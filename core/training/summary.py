"""The records that a run tells of itself with."""

from __future__ import annotations

from pathlib import Path

from core.training.budget import Budget, flops_share, sizes_of
from core.training.checkpoint import TrainState
from core.training.evaluate import Evaluation
from core.training.hooks import (
    BestRecord,
    CheckpointRecord,
    FitResult,
    Outcome,
    SelectionRecord,
    StartRecord,
    StepRecord,
    ValidationRecord,
)
from core.training.horizon import Horizon, lowest_rho
from core.training.job import FitJob
from core.training.methods import SelectionPoint
from core.training.quality import QualityCurve
from core.training.ranking import is_drop
from core.training.rates import Rates, step_cost


def start_record(
    job: FitJob, state: TrainState, budget: Budget, n_parameters: int, measuring_s: float
) -> StartRecord:
    """``n_parameters``: that may be trained at all; ``measuring_s`` as the record's."""
    return StartRecord(
        step=state.step,
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        n_parameters=n_parameters,
        method=job.method.name,
        rho_min=lowest_rho(budget.course, job.method, budget.profile),
        full_step_flops=job.profile.full_flops,
        forward_step_flops=job.profile.forward_flops,
        device=str(job.model.device),
        precision=job.numerics.precision,
        probe=job.numerics.probe,
        memory_estimate_bytes=job.memory_estimate_bytes,
        rates=budget.rates,
        measuring_s=measuring_s,
        full_step_cost=None if budget.rates is None else _full_step_cost(job, budget.rates),
    )


def _full_step_cost(job: FitJob, rates: Rates) -> float:
    """Of an optimiser step, all its micro-batches."""
    sizes, profile = sizes_of(job), job.profile
    return sizes.micro_batches * step_cost(profile, rates, sizes, profile.trainable)


def selection_record(
    job: FitJob,
    state: TrainState,
    found: Horizon,
    point: SelectionPoint,
    *,
    importance: float | None,
    quality_curve: QualityCurve,
    n_trained_parameters: int,
    flops: float,
    duration_s: float,
) -> SelectionRecord:
    """Args: as the record's; ``point`` in FLOPs, ``importance`` at the rate of what is trained."""
    choice = found.choice
    has_drops = is_drop(job.importance)
    share = flops_share(point, choice.names)
    mean_flops = share * job.profile.full_flops
    has_drop = has_drops and bool(importance) and mean_flops > 0
    return SelectionRecord(
        step=state.step,
        epoch=state.step / job.steps_per_epoch,
        rho=choice.rho,
        rho_planned=choice.rho_planned,
        names=choice.names,
        n_trained_parameters=n_trained_parameters,
        peak_learning_rate=job.peak_learning_rate(state.rate_share),
        importance=importance,
        flops=flops,
        duration_s=duration_s,
        quality_curve=quality_curve,
        n_steps=found.n_steps,
        drop_per_flop=importance / mean_flops if importance and has_drop else None,
        full_ratio=choice.full_ratio if has_drops else None,
        currency="flops" if state.rates is None else state.rates.currency,
        flops_share_planned=share,
        unpaid_share=found.unpaid_share,
    )


def step_record(
    job: FitJob,
    state: TrainState,
    *,
    loss: float,
    token_accuracy: float,
    learning_rate: float,
    grad_norm: float,
    duration_s: float,
) -> StepRecord:
    """Of the step that ``state`` just counted; arguments as the record's."""
    return StepRecord(
        step=state.step,
        total_steps=job.total_steps,
        epoch=state.step / job.steps_per_epoch,
        loss=loss,
        token_accuracy=token_accuracy,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        rho=state.rho,
        flops=state.flops,
        full_flops=state.full_flops,
        selection_flops=state.selection_flops,
        evaluation_flops=state.evaluation_flops,
        tokens=state.tokens,
        duration_s=duration_s,
    )


def validation_record(
    job: FitJob, state: TrainState, found: Evaluation, *, flops: float, duration_s: float
) -> ValidationRecord:
    return ValidationRecord(
        step=state.step,
        epoch=state.step / job.steps_per_epoch,
        loss=found.loss,
        token_accuracy=found.token_accuracy,
        n_tokens=found.n_tokens,
        flops=flops,
        duration_s=duration_s,
    )


def checkpoint_record(
    job: FitJob, state: TrainState, folder: Path, *, is_milestone: bool
) -> CheckpointRecord:
    return CheckpointRecord(
        step=state.step,
        epoch=state.step / job.steps_per_epoch,
        folder=folder,
        is_milestone=is_milestone,
        train_loss=state.train_loss,
        train_token_accuracy=state.train_token_accuracy,
        validation_loss=state.loss_now,
        validation_token_accuracy=state.token_accuracy_now,
        scores=state.scores_now,
    )


def best_record(job: FitJob, state: TrainState) -> BestRecord:
    """Of a state whose ``kept_step`` was just set."""
    assert state.kept_step is not None, "weights are kept"
    assert state.best_loss is not None, "they were validated"
    return BestRecord(
        step=state.step,
        total_steps=job.total_steps,
        kept_step=state.kept_step,
        kept_epoch=state.kept_step / job.steps_per_epoch,
        loss=state.best_loss,
    )


def fit_result(job: FitJob, state: TrainState, outcome: Outcome, *, epoch: float) -> FitResult:
    return FitResult(
        outcome=outcome,
        step=state.step,
        total_steps=job.total_steps,
        epoch=epoch,
        train_loss=state.train_loss,
        first_validation_loss=state.first_validation_loss,
        validation_loss=state.loss_now,
        validation_token_accuracy=state.token_accuracy_now,
        trained_names=state.ever_trained,
        flops=state.flops,
        full_flops=state.full_flops,
        selection_flops=state.selection_flops,
        evaluation_flops=state.evaluation_flops,
        tokens=state.tokens,
        train_duration_s=state.train_duration_s,
        first_scores=state.first_scores,
        scores=state.scores_now,
        kept_step=state.kept_step,
    )
