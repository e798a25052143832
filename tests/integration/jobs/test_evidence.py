"""Energy samples and checkpoints: written once, kept for good."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from core.errors import InvalidInput, LeaseLost
from core.jobs import service, store
from core.jobs.lifecycle import Release
from core.jobs.records import FullCostRecord, HeldOutRecord, OverheadRecord
from core.units import JOULES_PER_KWH
from tests.integration.jobs.engine import LEASE_S, checkpoint, sample
from tests.integration.jobs.test_flow import job_of


def record(engine, claim, *samples):
    engine.do(service.record_energy, claim, list(samples), timeless=True)


def test_samples_come_back_as_they_were_written(engine):
    job = engine.submit()
    claim = engine.claim()
    full = sample(
        0,
        intensity_g_per_kwh=56.5,
        intensity_kind="average",
        intensity_source="static",
        intensity_is_estimated=False,
        zone="FR",
    )
    bare = sample(5, device="cpu", method="estimate")
    record(engine, claim, bare, full)
    assert engine.read(store.list_energy, job.id) == (
        replace(full, attempt=1),
        replace(bare, attempt=1),
    )


def test_kinds_of_intensity_are_told_apart(engine):
    job = engine.submit()
    claim = engine.claim()
    assert job.spent_by_kind == ()
    average = {"intensity_g_per_kwh": 100.0, "intensity_kind": "average"}
    marginal = {"intensity_g_per_kwh": 900.0, "intensity_kind": "marginal"}
    record(engine, claim, sample(0, 10.0, **average), sample(5, 4.0, **marginal), sample(10, 1.0))
    # once more, with news
    record(engine, claim, sample(0, 10.0, **average), sample(15, 20.0, **average))
    spent = job_of(engine, job.id).spent_by_kind
    assert [(part.kind, part.energy_j) for part in spent] == [("average", 30.0), ("marginal", 4.0)]
    assert [part.emissions_g * JOULES_PER_KWH for part in spent] == pytest.approx([3000, 3600])


def test_overheads_attribution_and_full_cost_are_kept(engine):
    job = engine.submit()
    assert (job.full_cost, engine.read(store.list_overheads, job.id)) == (None, ())
    first = engine.claim()
    at = sample(0).started_at
    times = [
        OverheadRecord(kind=kind, started_at=at, ended_at=at + timedelta(seconds=length))
        for kind, length in (("checkpoint", 1), ("selection", 2))
    ]
    for overhead in [*times, times[0]]:
        engine.do(service.record_overhead, first, overhead, timeless=True)
    engine.do(service.record_attribution, first, "process", timeless=True)
    cost = FullCostRecord(s_per_token=0.1, j_per_token=2.5, measured_by="machine")
    engine.do(service.set_full_cost, first, cost, timeless=True)
    engine.do(service.release, first, reason=Release.SHUTDOWN, max_attempts=9)
    with pytest.raises(LeaseLost):
        engine.do(service.record_overhead, first, times[0], timeless=True)
    engine.claim()
    assert list(engine.read(store.list_overheads, job.id)) == times
    attempts = engine.read(store.list_attempts, job.id)
    assert [attempt.attribution for attempt in attempts] == ["process", None]
    assert job_of(engine, job.id).full_cost == cost


def test_held_out_figures_are_kept_and_only_the_owner_writes_them(engine):
    job = engine.submit()
    assert job.held_out is None
    first = engine.claim()
    before = HeldOutRecord(first_validation_loss=2.5, first_scores={"rougeL": 1.0, "f1": 0.0})
    engine.do(service.record_held_out, first, before, timeless=True)
    engine.do(service.release, first, reason=Release.SHUTDOWN, max_attempts=9)
    second = engine.claim()
    assert second.job.held_out == before
    with pytest.raises(LeaseLost):
        engine.do(service.record_held_out, first, HeldOutRecord(), timeless=True)
    # a number that JSON does not have is not known
    after = replace(before, validation_loss=math.inf, scores={"rougeL": 7.5, "f1": 3.0})
    engine.do(service.record_held_out, second, after, timeless=True)
    assert job_of(engine, job.id).held_out == replace(after, validation_loss=None)


def test_totals_add_up_over_all_attempts_and_never_shrink(engine):
    job = engine.submit()
    first = engine.claim()
    record(engine, first, sample(0, 10.0, intensity_g_per_kwh=100.0), sample(0, 5.0, device="cpu"))
    engine.do(service.release, first, reason=Release.SHUTDOWN, max_attempts=9)
    second = engine.claim()
    # the same window on the same device, measured by another attempt, is other energy
    record(engine, second, sample(0, 7.0, intensity_g_per_kwh=200.0))
    engine.ask(service.cancel, job.id)
    record(engine, second, sample(5, 1.0))
    engine.do(service.cancelled, second)
    last = job_of(engine, job.id)
    assert last.energy_j == 23.0
    grams = (10.0 * 100 + 7.0 * 200) / JOULES_PER_KWH
    assert last.emissions_g == pytest.approx(grams, rel=1e-12)
    attempts = engine.read(store.list_attempts, job.id)
    assert [attempt.energy_j for attempt in attempts] == [15.0, 8.0]
    assert sum(attempt.emissions_g for attempt in attempts) == pytest.approx(grams, rel=1e-12)
    assert sum(s.energy_j for s in engine.read(store.list_energy, job.id)) == last.energy_j


def test_merged_samples_tell_the_same_sums_by_device_and_grid(engine):
    job = engine.submit()
    claim = engine.claim()
    grids = [{"intensity_g_per_kwh": 50.0, "zone": "FR"}, {}]
    record(
        engine,
        claim,
        *(
            sample(5 * n, n + 0.5, device=device, **grids[n // 10])
            for n in range(20)
            for device in ("gpu:0", "cpu")
        ),
    )
    merged = engine.read(store.list_energy_merged, job.id)
    assert len(merged) == 4
    assert sum(one.energy_j for one in merged) == job_of(engine, job.id).energy_j == 400.0
    first, last = merged[0], merged[-1]
    assert (first.started_at, first.ended_at) == (sample(0).started_at, sample(45).ended_at)
    assert (first.energy_j, first.intensity_g_per_kwh, first.zone) == (50.0, 50.0, "FR")
    assert (last.energy_j, last.intensity_g_per_kwh, last.zone) == (150.0, None, None)


def test_a_window_written_again_changes_nothing(engine):
    job = engine.submit()
    claim = engine.claim()
    record(engine, claim, sample(0), sample(0), sample(5))
    before = (job_of(engine, job.id), engine.read(store.list_energy, job.id))
    record(engine, claim, sample(5), sample(0, 999.0))
    record(engine, claim)
    assert (job_of(engine, job.id), engine.read(store.list_energy, job.id)) == before
    assert before[0].energy_j == 20.0


def test_a_long_outage_is_written_in_one_go(engine):
    job = engine.submit()
    claim = engine.claim()
    record(engine, claim, *(sample(5 * n, 1.0) for n in range(2500)))
    assert job_of(engine, job.id).energy_j == 2500.0


@pytest.mark.parametrize(
    "changes",
    [
        {"energy_j": -1.0},
        {"energy_j": math.nan},
        {"energy_j": math.inf},
        {"intensity_g_per_kwh": math.nan},
        {"intensity_g_per_kwh": -5.0},
        {"ended_at": sample(0).started_at - timedelta(seconds=1)},
    ],
)
def test_what_no_meter_can_measure_is_refused_whole(engine, changes):
    job = engine.submit()
    claim = engine.claim()
    with pytest.raises(InvalidInput):
        record(engine, claim, sample(5), replace(sample(0), **changes))
    assert engine.read(store.list_energy, job.id) == ()
    assert job_of(engine, job.id).energy_j == 0.0


def test_a_stale_worker_adds_no_energy(engine):
    job = engine.submit()
    old = engine.claim()
    engine.wait(LEASE_S)
    engine.claim("w2")
    with pytest.raises(LeaseLost):
        record(engine, old, sample(0))
    assert job_of(engine, job.id).energy_j == 0.0


def test_a_rewritten_checkpoint_keeps_its_name_and_takes_the_new_files(engine):
    job = engine.submit()
    old = engine.running()
    first = engine.do(service.record_checkpoint, old, checkpoint(3))
    assert engine.do(service.record_checkpoint, old, checkpoint(3)) == first
    engine.wait(LEASE_S)
    new = engine.running("w2")
    again = replace(checkpoint(3), prefix="jobs/x/checkpoints/3-2", metrics={"train_loss": 1.0})
    second = engine.do(service.record_checkpoint, new, again)
    assert second == replace(
        first,
        created_at=engine.now,
        attempt=2,
        prefix="jobs/x/checkpoints/3-2",
        metrics={"train_loss": 1.0},
    )
    assert engine.read(store.list_checkpoints, "acme", job.id).items == (second,)
    engine.wait(LEASE_S)
    assert engine.claim("w3").resume == second
