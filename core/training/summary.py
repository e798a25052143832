"""What a run tells of itself: at its start, at each selection and at its end."""

from __future__ import annotations

from core.training.checkpoint import TrainState
from core.training.hooks import FitResult, Outcome, SelectionRecord, StartRecord
from core.training.horizon import Horizon, lowest_rho
from core.training.job import FitJob
from core.training.quality import QualityCurve


def start_record(job: FitJob, state: TrainState, n_parameters: int) -> StartRecord:
    """``n_parameters``: that may be trained at all."""
    return StartRecord(
        step=state.step,
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        n_parameters=n_parameters,
        method=job.method.name,
        rho_min=lowest_rho(job.course, job.method, job.profile),
        full_step_flops=job.profile.full_flops,
        forward_step_flops=job.profile.forward_flops,
        device=str(job.model.device),
        precision=job.numerics.precision,
        probe=job.numerics.probe,
        memory_estimate_bytes=job.memory_estimate_bytes,
    )


def selection_record(
    job: FitJob,
    state: TrainState,
    found: Horizon,
    *,
    importance: float | None,
    quality_curve: QualityCurve,
    n_trained_parameters: int,
    flops: float,
    duration_s: float,
) -> SelectionRecord:
    """Args: as the record's; ``importance`` at the rate of what is trained."""
    choice = found.choice
    is_drop = job.importance == "importance"  # the other rankings are no loss drops
    mean_flops = choice.rho_planned * job.profile.full_flops
    has_drop = is_drop and bool(importance) and mean_flops > 0
    return SelectionRecord(
        step=state.step,
        epoch=state.step / job.steps_per_epoch,
        rho=choice.rho,
        rho_planned=choice.rho_planned,
        names=choice.names,
        n_trained_parameters=n_trained_parameters,
        importance=importance,
        flops=flops,
        duration_s=duration_s,
        quality_curve=quality_curve,
        n_steps=found.n_steps,
        drop_per_flop=importance / mean_flops if importance and has_drop else None,
        full_ratio=choice.full_ratio if is_drop else None,
    )


def fit_result(job: FitJob, state: TrainState, outcome: Outcome, *, epoch: float) -> FitResult:
    return FitResult(
        outcome=outcome,
        step=state.step,
        total_steps=job.total_steps,
        epoch=epoch,
        train_loss=state.train_loss,
        first_validation_loss=state.first_validation_loss,
        validation_loss=state.validation_loss,
        validation_token_accuracy=state.validation_token_accuracy,
        trained_names=state.ever_trained,
        flops=state.flops,
        full_flops=state.full_flops,
        selection_flops=state.selection_flops,
        evaluation_flops=state.evaluation_flops,
        tokens=state.tokens,
        train_duration_s=state.train_duration_s,
        first_scores=state.first_scores,
        scores=state.scores,
    )
