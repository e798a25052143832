"""What the planner must save on recorded years (issue 5), through the simulator's own command."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from core.carbon.simulate import Fleet
from worker.simulate import run, summary

FOLDER = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "carbon"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not list(FOLDER.glob("*.csv")), reason="no recorded traces at ../shared/data/carbon"
    ),
]


@cache
def outcomes(**options):
    return run(FOLDER, Fleet(**options))


@pytest.mark.parametrize("noise", ["independent", "persistent"])
def test_suspend_and_resume_with_a_noisy_forecast(noise):
    told = outcomes(policy="suspend", rho=0.5, noise=noise)
    assert summary(told, Fleet())["mean_ratio"] <= 0.40
    assert max(o.regret for o in told) <= 0.02
    assert not any(o.missed_B.any() for o in told)


def test_replanning_beats_planning_once():
    once = outcomes(policy="suspend", replan=False, use_habits=False)
    often = outcomes(policy="suspend")
    assert all(a.ratio < b.ratio for a, b in zip(often, once, strict=True))


@pytest.mark.parametrize("noise", ["independent", "persistent"])
def test_budgets_hold(noise):
    told = outcomes(policy="budget", budget_share=0.4, noise=noise)
    assert max(o.over_budget(0.01) for o in told) <= 0.01
    assert not any(o.missed_B.any() for o in told)
    assert all((o.rho_B >= 0.34 - 1e-9).all() for o in told)


def test_the_command_prints_the_same_figures(tmp_path):
    page = tmp_path / "year.html"
    command = [
        *(sys.executable, "-m", "worker", "simulate", "--traces", str(FOLDER), "--json"),
        *("--policy", "shift", "--hours", "6", "--slack", "24", "--rho", "1", "--html", str(page)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    told = json.loads(done.stdout)
    assert told["mean_ratio"] == pytest.approx(0.81, abs=0.01)
    assert "Plotly" in page.read_text()
