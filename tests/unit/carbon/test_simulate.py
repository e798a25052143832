"""The simulator: equal to the planner job by job, and to hand counts."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from typer.testing import CliRunner

from core.carbon.intensity import Intensity
from core.carbon.planner import Infeasible, Ledger, StepCost, Wish, Work, plan
from core.carbon.simulate import Fleet, _Weather, simulate
from core.errors import InvalidInput
from core.units import JOULES_PER_KWH, emissions_g
from worker.__main__ import cli
from worker.simulate import simulate_and_print, summary, to_html

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def year(hours=24 * 30, seed=0):
    random = np.random.default_rng(seed)
    day = 300 + 150 * np.sin(2 * np.pi * np.arange(hours) / 24)
    return np.maximum(day + np.cumsum(random.normal(0, 12, hours)) * 0.5, 20.0)


def test_run_now_by_hand():
    values = [100.0, 200.0, 300.0, 400.0] * 6
    told = simulate("XX", values, 1.0, Fleet(policy="now", hours=2, slack_h=4, rho=0.75))
    assert told.run_now_g_B[:3].tolist() == [300, 500, 700]
    # 1.5 h: a full hour and half of the next
    assert told.emissions_g_B[:3].tolist() == pytest.approx([200, 350, 500])


def test_with_the_future_known_nothing_is_regretted():
    values = year()
    for policy in ("now", "shift", "suspend"):
        told = simulate("XX", values, 1.0, Fleet(policy=policy, noise="none"))
        assert told.regret == pytest.approx(0, abs=1e-9)
        assert not told.missed_B.any()


def test_suspending_beats_shifting_beats_now():
    values = year()
    ratios = [
        simulate("XX", values, 1.0, Fleet(policy=policy)).ratio
        for policy in ("suspend", "shift", "now")
    ]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("policy", ["now", "shift", "suspend", "budget"])
@pytest.mark.parametrize("noise", ["none", "independent", "persistent"])
def test_no_deadline_is_missed_and_all_work_is_done(policy, noise):
    fleet = Fleet(policy=policy, noise=noise, hours=5, slack_h=9, rho=0.9, suspend_h=0.01)
    told = simulate("XX", year(24 * 10), 1.0, fleet)
    assert not told.missed_B.any()
    assert (told.rho_B >= fleet.rho_min - 1e-9).all()
    assert (told.starts_B >= 1).all()


def stepped_through_the_planner(values, first, fleet, weather):
    """One job, hour by hour, with the service's own records; returns its grams."""
    power_w = 1000.0
    cost = StepCost.proportional(full_s_per_step=1.0, full_j_per_step=power_w)
    deadline = T0 + (first + fleet.slack_h) * HOUR
    budget_g = fleet.budget_share * sum(values[(first + i) % len(values)] for i in range(6))
    left, ledger, running = fleet.hours * 3600, Ledger(), False
    for slot in range(round(fleet.slack_h)):
        now = T0 + (first + slot) * HOUR
        row = weather.expected_TN[(first + slot) % len(values)]
        forecast = tuple(
            Intensity(
                value_g_per_kwh=float(row[i]),
                zone="XX",
                source="test",
                moment=now + i * HOUR,
                until=now + (i + 1) * HOUR,
            )
            for i in range(round(fleet.slack_h) - slot)
        )
        budgeted = fleet.policy == "budget"
        wish = Wish(
            deadline=deadline,
            rho=None if budgeted else fleet.rho,
            budget_g=budget_g if budgeted else None,
            may_suspend=fleet.policy != "shift",
        )
        work = Work(steps=left, cost=cost, rho_min=fleet.rho_min)
        drawn = plan(wish, work, forecast, now, spent=ledger, running=running)
        if isinstance(drawn, Infeasible):
            relaxed = Wish(deadline=deadline, rho=fleet.rho_min)
            drawn = plan(relaxed, work, forecast, now, running=running)
        seconds = sum(
            max((min(s.end, now + HOUR) - max(s.start, now)).total_seconds(), 0)
            for s in drawn.stretches
        )
        energy_j = seconds * power_w
        grams = emissions_g(energy_j, values[(first + slot) % len(values)])
        ledger = ledger.after(energy_j=energy_j, emissions_g=grams)
        left -= seconds / drawn.rho
        running = seconds > 0
        if left < 1e-3:
            return ledger.emissions_g
    return ledger.emissions_g


@pytest.mark.parametrize("policy", ["shift", "suspend", "budget"])
def test_single_jobs_through_the_planner_emit_the_same(policy):
    values = year()
    fleet = Fleet(policy=policy, slack_h=18.0, noise="independent")
    told = simulate("XX", values, 1.0, fleet)
    weather = _Weather(values, 18, 1.0, fleet)
    for first in (0, 137, 480, len(values) - 4):
        grams = stepped_through_the_planner(values, first, fleet, weather)
        assert grams == pytest.approx(told.emissions_g_B[first], rel=1e-5)


