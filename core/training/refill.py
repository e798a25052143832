"""Stored hidden states across an interruption: they are gone with the process, what they were of is
in its checkpoint.

They may be of an earlier selection, and of a boundary below the one that the present selection
would begin with. Both are kept: blocks between the two keep their dropout, and rows come from the
batches that they came from, for the same bits.
"""

from __future__ import annotations

from core.training.checkpoint import TrainState
from core.training.job import FitJob
from core.training.step import LossStep, Stored


def note_stored(step: LossStep, state: TrainState) -> None:
    """For a checkpoint: what ``step`` keeps now."""
    stored = step.stored
    state.stored_boundary = None if stored is None else stored.boundary
    state.stored_since = None if stored is None else stored.since


def refill(job: FitJob, step: LossStep, state: TrainState, *, is_done: bool) -> None:
    """Store again what was stored at ``state``, in the order of the first time, and account for it.

    Args:
        step: of the model, whose weights and flags are those of ``state``.
        is_done: no further pass will be made, so that nothing need be stored.
    """
    if is_done:
        return
    assert state.selected_at is not None, "tensors are selected"
    since = state.selected_at
    if state.stored_boundary is not None and state.stored_since is not None:
        since = state.stored_since
        step.take_up(Stored(boundary=state.stored_boundary, since=since))
    # after two epochs all has been seen once at least
    end = min(state.step, since + 2 * job.steps_per_epoch)
    for done in range(since, end):
        state.flops += step.refill(step.inputs(batch) for batch in job.batches(done))
        if (done + 1) % job.steps_per_epoch == 0:
            state.evaluation_flops += step.refill(step.inputs(b) for b in job.validation)
