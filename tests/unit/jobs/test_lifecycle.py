"""The graph as data, judged against the contract's picture of it."""

from __future__ import annotations

import pytest

from core.jobs import lifecycle
from core.jobs.lifecycle import (
    ACTIVE,
    BACKOFF_CAP_S,
    CANCELLED,
    EDGES,
    PAUSED,
    REQUEUED,
    REVALIDATED,
    TERMINAL,
    TRANSIENT_LIMIT,
    Status,
    backoff_s,
    green_state,
    settle,
)

S = Status
# every arrow of the contract, section 7, and those of our own (a queued job may fail; lost and
# released jobs go around once more)
ARROWS = {
    (S.VALIDATING_FILES, S.QUEUED),
    (S.VALIDATING_FILES, S.VALIDATING_FILES),
    (S.VALIDATING_FILES, S.FAILED),
    (S.VALIDATING_FILES, S.CANCELLED),
    (S.QUEUED, S.RUNNING),
    (S.QUEUED, S.QUEUED),
    (S.QUEUED, S.PAUSED),
    (S.QUEUED, S.FAILED),
    (S.QUEUED, S.CANCELLED),
    (S.RUNNING, S.SUCCEEDED),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.CANCELLED),
    (S.RUNNING, S.PAUSED),
    (S.RUNNING, S.QUEUED),
    (S.PAUSED, S.QUEUED),
    (S.PAUSED, S.CANCELLED),
}


def test_the_arrows_are_those_of_the_contract():
    assert {(source, edge.target) for edge in EDGES for source in edge.sources} == ARROWS


def test_terminal_states_are_never_left_and_all_others_can_end():
    assert all(not edge.sources & TERMINAL for edge in EDGES)
    assert set(Status) == TERMINAL | ACTIVE
    assert CANCELLED.sources == ACTIVE


@pytest.mark.parametrize(
    ("status", "cancel", "pause", "edge"),
    [
        (S.RUNNING, False, False, REQUEUED),
        (S.QUEUED, False, False, REQUEUED),
        (S.VALIDATING_FILES, False, False, REVALIDATED),
        (S.RUNNING, False, True, PAUSED),
        (S.QUEUED, False, True, PAUSED),
        (S.RUNNING, True, True, CANCELLED),
        (S.VALIDATING_FILES, True, False, CANCELLED),
    ],
)
def test_orders_decide_what_a_lost_job_becomes(status, cancel, pause, edge):
    assert settle(status, cancel=cancel, pause=pause) is edge
    assert status in edge.sources


@pytest.mark.parametrize(
    ("status", "flags", "state"),
    [
        (S.SUCCEEDED, {"cancel"}, "done"),
        (S.CANCELLED, {"cancel"}, "done"),
        (S.RUNNING, {"owned"}, "running"),
        (S.RUNNING, {"owned", "cancel", "pause"}, "cancelling"),
        (S.RUNNING, {"owned", "pause"}, "pausing"),
        (S.QUEUED, {"owned", "pause"}, "pausing"),
        (S.PAUSED, set(), "paused"),
        (S.QUEUED, {"held"}, "held"),
        (S.QUEUED, set(), "planned"),
        (S.VALIDATING_FILES, {"owned"}, "running"),
    ],
)
def test_green_state_says_what_the_status_cannot(status, flags, state):
    named = {name: name in flags for name in ("cancel", "pause", "owned", "held")}
    assert green_state(status, **named) == state


def test_backoff_doubles_from_a_second_to_its_cap():
    waits = [backoff_s(n) for n in range(1, 400)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_CAP_S


def test_a_service_may_stay_away_for_an_hour():
    assert 3600 <= sum(backoff_s(n) for n in range(1, TRANSIENT_LIMIT)) <= 2 * 3600


def test_the_events_that_clients_search_for_are_openais():
    assert lifecycle.VALIDATED.message == "Files validated, moving job to queued state"
    assert lifecycle.STARTED.message == "Fine-tuning job started"
    assert lifecycle.SUCCEEDED.message == "The job has successfully completed"
    assert lifecycle.CREATED_MESSAGE.startswith("Created fine-tuning job")
    assert lifecycle.VALIDATING_MESSAGE.startswith("Validating training file")
    assert lifecycle.MODEL_MESSAGE.startswith("New fine-tuned model created")
    assert lifecycle.CHECKPOINT_MESSAGE.format(step=30) == "Checkpoint created at step 30"
    step = lifecycle.STEP_MESSAGE.format(step=1, total_steps=90, loss=0.9612)
    assert step == "Step 1/90: training loss=0.96"
