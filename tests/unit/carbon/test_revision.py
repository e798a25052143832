"""Accounted again: what was a guess follows the grid, once; what was told stays."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.account import report_emissions
from core.carbon.crosscheck import check_delivered
from core.carbon.energy import EnergySample, MeteredEnergy, Original, attribute
from core.carbon.evidence import Evidence
from core.carbon.intensity import Intensity
from core.carbon.report import to_dict
from core.carbon.revision import told_since
from core.carbon.verify import verify

T0 = datetime(2026, 5, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)


def slot(value, begin=0.0, end=1.0, **options):
    fields = {"zone": "DE", "source": "the provider", **options}
    return Intensity(
        value_g_per_kwh=value, moment=T0 + begin * HOUR, until=T0 + end * HOUR, **fields
    )


def row(begin=0.25, end=0.75, intensity=300.0, *, source="the provider", estimated=True):
    return MeteredEnergy(
        device="cpu",
        started_at=T0 + begin * HOUR,
        ended_at=T0 + end * HOUR,
        energy_j=3.6e6,
        method="rapl",
        intensity_g_per_kwh=intensity,
        intensity_kind=None if intensity is None else "average",
        intensity_source=None if intensity is None else source,
        intensity_is_estimated=None if intensity is None else estimated,
        zone="DE",
        attempt=1,
    )


def test_an_estimate_gives_way_to_what_was_measured():
    told = told_since(row(), [slot(280.5)])
    assert (told.intensity_g_per_kwh, told.intensity_is_estimated) == (280.5, False)
    assert told.intensity_source == "the provider"


def test_energy_without_an_intensity_gets_one():
    assert told_since(row(intensity=None), [slot(280.5)]).intensity_g_per_kwh == 280.5


@pytest.mark.parametrize(
    ("stored", "slots"),
    [
        # it was measured in the first place
        (row(estimated=False), [slot(280.5)]),
        # nothing new
        (row(), [slot(290.0, is_estimated=True)]),
        (row(), [slot(290.0, is_forecast=True)]),
        (row(), []),
        # a part of its time is not known yet
        (row(), [slot(280.5, 0, 0.5)]),
        (row(), [slot(280.5, 0, 0.5), slot(200, 0.5, 1, is_estimated=True)]),
        # a stand-in is no better than an estimate
        (row(), [slot(280.5, source="the provider, last known value (of 08:00 UTC)")]),
        (row(), [slot(280.5, 0, 0.5), slot(200, 0.5, 1, kind="marginal")]),
    ],
)
def test_what_is_not_better_changes_nothing(stored, slots):
    assert told_since(stored, slots) is None


def test_a_stand_in_gives_way_to_the_providers_own_estimate():
    stand_in = row(source="static average: codecarbon")
    told = told_since(stand_in, [slot(280.5, is_estimated=True)])
    assert (told.intensity_g_per_kwh, told.intensity_is_estimated) == (280.5, True)
    again = replace(
        stand_in,
        intensity_g_per_kwh=told.intensity_g_per_kwh,
        intensity_source=told.intensity_source,
    )
    assert told_since(again, [slot(280.5, is_estimated=True)]) is None


@given(st.floats(0.05, 0.95), st.integers(0, 900), st.integers(0, 900))
def test_over_a_change_the_mean_gives_the_grams_of_both_parts(at, first, second):
    slots = [slot(first, 0, at), slot(second, at, 1)]
    whole = row(0, 1)
    told = told_since(whole, slots)
    sample = EnergySample(
        started_at=T0, ended_at=T0 + HOUR, device="cpu", energy_j=3.6e6, method="rapl"
    )
    grams = sum(p.energy_j / 3.6e6 * p.intensity_g_per_kwh for p in attribute([sample], slots))
    assert told.intensity_g_per_kwh == pytest.approx(grams)


def test_a_forecast_is_stored_as_a_guess():
    sample = EnergySample(
        started_at=T0, ended_at=T0 + HOUR, device="cpu", energy_j=1.0, method="rapl"
    )
    [kept] = attribute([sample], [slot(100, is_forecast=True)])
    assert kept.intensity_is_estimated


def test_the_report_tells_how_many_were_revised_and_verifies():
    first = Original(intensity_g_per_kwh=300.0, intensity_kind="average")
    rows = [
        replace(row(0, 1, 250.0, estimated=False), revised_from=first),
        replace(row(1, 2, 200.0, estimated=False), revised_from=Original()),
        row(2, 3, 100.0, estimated=False),
    ]
    body = to_dict(report_emissions(job_id="j", zone="DE", rows=rows, submitted_at=T0, pue=1.5))
    # 1.5 kWh each
    assert body["co2e_g"] == pytest.approx(1.5 * 550)
    assert body["revised"] == {"intervals": 2, "co2e_g_before": pytest.approx(1.5 * 400)}
    assert any("2 intervals were revised" in note for note in body["notes"])
    evidence = Evidence(samples=tuple(rows))
    assert all(check.agrees for check in verify(body, evidence))
    assert Evidence.from_dict(evidence.to_dict()) == evidence
    forged = body | {"revised": {"intervals": 1, "co2e_g_before": body["co2e_g"]}}
    wrong = {check.figure for check in verify(forged, evidence) if not check.agrees}
    assert wrong == {"revised.intervals", "revised.co2e_g_before"}


def test_a_file_delivered_before_a_revision_still_has_its_energy_in_common():
    before = [row(0, 1, 300.0), row(1, 2, 200.0, estimated=False)]
    delivered = to_dict(report_emissions(job_id="j", zone="DE", rows=before, submitted_at=T0))
    first = Original(intensity_g_per_kwh=300.0, intensity_kind="average")
    after = (replace(before[0], intensity_g_per_kwh=250.0, revised_from=first), before[1])
    found = check_delivered(delivered, Evidence(samples=after))
    assert {c.figure for c in found} >= {"delivered.energy_wh.total", "delivered.measured_share"}
    assert all(check.agrees for check in found)
    changed = (after[0], replace(after[1], energy_j=1.01 * after[1].energy_j))
    wrong = {
        c.figure for c in check_delivered(delivered, Evidence(samples=changed)) if not c.agrees
    }
    assert "delivered.energy_wh.total" in wrong
    unrevised = check_delivered(delivered, Evidence(samples=tuple(before)))
    assert any(c.figure.startswith("delivered.intervals.") for c in unrevised)
    assert all(check.agrees for check in unrevised)
