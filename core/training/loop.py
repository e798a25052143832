"""The training loop: select, forward and backward, clip and step, validate, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from core.training.hooks import Control, FitResult, Hook, Outcome
from core.training.job import FitJob
from core.training.numerics import memory_errors
from core.training.run import Run


def fit(
    job: FitJob,
    *,
    checkpoints: Path | None = None,
    keep_checkpoints: int = 2,
    hooks: Sequence[Hook] = (),
    control: Callable[[], Control] = lambda: Control.CONTINUE,
) -> FitResult:
    """Train ``job.model`` in place, from the newest checkpoint in ``checkpoints`` if there is one.
    It is float32 again afterwards, however that ends.

    On the CPU a run that was stopped anywhere and resumed gives the same bits as one that was not.

    Args:
        checkpoints: a folder of this job's own; None: neither resume nor save.
        keep_checkpoints: older ones are deleted once a newer one is complete and reported.
        control: asked before every step.

    Raises:
        NanLoss: loss or gradient is not finite; the weights are those before that step.
        OutOfMemory: the device or the host has not enough.
        RhoInfeasible: the plan asked for less than the model's minimum.
        StorageUnavailable: a checkpoint cannot be written, or what was put aside not be read.
    """
    outcome: Outcome = "finished"
    with memory_errors():
        run = Run(job, checkpoints, keep_checkpoints, hooks)
    with memory_errors(), run.frozen:
        run.start()
        while not run.is_done:
            order = control()
            if order is not Control.CONTINUE:
                outcome = _stop(run, order)
                break
            if run.selection_is_due:
                run.select()
            if run.compiling_is_due:
                run.compile()
            run.forward_backward()
            run.update()
            if run.validation_is_due:
                run.validate()
            if run.is_done:
                run.keep_best()
            if run.asking_is_due:
                run.ask()
            if run.checkpoint_is_due:
                run.checkpoint()
        return run.finish(outcome)


def _stop(run: Run, order: Control) -> Outcome:
    """As ``order`` says, which is not to continue."""
    if order is Control.STOP:
        return "cancelled"
    if order is Control.KEEP_BEST_AND_STOP:
        run.keep_best()
    run.checkpoint()
    return "paused"
