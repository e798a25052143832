"""What a run tells of itself as a whole, at its start and at its end."""

from __future__ import annotations

from core.training.checkpoint import TrainState
from core.training.hooks import FitResult, Outcome, StartRecord
from core.training.horizon import lowest_rho
from core.training.job import FitJob


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
