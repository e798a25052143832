"""Sums over many jobs against brute force over their samples, on both databases."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

import pytest

from core.jobs import service, store
from core.jobs.records import EnergyRecord
from tests.integration.jobs.engine import at, sample

#: of 5 s samples at 0, 5, 10, 15: the second and the last are cut
START, END = at(7), at(17.5)


def spend(engine, tenant=None, **changes):
    job = engine.submit(tenant=tenant) if tenant else engine.submit()
    claim = engine.running(job_id=job.id)
    rows = [sample(5 * n, 10.0 + n, **changes) for n in range(4)]
    engine.do(service.record_energy, claim, rows, timeless=True)
    return job, claim, rows


def test_sums_by_brute_force(engine):
    fr = {"intensity_g_per_kwh": 50.0, "intensity_kind": "average", "zone": "FR"}
    jobs = [spend(engine, **fr), spend(engine, **fr, device="cpu", method="estimate")]
    jobs.append(spend(engine))
    whole = defaultdict(float)
    inside = defaultdict(float)
    weighted = defaultdict(float)
    for job, _, rows in jobs:
        for row in rows:
            key = (job.id, row.zone, row.method, row.intensity_kind)
            whole[key] += row.energy_j
            if row.started_at >= START and row.ended_at <= END:
                inside[key] += row.energy_j
                weighted[key] += row.energy_j * (row.intensity_g_per_kwh or 0.0)
    found = engine.read(store.list_spent, None, start=START, end=END)
    assert len(found) == 3
    for part in found:
        key = (part.job_id, part.zone, part.method, part.intensity_kind)
        assert part.all_time_j == pytest.approx(whole[key])
        assert part.energy_j == pytest.approx(inside[key])
        assert part.weighted == pytest.approx(weighted[key])
    cut = engine.read(store.list_cut_samples, None, start=START, end=END)
    assert {(job_id, row.started_at) for job_id, row in cut} == {
        (job.id, rows[n].started_at) for job, _, rows in jobs for n in (1, 3)
    }
    assert all(isinstance(row, EnergyRecord) and row.attempt == 1 for _, row in cut)


def test_one_tenants_or_all(engine):
    mine, _, _ = spend(engine)
    theirs, _, _ = spend(engine, tenant="rival")
    span = {"start": at(0), "end": at(20)}
    assert [j.id for j in engine.read(store.list_jobs_at_work, mine.tenant, **span)] == [mine.id]
    assert {p.job_id for p in engine.read(store.list_spent, "rival", **span)} == {theirs.id}
    everybody = engine.read(store.list_jobs_at_work, None, **span)
    assert {(j.id, j.tenant) for j in everybody} == {
        (mine.id, mine.tenant),
        (theirs.id, "rival"),
    }
    assert {j.spec.training_file for j in everybody} == {
        mine.spec.training_file,
        theirs.spec.training_file,
    }
    assert engine.read(store.list_cut_samples, "nobody", **span) == ()


def test_jobs_before_and_after_the_range_are_not_looked_at(engine):
    job, claim, _ = spend(engine)
    engine.wait(30)
    done = engine.succeed(claim)
    second = timedelta(seconds=1)
    finished, created = done.finished_at, job.created_at
    for start, end, found in (
        (created - 2 * second, created, 0),
        (created - second, created + second, 1),
        (finished, finished + second, 0),
        (finished - second / 2, finished + second, 1),
    ):
        assert len(engine.read(store.list_jobs_at_work, None, start=start, end=end)) == found


def test_events_by_what_their_data_says(engine):
    job = engine.submit()
    claim = engine.claim()
    for data in ({"kind": "selection", "rho": 0.5}, {"kind": "meter"}, None, {"rho": 1}):
        engine.do(service.append_event, claim, level="info", message="m", type="message", data=data)
    [told] = engine.read(store.list_remarks, job.id, "selection")
    assert told.data == {"kind": "selection", "rho": 0.5}
    assert engine.read(store.list_remarks, job.id, "nothing's\"kind") == ()