def test_every_joule_is_priced_at_its_hour():
    assert emissions_g(JOULES_PER_KWH, 300.0) == 300.0
    told = simulate("XX", [50.0] * 48, 1.0, Fleet(noise="none", suspend_h=0.5))
    np.testing.assert_allclose(told.emissions_g_B, (3 + 0.5) * 50)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "magic"},
        {"hours": 0},
        {"rho": 1.5},
        {"hours": 30, "rho": 0.9},
        {"slack_h": float("nan")},
        {"slack_h": float("inf")},
        {"suspend_h": float("inf")},
        {"suspend_h": -1.0},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(InvalidInput):
        Fleet(**options)


def test_a_trace_shorter_than_the_slack_is_refused():
    with pytest.raises(InvalidInput, match="shorter"):
        simulate("XX", [1.0] * 10, 1.0, Fleet())


def test_a_slack_that_ends_amid_a_slot_is_refused():
    """Or a job of 3.2 h with 3.4 h to go would be given three hours, and miss its deadline."""
    fleet = Fleet(hours=6.4, rho=0.5, slack_h=3.4)
    with pytest.raises(InvalidInput, match=r"whole number of the 1 h slots"):
        simulate("XX", year(48), 1.0, fleet)
    assert not simulate("XX", year(48), 0.2, fleet).missed_B.any()


def test_the_page_has_the_mean_of_the_zones_too():
    fleet = Fleet(policy="suspend", hours=2, slack_h=12)
    outcomes = [simulate(zone, year(96, seed), 1.0, fleet) for seed, zone in enumerate("AB")]
    page = to_html(outcomes, fleet)
    text = page[page.rindex("<script>") + len("<script>") :]
    bars = json.loads(text[: text.index(".forEach(")])[0]["data"]
    assert [bar["x"] for bar in bars] == [["A", "B", "mean"]] * 3
    told = summary(outcomes, fleet)
    assert [bar["y"][-1] for bar in bars[1:]] == [
        told["mean_ratio"],
        told["mean_clairvoyant_ratio"],
    ]


def test_the_table_fits_a_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [f"US-CAL-CISO,{(T0 + n * HOUR).isoformat()},{v:.2f}" for n, v in enumerate(year(48))]
    (tmp_path / "a.csv").write_text("\n".join(["zone,timestamp_utc,gco2eq_per_kwh", *rows]))
    simulate_and_print(tmp_path, Fleet(policy="budget", hours=2, slack_h=12))
    assert "US-CAL-CISO" in capsys.readouterr().out


def test_a_grid_that_is_free_of_carbon_leaves_nothing_to_compare_with():
    free = simulate("NO", [0.0] * 48, 1.0, Fleet(policy="suspend", hours=2, slack_h=12))
    dirty = simulate("XX", year(48), 1.0, Fleet(policy="suspend", hours=2, slack_h=12))
    told = summary([free, dirty], Fleet())
    assert [line["ratio"] is None for line in told["zones"]] == [True, False]
    assert told["mean_ratio"] == told["zones"][1]["ratio"]
    json.dumps(told, allow_nan=False)
    page = to_html([free, dirty], Fleet())
    assert "Plotly" in page
    assert "NaN" not in page[page.rindex("<script>") :]


@pytest.mark.parametrize(
    ("options", "ignored", "wanted"),
    [
        ("--policy budget --rho 0.7", "--rho", "now, shift or suspend"),
        ("--policy suspend --rho-min 0.4", "--rho-min", "budget"),
        ("--policy now --budget-share 0.4", "--budget-share", "budget"),
        ("--budget-share 0.4", "--budget-share", "budget"),
        ("--policy now --seed 0", "--seed", "shift, suspend or budget"),
    ],
)
def test_options_that_a_policy_ignores_are_refused(tmp_path, options, ignored, wanted):
    """The figures of another share than the one asked for were printed without a word."""
    error = _refused("--traces", str(tmp_path), *options.split())
    assert error.message.startswith(f"{ignored} is for --policy {wanted}; ")


def test_noise_that_is_switched_off_has_no_kind(tmp_path):
    error = _refused("--traces", str(tmp_path), "--no-forecast-noise", "--persistent-noise")
    assert "--persistent-noise" in error.message


def test_noise_that_is_switched_off_has_no_seed(tmp_path):
    """Every seed printed the same figures."""
    error = _refused("--traces", str(tmp_path), "--no-forecast-noise", "--seed", "3")
    assert error.message == (
        "--seed is of the forecasts' error, and with --no-forecast-noise they have none: leave one "
        "of them out."
    )


@pytest.mark.parametrize(
    ("policy", "options", "is_heeded"),
    [
        *((policy, {}, policy != "now") for policy in ("now", "shift", "suspend", "budget")),
        ("suspend", {"noise": "none"}, False),
    ],
)
def test_a_seed_is_refused_where_it_changes_nothing(policy, options, is_heeded):
    grams = [
        simulate("XX", year(96), 1.0, Fleet(policy=policy, hours=4, slack_h=24, seed=n, **options))
        for n in (1, 2)
    ]
    first, second = (outcome.emissions_g_B.tolist() for outcome in grams)
    assert (first != second) is is_heeded


def test_an_unknown_policy_is_told_before_what_it_ignores(tmp_path):
    error = _refused("--traces", str(tmp_path), "--policy", "later", "--rho", "0.7")
    assert error.message.startswith("Policies: ")


def _refused(*options):
    error = CliRunner().invoke(cli, ["simulate", *options]).exception
    assert isinstance(error, InvalidInput), repr(error)
    return error
