"""Joules x intensity: hand counts, exact splits, baselines, and holes in the record."""

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.account import Attempt, Overhead
from core.carbon.baseline import baseline, calibrated_effort, modelled_effort
from core.carbon.compose import JobFacts, compose
from core.carbon.coverage import missing_s, uncovered
from core.carbon.energy import attribute
from core.carbon.report import to_dict
from tests.unit.carbon.rows import (
    CALIBRATED,
    KWH_J,
    T0,
    Cost,
    Grid,
    at,
    full_report,
    report,
    row,
    sample,
    slot,
)


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
    effort = modelled_effort(energy_j=KWH_J, active_s=3600, spent_flops=1e15, full_flops=2e15)
    assert (effort.energy_j, effort.duration_s) == (2 * KWH_J, 7200)
    # a quarter of the hour went into what costs full fine-tuning the same
    part = modelled_effort(
        energy_j=KWH_J, active_s=3600, spent_flops=1e15, full_flops=2e15, fixed_s=900
    )
    assert part.energy_j == pytest.approx(1.75 * KWH_J)
    assert (part.duration_s, part.fixed_j) == (6300, KWH_J / 4)
    assert (part.low_j, part.high_j) == (KWH_J, 2 * KWH_J)
    against = baseline(effort, submitted_at=T0, slots=[slot(300, 0, 1), slot(500, 1, 2)], pue=1.5)
    assert against.intensity_g_per_kwh == pytest.approx(400)
    assert against.emissions_g == pytest.approx(1.5 * 2 * 400)
    # where the record ends, the last value is held: (1 x 300 + 1 x 300) / 2
    short = baseline(effort, submitted_at=T0, slots=[slot(300, 0, 1)], pue=1.0)
    assert short.intensity_g_per_kwh == pytest.approx(300)


def test_what_does_not_go_with_flops_is_no_saving_and_no_loss():
    """1 kWh at rho .5, a quarter of it preparation: full would have taken 1.75 kWh."""
    effort = modelled_effort(
        energy_j=KWH_J, active_s=3600, spent_flops=1e15, full_flops=2e15, fixed_s=900
    )
    against = baseline(effort, submitted_at=T0, slots=[slot(400, 0, 24)], pue=1.0)
    savings = report([row(0, 1, 1, 400)], against=against, flops_share=0.5).savings
    assert savings.emissions_g == pytest.approx(300)
    assert savings.rho_g == pytest.approx(300)
    assert savings.efficiency_g == pytest.approx(0, abs=1e-9)
    assert savings.shifting_g == pytest.approx(0, abs=1e-9)


def test_savings_by_hand():
    """Full would have been 4 kWh at 500; the job did 45 % of the energy at rho .5, at 200 g/kWh."""
    effort = calibrated_effort(Cost(s_per_token=60, j_per_token=4 * KWH_J / 100), 100)
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
    effort = calibrated_effort(Cost(s_per_token=3600, j_per_token=full_kwh * KWH_J), 1)
    against = baseline(effort, submitted_at=T0, slots=[slot(then, 0, 24)], pue=pue)
    told = report([row(5, 6, actual_kwh, now)], against=against, flops_share=share, pue=pue)
    parts = told.savings.rho_g + told.savings.shifting_g + told.savings.efficiency_g
    assert parts == pytest.approx(told.savings.emissions_g)
    assert told.savings.shifting_g == pytest.approx(
        actual_kwh * pue * (then - now), abs=1e-6 * max(then, now) * full_kwh * pue * 10
    )


def test_a_measured_baseline_goes_before_a_modelled_one():
    """Full fine-tuning of 64,000 tokens at 17.77 J each, over 3.75 h at the hours' intensities."""
    told, _ = full_report(cost=CALIBRATED)
    against = to_dict(told)["baseline"]
    assert against["energy_wh"] == pytest.approx(64_000 * 17.77 / 3600 * 1.13)
    hours = 64_000 * 0.2111 / 3600
    mean = (1.01 * 333.3 + 1.01 * 250.7 + (hours - 2.02) * 410.1) / hours
    assert against["intensity_g_per_kwh"] == pytest.approx(mean)
    assert against["co2e_g_range"]["high"] == pytest.approx(1.05 * against["co2e_g"])
    modelled = to_dict(full_report()[0])["baseline"]
    spent_wh = to_dict(told)["energy_wh"]["total"]
    ends = modelled["co2e_g_range"]
    # at the most everything goes with FLOPs; at the least full fine-tuning takes what this job took
    assert ends["high"] / ends["low"] == pytest.approx(7.7 / 3.3)
    assert ends["low"] / modelled["co2e_g"] == pytest.approx(spent_wh / modelled["energy_wh"])
    assert spent_wh < modelled["energy_wh"] < spent_wh * 7.7 / 3.3


def test_a_baseline_never_mixes_kinds():
    """A marginal provider was away for two hours, at first and once more: averages stood in."""
    grid = [
        slot(50, 0, 1),
        slot(400, 1, 2, kind="marginal"),
        slot(50, 2, 3),
        slot(800, 3, 4, kind="marginal"),
    ]
    facts = JobFacts(
        job_id="j", submitted_at=T0, zone="XX", trained_tokens=1, spent_flops=1.0, full_flops=1.0
    )
    facts = dataclasses.replace(
        facts, full_cost=Cost(s_per_token=4 * 3600, j_per_token=KWH_J, measured_by="job")
    )
    rows = [row(3, 4, 1, 800, kind="marginal")]
    against = compose(facts, rows, [], signal=Grid(grid)).baseline
    assert (against.kind, against.intensity_g_per_kwh) == ("marginal", pytest.approx(500))
    assert [(s.moment, s.until) for s in against.slots] == [(at(0), at(3)), (at(3), at(4))]
    averages = compose(facts, [row(3, 4, 1, 50)], [], signal=Grid(grid)).baseline
    assert (averages.kind, averages.intensity_g_per_kwh) == ("average", pytest.approx(50))


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
    # 1 s, 60 s, 60 s and 60 s; what two devices lack at once counts once
    gaps = uncovered(rows, attempts)
    assert missing_s([*gaps, *gaps]) == pytest.approx(181.0)
    assert uncovered(rows[:1], [Attempt(number=1, worker="w", started_at=at(0))])[0].devices == (
        "cpu",
    )
