"""A job given back on purpose: held as a column, taken up by whoever looks when it is due."""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.errors import LeaseLost
from core.jobs import service, store
from core.jobs.records import CostRecord
from tests.integration.jobs.engine import Engine, at, checkpoint, sample
from tests.integration.jobs.test_flow import job_of, messages, outcomes


def hold(engine: Engine, claim, seconds: float = 3600.0):
    return engine.do(
        service.hold,
        claim,
        until=engine.now + timedelta(seconds=seconds),
        reason="greener",
        planned_finish=engine.now + timedelta(seconds=2 * seconds),
    )


@pytest.mark.parametrize("stage", ["queued", "running"])
def test_a_held_job_is_nobodys_until_it_is_due(engine, stage):
    job = engine.submit()
    claim = engine.running() if stage == "running" else engine.claim()
    if stage == "queued":
        engine.do(service.validated, claim)
    held = hold(engine, claim)
    assert (held.status, held.green_state, held.hold_reason) == ("queued", "held", "greener")
    assert held.not_before == held.planned_start == at(3600)
    assert held.planned_finish == at(7200)
    assert held.worker is None
    assert messages(engine, job.id)[-1] == f"Holding the job until {at(3600).isoformat()}: greener"
    with pytest.raises(LeaseLost):
        engine.do(service.heartbeat, claim, lease_s=60)
    engine.wait(3599)
    assert engine.claim() is None
    assert engine.sweep() == []
    engine.wait(1)
    assert engine.sweep() == [job.id]
    again = engine.claim("w2")
    assert again is not None
    assert (again.fence, again.job.hold_reason, again.job.not_before) == (2, None, None)
    assert outcomes(engine, job.id) == ["held", None]


def test_a_hold_keeps_energy_checkpoints_and_counts(engine):
    engine.submit()
    claim = engine.running()
    engine.do(service.record_energy, claim, [sample(0)], timeless=True)
    engine.do(service.record_checkpoint, claim, checkpoint(7))
    held = hold(engine, claim)
    assert (held.energy_j, held.deaths, held.retries) == (10.0, 0, 0)
    engine.wait(3600)
    again = engine.claim()
    assert again is not None
    assert again.resume is not None
    assert again.resume.step == 7


def test_many_holds_never_make_a_poison_job(engine):
    job = engine.submit()
    for _ in range(12):
        hold(engine, engine.running())
        engine.wait(3600)
    assert job_of(engine, job.id).status == "queued"


def test_a_held_job_is_paused_and_resumed_without_its_hold(engine):
    job = engine.submit()
    hold(engine, engine.running())
    paused = engine.ask(service.pause, job.id)
    assert (paused.status, paused.hold_reason, paused.not_before) == ("paused", None, None)
    engine.ask(service.resume, job.id)
    assert engine.claim() is not None


@pytest.mark.parametrize(
    ("order", "status"), [(service.cancel, "cancelled"), (service.pause, "paused")]
)
@pytest.mark.parametrize("ending", ["hold", "budget"])
def test_an_order_that_came_first_is_carried_out_instead(engine, order, status, ending):
    job = engine.submit()
    claim = engine.running()
    engine.ask(order, job.id)
    if ending == "hold":
        last = hold(engine, claim)
    else:
        last = engine.do(service.pause_for_budget, claim, reason="The budget is spent.")
    assert (last.status, last.hold_reason, last.not_before) == (status, None, None)
    assert outcomes(engine, job.id) == [status]


def test_a_job_out_of_budget_waits_for_its_caller(engine):
    job = engine.submit()
    last = engine.do(service.pause_for_budget, engine.running(), reason="The budget is spent.")
    assert (last.status, last.green_state) == ("paused", "paused")
    assert engine.claim() is None
    assert messages(engine, job.id)[-1] == "Fine-tuning job paused: The budget is spent."


def test_costs_are_replaced_and_listed_latest_first(engine):
    def put(rho: float, s_per_token: float, hardware: str = "a") -> None:
        with engine.database.transaction() as session:
            cost = CostRecord(
                model="m",
                hardware=hardware,
                rho=rho,
                s_per_token=s_per_token,
                j_per_token=1.0,
                updated_at=engine.now,
            )
            store.put_cost(session, cost)
        engine.wait(1)

    put(0.501, 1.0)
    put(1.0, 2.0)
    put(0.7, 5.0, "b")
    put(0.499, 3.0)
    found = engine.read(store.list_costs, "m")
    assert [(c.hardware, c.rho, c.s_per_token) for c in found] == [
        ("a", 0.5, 3.0),
        ("b", 0.7, 5.0),
        ("a", 1.0, 2.0),
    ]
    assert engine.read(store.list_costs, "other") == ()
