"""Joules x intensity: hand counts, exact splits, and a report that its own samples bear out."""

import csv
import dataclasses
import io
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.account import (
    Attempt,
    Embodied,
    Overhead,
    baseline,
    calibrated_effort,
    full_effort,
    report_emissions,
)
from core.carbon.coverage import uncovered
from core.carbon.energy import EnergySample, MeteredEnergy, MeterGap, attribute
from core.carbon.intensity import Intensity
from core.carbon.page import to_html
from core.carbon.report import CSV_COLUMNS, intervals, to_csv, to_dict
from core.carbon.verify import verify

T0 = datetime(2026, 5, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
KWH_J = 3_600_000.0


def at(hours: float) -> datetime:
    return T0 + hours * HOUR


def slot(value, begin, end, kind="average"):
    return Intensity(
        value_g_per_kwh=value, zone="XX", kind=kind, source="s", moment=at(begin), until=at(end)
    )


def sample(begin, end, energy_j, device="cpu", method="rapl"):
    return EnergySample(
        started_at=at(begin), ended_at=at(end), device=device, energy_j=energy_j, method=method
    )


def row(begin, end, kwh, intensity=None, *, device="cpu", method="rapl", kind="average", attempt=1):
    return MeteredEnergy(
        device=device,
        started_at=at(begin),
        ended_at=at(end),
        energy_j=kwh * KWH_J,
        method=method,
        intensity_g_per_kwh=intensity,
        intensity_kind=None if intensity is None else kind,
        intensity_source=None if intensity is None else "test",
        intensity_is_estimated=None if intensity is None else False,
        zone="XX",
        attempt=attempt,
    )


def report(rows, **options):
    return report_emissions(job_id="ftjob-1", zone="XX", rows=rows, submitted_at=T0, **options)


def test_a_sample_over_a_change_of_intensity_is_cut_there():
    pieces = attribute([sample(0.5, 1.5, 100.0)], [slot(200, 0, 1), slot(400, 1, 2)], attempt=3)
    assert [(p.energy_j, p.intensity_g_per_kwh, p.attempt) for p in pieces] == [
        (50.0, 200, 3),
        (50.0, 400, 3),
    ]
    assert pieces[0].ended_at == pieces[1].started_at == at(1)


def test_uncovered_time_keeps_its_energy_and_has_no_grams():
    pieces = attribute([sample(0, 3, 90.0)], [slot(200, 1, 2)])
    assert [(p.energy_j, p.intensity_g_per_kwh) for p in pieces] == [
        (pytest.approx(30), None),
        (pytest.approx(30), 200),
        (pytest.approx(30), None),
    ]
    told = report(pieces)
    assert told.unaccounted_j == pytest.approx(60)
    assert any("no usable intensity" in note for note in to_dict(told)["notes"])


@given(
    st.lists(st.floats(0.001, 5), min_size=1, max_size=6),
    st.floats(0, 3),
    st.floats(0.01, 9),
    st.floats(0, 1e9),
)
def test_cutting_conserves_energy_and_time(widths, begin, length, energy_j):
    edges = [0.0]
    for width in widths:
        edges.append(edges[-1] + width)
    slots = [slot(100 + i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
    pieces = attribute([sample(begin, begin + length, energy_j)], slots)
    assert sum(p.energy_j for p in pieces) == pytest.approx(energy_j)
    assert (pieces[0].started_at, pieces[-1].ended_at) == (at(begin), at(begin + length))


def test_totals_by_hand():
    rows = [
        row(0, 1, 1.0, 300, device="gpu", method="nvml_counter"),
        row(0, 1, 0.5, 300, method="estimate"),
        row(2, 3, 1.0, 100, device="gpu", method="nvml_counter", attempt=2),
    ]
    told = to_dict(report(rows, pue=1.2, trained_tokens=50_000))
    # 1.2 x (1.5 kWh x 300 + 1 kWh x 100)
    assert told["co2e_g"] == pytest.approx(660)
    assert told["energy_wh"] == {"gpu": 2000, "cpu": 500, "ram": 0, "pue": 500, "total": 3000}
    assert told["measured"] == {"gpu": "nvml_counter", "cpu": "estimate"}
    assert told["measured_share"] == pytest.approx(0.8)
    assert [(a["n"], a["co2e_g"]) for a in told["attempts"]] == [(1, 540), (2, 120)]
    assert told["intensity_g_per_kwh"]["mean"] == pytest.approx(220)
    # 480 measured +-5 %, 180 estimated within a factor of two
    assert told["co2e_g_range"]["low"] == pytest.approx(480 * 0.95 + 90)
    assert told["co2e_g_range"]["high"] == pytest.approx(480 * 1.05 + 360)
    assert told["sci"]["g_per_1k_trained_tokens"] == pytest.approx(13.2)
    assert told["co2_eq_emissions"]["emissions"] == pytest.approx(660)


def test_average_and_marginal_are_never_added():
    told = to_dict(report([row(0, 1, 2, 100), row(1, 2, 1, 900, kind="marginal")]))
    assert told["co2e_g"] == 200
    assert told["other_kinds"] == [{"name": "marginal", "energy_wh": 1000, "co2e_g": 900}]
    assert told["intensity_g_per_kwh"]["kind"] == "average"


def test_overhead_is_taken_by_time():
    selection = Overhead(kind="selection", started_at=at(0.25), ended_at=at(0.75))
    told = report([row(0, 1, 1, 200)], overheads=[selection])
    assert told.by_overhead[0].energy_j == pytest.approx(0.5 * KWH_J)
    assert told.by_overhead[0].emissions_g == pytest.approx(100)


def test_baseline_follows_the_hours_after_submission():
    effort = full_effort(energy_j=KWH_J, active_s=3600, spent_flops=1e15, full_flops=2e15)
    assert (effort.energy_j, effort.duration_s) == (2 * KWH_J, 7200)
    against = baseline(effort, submitted_at=T0, slots=[slot(300, 0, 1), slot(500, 1, 2)], pue=1.5)
    assert against.intensity_g_per_kwh == pytest.approx(400)
    assert against.emissions_g == pytest.approx(1.5 * 2 * 400)
    # where the record ends, the last value is held: (1 x 300 + 1 x 300) / 2
    short = baseline(effort, submitted_at=T0, slots=[slot(300, 0, 1)], pue=1.0)
    assert short.intensity_g_per_kwh == pytest.approx(300)


def test_savings_by_hand():
    """Full would have been 4 kWh at 500; the job did 45 % of the energy at rho .5, at 200 g/kWh."""
    effort = calibrated_effort(joules_per_step=4 * KWH_J / 100, s_per_step=60, steps=100)
    against = baseline(effort, submitted_at=T0, slots=[slot(500, 0, 24)], pue=1.0)
    savings = report([row(8, 9, 1.8, 200)], against=against, flops_share=0.5).savings
    assert savings.emissions_g == pytest.approx(2000 - 360)
    assert savings.rho_g == pytest.approx(2 * 500)
    assert savings.efficiency_g == pytest.approx(0.2 * 500)
    assert savings.shifting_g == pytest.approx(1.8 * 300)


@given(
    st.floats(0.01, 10),
    st.floats(0.01, 10),
    st.floats(0.34, 1),
    st.floats(1, 900),
    st.floats(1, 900),
    st.floats(1, 2),
)
def test_the_split_adds_up(actual_kwh, full_kwh, share, then, now, pue):
    effort = calibrated_effort(joules_per_step=full_kwh * KWH_J, s_per_step=3600, steps=1)
    against = baseline(effort, submitted_at=T0, slots=[slot(then, 0, 24)], pue=pue)
    told = report([row(5, 6, actual_kwh, now)], against=against, flops_share=share, pue=pue)
    parts = told.savings.rho_g + told.savings.shifting_g + told.savings.efficiency_g
    assert parts == pytest.approx(told.savings.emissions_g)
    assert told.savings.shifting_g == pytest.approx(
        actual_kwh * pue * (then - now), abs=1e-6 * max(then, now) * full_kwh * pue * 10
    )


def test_no_samples_is_a_report_too():
    told = to_dict(report([]))
    assert (told["co2e_g"], told["savings"], told["intensity_g_per_kwh"]["mean"]) == (0, None, None)
    json.dumps(told, allow_nan=False)
    assert wrong(told, []) == set()
    assert "<html" in to_html(report([]))


OVERHEADS = [
    Overhead(kind="selection", started_at=at(0.0101), ended_at=at(0.0233)),
    Overhead(kind="selection", started_at=at(0.5), ended_at=at(0.51)),
]


def full_report(count=1800):
    rows = [
        row(
            i / 720,
            (i + 1) / 720,
            0.0001 + i * 1e-7,
            200 + i // 100,
            device=device,
            attempt=1 + i // 900,
        )
        for i in range(count)
        for device in ("cpu", "gpu")
    ]
    effort = full_effort(energy_j=1e6, active_s=9000, spent_flops=1.0, full_flops=2.0)
    against = baseline(effort, submitted_at=T0, slots=[slot(333.3, 0, 24)], pue=1.13)
    return rows, report(
        rows,
        pue=1.13,
        against=against,
        flops_share=0.5,
        attempts=[Attempt(number=1, worker="w<1>", started_at=T0, ended_at=at(1), outcome="died")],
        overheads=OVERHEADS,
        trained_tokens=64_000,
        embodied=Embodied(g_per_hour=3.5, hours=2.5),
        gaps=[MeterGap(started_at=at(1), ended_at=at(2), devices=("gpu",), reason="bus")],
    )


def wrong(body, rows, overheads=()):
    return {check.figure for check in verify(body, rows, overheads) if not check.agrees}


def numbers(value, path=()):
    """Every number of the JSON with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif isinstance(value, float):
        yield path, value


def changed(body, path, value):
    copy = json.loads(json.dumps(body))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def test_a_report_is_borne_out_by_its_samples_and_a_forged_one_is_not():
    rows, told = full_report()
    body = json.loads(json.dumps(to_dict(told)))
    assert wrong(body, rows, OVERHEADS) == set()
    assert len(verify(body, rows, OVERHEADS)) > 600
    lost = wrong(body, rows[:-1], OVERHEADS)
    assert lost >= {"co2e_g", "devices.gpu.energy_wh", "sci.g_per_model", "energy_wh.gpu"}
    assert wrong(body, rows, ()) == {"overheads.selection.co2e_g", "overheads.selection.energy_wh"}


#: taken as stated: nothing that is stored makes them
AS_STATED = {"pue", "intensity_g_per_kwh", "basis", "duration_s"}


def test_no_figure_can_be_changed_unnoticed():
    rows, told = full_report(40)
    body = json.loads(json.dumps(to_dict(told)))
    body["intervals"] = body["intervals"][:3]
    seen = 0
    for path, value in numbers(body):
        if path[-1] in AS_STATED and path[0] in ("baseline", "intervals"):
            continue
        seen += 1
        # beyond what rounding of the baseline may amount to
        forged = changed(body, path, value + 2e-3)
        assert wrong(forged, rows, OVERHEADS), path
    assert seen > 35


def test_holes_in_the_record():
    minute, second = 1 / 60, 1 / 3600
    rows = [
        row(second, minute, 1),
        row(minute, 3 * minute, 1),
        row(second, minute, 1, device="ram"),
        row(2 * minute, 3 * minute, 1, device="ram"),
        row(60 * minute, 61 * minute, 1, attempt=2),
        row(60 * minute, 61 * minute, 1, device="ram", attempt=2),
    ]
    attempts = [
        Attempt(number=1, worker="w", started_at=at(0), ended_at=at(3 * minute + second / 2)),
        Attempt(number=2, worker="w", started_at=at(60 * minute), ended_at=at(62 * minute)),
        Attempt(number=3, worker="w", started_at=at(70 * minute), ended_at=at(71 * minute)),
        Attempt(number=4, worker="w", started_at=at(80 * minute)),
    ]
    found = [(g.started_at, g.ended_at, g.devices, g.reason) for g in uncovered(rows, attempts)]
    assert found == [
        (at(0), at(second), ("cpu", "ram"), "before the first sample"),
        (at(minute), at(2 * minute), ("ram",), "between samples"),
        (at(61 * minute), at(62 * minute), ("cpu", "ram"), "after the last sample"),
        (at(70 * minute), at(71 * minute), ("cpu", "ram"), "no samples"),
    ]
    assert uncovered(rows[:1], [Attempt(number=1, worker="w", started_at=at(0))])[0].devices == (
        "cpu",
    )


def test_long_jobs_are_merged_for_display_without_losing_energy():
    rows, _ = full_report()
    groups = intervals(rows, limit=500)
    assert len(groups) <= 500
    assert sum(r.energy_j for g in groups for r in g) == pytest.approx(
        sum(r.energy_j for r in rows)
    )
    assert all(len({(r.device, r.attempt, r.intensity_g_per_kwh) for r in g}) == 1 for g in groups)


def test_csv_has_codecarbons_columns_and_units():
    emissions_data = pytest.importorskip("codecarbon.output_methods.emissions_data").EmissionsData
    assert [f.name for f in dataclasses.fields(emissions_data)] == list(CSV_COLUMNS)
    rows = [row(0, 2, 1.0, 300, device="gpu"), row(0, 2, 0.5, 300), row(3, 4, 1, 100, attempt=2)]
    lines = list(csv.DictReader(io.StringIO(to_csv(report(rows, pue=2.0)))))
    assert [float(line["emissions"]) for line in lines] == pytest.approx([0.9, 0.2])
    assert float(lines[0]["gpu_energy"]) == pytest.approx(2.0)
    assert float(lines[0]["cpu_power"]) == pytest.approx(500)
    assert float(lines[0]["duration"]) == 7200


def test_the_page_is_self_contained_and_escapes_what_users_wrote():
    _, told = full_report()
    page = to_html(told, rho_history=[(T0, 0.5), (at(1), 0.4)], budget_g=150.0)
    assert "Plotly" in page
    assert "w&lt;1&gt;" in page
    assert "w<1>" not in page
    assert 'src="http' not in page
    assert page.count("class=chart") == 3
