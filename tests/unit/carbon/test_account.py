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
    Overhead,
    report_emissions,
)
from core.carbon.baseline import baseline, calibrated_effort, modelled_effort
from core.carbon.compose import JobFacts, compose
from core.carbon.coverage import missing_s, uncovered
from core.carbon.energy import EnergySample, MeteredEnergy, attribute
from core.carbon.evidence import Evidence
from core.carbon.intensity import Intensity
from core.carbon.page import to_html
from core.carbon.report import CSV_COLUMNS, intervals, to_csv, to_dict
from core.carbon.verify import verify

T0 = datetime(2026, 5, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
KWH_J = 3_600_000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Full fine-tuning as measured."""

    s_per_token: float
    j_per_token: float
    measured_by: str = "job"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A signal of given slots."""

    slots: list[Intensity]

    def at(self, zone, moment):
        raise NotImplementedError

    forecast = at

    def series(self, zone, start, end):
        return tuple(
            s.clipped(start, end) for s in self.slots if s.moment < end and s.until > start
        )


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


def test_no_samples_is_a_report_too():
    told = to_dict(report([]))
    assert (told["co2e_g"], told["savings"], told["intensity_g_per_kwh"]["mean"]) == (0, None, None)
    json.dumps(told, allow_nan=False)
    assert wrong(told, Evidence(samples=())) == set()
    assert "<html" in to_html(report([]))


OVERHEADS = [
    Overhead(kind="selection", started_at=at(0.0101), ended_at=at(0.0233)),
    Overhead(kind="selection", started_at=at(0.5), ended_at=at(0.51)),
    Overhead(kind="preparation", started_at=at(0.001), ended_at=at(0.0101)),
]


ATTEMPTS = [
    Attempt(
        number=1,
        worker="w<1>",
        started_at=T0,
        ended_at=at(1.25),
        outcome="held",
        attribution="machine",
    ),
    Attempt(number=2, worker="w2", started_at=at(1.249), ended_at=at(3), attribution="process"),
]


def full_report(count=1800, cost=None):
    """A job of two attempts with the baseline's hours in three slots: (report, evidence)."""
    rows = [
        row(
            i / 720,
            (i + 1) / 720,
            0.0001 + i * 1e-7,
            200 + i // 100,
            device=device,
            attempt=1 + i // (count // 2),
        )
        for i in range(count)
        for device in ("cpu", "gpu")
        if i != 20
    ]
    facts = JobFacts(
        job_id="ftjob-1",
        submitted_at=T0,
        zone="XX",
        pue=1.13,
        trained_tokens=64_000,
        spent_flops=3.3e12,
        full_flops=7.7e12,
        full_cost=cost,
        embodied_g_per_hour=3.5,
    )
    grid = Grid([slot(333.3, 0, 1.01), slot(250.7, 1.01, 2.02), slot(410.1, 2.02, 4.5)])
    told = compose(facts, rows, ATTEMPTS, OVERHEADS, signal=grid)
    return told, Evidence.of(told, facts, OVERHEADS)


CALIBRATED = Cost(s_per_token=0.2111, j_per_token=17.77, measured_by="machine")


def wrong(body, evidence):
    return {check.figure for check in verify(body, evidence) if not check.agrees}


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


@pytest.mark.parametrize("cost", [None, CALIBRATED])
def test_a_report_is_borne_out_by_its_samples_and_a_forged_one_is_not(cost):
    told, evidence = full_report(cost=cost)
    body = json.loads(json.dumps(to_dict(told)))
    assert wrong(body, evidence) == set()
    assert len(verify(body, evidence)) > 600
    fewer = dataclasses.replace(evidence, samples=evidence.samples[:-1])
    lost = wrong(body, fewer)
    assert lost >= {"co2e_g", "devices.gpu.energy_wh", "sci.g_per_model", "energy_wh.gpu"}
    found = wrong(body, dataclasses.replace(evidence, overheads=()))
    kinds = ("preparation", "selection")
    lines = {f"overheads.{kind}.{part}" for kind in kinds for part in ("co2e_g", "energy_wh")}
    assert {figure for figure in found if figure.startswith("overheads.")} == lines
    # a modelled baseline takes preparation as it was
    assert ("baseline.energy_wh" in found) is (cost is None)
    assert body["baseline"]["basis"] == ("modelled" if cost is None else "calibrated")
    assert body["unaccounted"]["gaps"][0]["started_at"] == "2026-05-01T08:01:40Z"


def test_evidence_survives_json():
    told, evidence = full_report(40, CALIBRATED)
    sent = json.loads(json.dumps(evidence.to_dict()))
    assert Evidence.from_dict(sent) == evidence
    assert wrong(to_dict(told), Evidence.from_dict(sent)) == set()


@pytest.mark.parametrize("cost", [None, CALIBRATED])
def test_no_figure_can_be_changed_unnoticed(cost):
    told, evidence = full_report(40, cost)
    body = json.loads(json.dumps(to_dict(told)))
    body["intervals"] = body["intervals"][:3]
    seen = 0
    for path, value in numbers(body):
        # what names an interval: no sample has another one's intensity
        if path[0] == "intervals" and path[-1] == "intensity_g_per_kwh":
            continue
        seen += 1
        assert wrong(changed(body, path, value + 2e-6), evidence), path
    assert seen > 45


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


def test_long_jobs_are_merged_for_display_without_losing_energy():
    told, _ = full_report()
    rows = told.rows
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
    told, _ = full_report()
    page = to_html(told, rho_history=[(T0, 0.5), (at(1), 0.4)], budget_g=150.0)
    assert "Plotly" in page
    assert "w&lt;1&gt;" in page
    assert "w<1>" not in page
    assert 'src="http' not in page
    assert page.count("class=chart") == 3
