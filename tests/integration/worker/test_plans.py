"""Jobs with a plan, through the real runner: held, taken up again, suspended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.carbon.quality import LATEST, expected_quality, told_curves
from core.carbon.trace import TraceSignal
from core.jobs import service, store
from core.jobs.lifecycle import Status
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.planned import HOUR, Make, Planned
from worker.pilot import LADDER_STEPS


def test_a_job_waits_for_its_green_hour(make: Make, chat_lines: Callable[[int], bytes]) -> None:
    desk = make("ddcd", step_s=60)
    job_id = desk.submit(
        chat_lines(24), green={"schedule": "green", "deadline": desk.start + 5 * HOUR}
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.green_state) == (Status.QUEUED, "held")
    assert job.not_before is not None
    assert job.not_before == job.planned_start
    # cells of the planner are quarters of an hour
    assert HOUR * 2 <= job.not_before - desk.start <= HOUR * 2.25
    assert job.hold_reason == "40 g/kWh expected in FR then, 600 now"
    assert job.planned_finish is not None
    assert job.energy_j > 0, "looking at the data was not free"
    assert desk.sweep() == []
    desk.clock.now = job.not_before
    assert desk.sweep() == [job_id]
    job = desk.carry_out(job_id)
    assert (job.status, job.hold_reason) == (Status.SUCCEEDED, None)
    assert desk.kinds(job_id).count("carbon_plan") == 2
    messages = [event.message for event in desk.events(job_id)]
    assert sum(m.startswith("Holding the job until") for m in messages) == 1


def test_suspended_and_resumed_equals_uninterrupted_bit_for_bit(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    lines = chat_lines(40)
    desk = make("cdcdcd", step_s=900)  # ten steps of a quarter of an hour: three green hours
    desk.know_cost(s_per_token=900 / _tokens_per_step(desk, lines))
    wishes = {"schedule": "green", "deadline": desk.start + 8 * HOUR}
    job_id = desk.submit(lines, green=wishes)
    job = desk.carry_out(job_id)
    stops = []
    while job.status is Status.QUEUED:
        stops.append((job.progress.step, job.not_before))
        assert job.green_state == "held"
        desk.clock.now = job.not_before
        job = desk.carry_out(job_id)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert [step for step, _ in stops] == [4, 8]
    for (_, until), hour in zip(stops, (2, 4), strict=True):
        assert HOUR * hour <= until - desk.start <= HOUR * (hour + 0.25)
    assert desk.clock.now <= desk.start + 8 * HOUR

    plain = make("c", step_s=1)
    done = plain.carry_out(plain.submit(lines))
    mine, theirs = desk.weights(job, tmp_path / "a"), plain.weights(done, tmp_path / "b")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def _tokens_per_step(desk: Planned, lines: bytes) -> float:
    """As the runner counts them: of a job on the same file."""
    done = desk.carry_out(desk.submit(lines))
    assert done.progress.total_steps is not None
    desk.clock.now = desk.start
    return done.progress.trained_tokens / done.progress.total_steps


def test_an_unreachable_deadline_is_told_before_training_and_the_job_goes_on(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddddd", step_s=1)
    desk.know_cost(s_per_token=4.0)
    job_id = desk.submit(chat_lines(24), green={"deadline": desk.start + HOUR})
    job = desk.carry_out(job_id)
    assert job.status is Status.SUCCEEDED
    told = [e for e in desk.events(job_id) if (e.data or {}).get("kind") == "deadline_unreachable"]
    assert len(told) == 1
    assert told[0].data is not None
    assert told[0].data["step"] == 0
    kinds = [offer["kind"] for offer in told[0].data["offers"]]
    assert kinds[:2] == ["fewer_steps", "more_time"]


def test_a_held_job_is_cancelled_at_once(make: Make, chat_lines: Callable[[int], bytes]) -> None:
    desk = make("ddc", step_s=60)
    job_id = desk.submit(chat_lines(24), green={"earliest_start": desk.start + HOUR})
    assert desk.carry_out(job_id).green_state == "held"
    with desk.database.transaction() as session:
        job = service.cancel(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
    assert (job.status, job.hold_reason) == (Status.CANCELLED, None)


def test_a_cancel_that_comes_first_beats_the_hold(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddc", step_s=60)
    job_id = desk.submit(chat_lines(24), green={"schedule": "green"})
    claim = desk.claim(job_id)
    with desk.database.transaction() as session:
        service.validated(session, job_id, claim.fence, now=desk.clock.now)
        service.cancel(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
        job = service.hold(
            session,
            job_id,
            claim.fence,
            until=desk.start + HOUR,
            reason="greener",
            planned_finish=None,
            now=desk.clock.now,
        )
    assert (job.status, job.not_before) == (Status.CANCELLED, None)


def test_without_a_signal_the_hold_ends_in_time(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddcd", step_s=60)
    deadline = desk.start + 5 * HOUR
    job_id = desk.submit(chat_lines(24), green={"schedule": "green", "deadline": deadline})
    job = desk.carry_out(job_id)
    assert job.not_before is not None
    desk.world = replace(desk.world, signal=TraceSignal({}))
    desk.clock.now = job.not_before
    assert desk.sweep() == [job_id]
    job = desk.carry_out(job_id)
    assert job.status is Status.SUCCEEDED
    assert desk.clock.now < deadline
    assert "signal" in desk.kinds(job_id)


def test_a_free_rho_on_an_unknown_machine_climbs_the_ladder_and_is_planned_in_a_budget(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("cccc", step_s=1)
    wishes = {"energy_budget_wh": 1e6}
    job_id = desk.submit(chat_lines(240), rho="auto", n_epochs=2, green=wishes)
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 120)
    chosen = [e.data for e in desk.events(job_id) if (e.data or {}).get("kind") == "selection"]
    assert [data["step"] for data in chosen if data] == [0, LADDER_STEPS, 60]
    assert chosen[0] is not None
    assert chosen[0]["rho"] == 1.0
    with desk.database.read() as session:
        costs = store.list_costs(session, "tiny")
    assert costs, "what was measured is known to the next job"
    assert all(cost.s_per_token > 0 and cost.j_per_token > 0 for cost in costs)


def test_plans_expect_the_quality_that_selections_measured(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    """The default before the first; after a pause what was told before it; the next job starts with
    what this one measured.
    """
    desk = make("cdcdcdcd", step_s=900)
    lines = chat_lines(40)
    desk.know_cost(s_per_token=900 / _tokens_per_step(desk, lines))
    wishes = {"schedule": "green", "deadline": desk.start + 8 * HOUR}
    job_id = desk.submit(lines, green=wishes, model="tiny")
    job = desk.carry_out(job_id)
    n_pauses = 0
    while job.status is Status.QUEUED:
        n_pauses += 1
        desk.clock.now = job.not_before
        job = desk.carry_out(job_id)
    assert (job.status, n_pauses >= 1) == (Status.SUCCEEDED, True)

    told = [e.data for e in desk.events(job_id) if e.data and "kind" in e.data]
    curves = [data["quality_curve"] for data in told if data["kind"] == "selection"]
    plans = [data for data in told if data["kind"] == "carbon_plan"]
    assert all(curves)
    # the job before it, which counted the tokens, has measured the same model
    assert plans[0]["quality"]["basis"] == "stored"
    assert {data["quality"]["basis"] for data in plans[1:]} == {"measured"}
    n_known = 0
    for data in told:
        if data["kind"] == "selection":
            n_known += 1
        if data["kind"] == "carbon_plan" and data["quality"]["basis"] == "measured":
            assert data["quality"]["n_selections"] == min(n_known, LATEST)
            known = expected_quality(told_curves(t for t in told[: told.index(data)]))
            assert data["quality"] == known.to_dict()
            assert data["plan"]["quality"] == pytest.approx(known.curve.quality(0.7))
    with desk.database.read() as session:
        later = store.list_selections_on(session, TENANT, "tiny")
        others = store.list_selections_on(session, "rival", "tiny")
    assert [event.data for event in later] == [d for d in told if d["kind"] == "selection"]
    assert others == ()
