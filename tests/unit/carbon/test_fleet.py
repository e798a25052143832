"""Sums over many jobs, counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.carbon.energy import MeteredEnergy
from core.carbon.fleet import Spent, fleet_report, share_inside

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
KWH_J = 3.6e6


def spent(job: str, kwh: float, g_per_kwh: float | None, **options: Any) -> Spent:
    defaults: dict[str, Any] = {
        "group": ("FR",),
        "kind": None if g_per_kwh is None else "average",
        "measured_j": kwh * KWH_J,
        "all_time_j": kwh * KWH_J,
    }
    return Spent(
        job_id=job,
        energy_j=kwh * KWH_J,
        emissions_g=kwh * (g_per_kwh or 0.0),
        **(defaults | options),
    )


def test_a_fleet_by_hand() -> None:
    lines = fleet_report(
        [
            spent("a", 1, 50, baseline_g=200.0),
            # half of this job's energy lies in the range
            spent("b", 2, 50, measured_j=0.0, all_time_j=4 * KWH_J, baseline_g=800.0),
            spent("c", 1, 50),
            spent("b", 1, 800, kind="marginal"),
            spent("c", 2, 400, group=("DE",)),
            spent("c", 1, None, group=(None,)),
            spent("d", 0, 400),
        ],
        pue=1.5,
    )
    told = {(line.group, line.kind): line.to_dict(["zone"]) for line in lines}
    assert len(told) == 4
    french = told[("FR",), "average"]
    assert (french["zone"], french["jobs"]) == ("FR", 3)
    assert french["energy_wh"] == pytest.approx(4000 * 1.5)
    assert french["co2e_g"] == pytest.approx(200 * 1.5)
    assert french["measured_share"] == pytest.approx(0.5)
    # 200 g and half of 800 g, against the 150 g that these two jobs emitted
    assert french["baseline"] == {"jobs": 2, "co2e_g": pytest.approx(600)}
    assert french["savings"]["co2e_g"] == pytest.approx(600 - 150 * 1.5)
    assert french["savings"]["share"] == pytest.approx((600 - 225) / 600)
    marginal = told[("FR",), "marginal"]
    assert (marginal["co2e_g"], marginal["savings"]) == (pytest.approx(1200), None)
    assert told[("DE",), "average"]["co2e_g"] == pytest.approx(1200)
    assert told[(None,), None]["co2e_g"] is None
    assert told[(None,), None]["energy_wh"] == pytest.approx(1500)


def test_without_groups_each_kind_has_one_total() -> None:
    parts = [
        spent("a", 1, 50, group=()),
        spent("a", 1, 70, group=()),
        spent("b", 1, 70, group=(), kind="marginal"),
    ]
    totals = fleet_report(parts)
    assert [(t.kind, t.jobs, t.emissions_g) for t in totals] == [
        ("average", 1, pytest.approx(120)),
        ("marginal", 1, pytest.approx(70)),
    ]
    assert fleet_report([]) == ()


@pytest.mark.parametrize(
    ("begin", "end", "share"),
    [(0, 2, 1), (-1, 1, 0.5), (1, 5, 0.25), (-2, 6, 0.25), (2, 3, 0), (-3, 0, 0)],
)
def test_share_of_a_sample_in_the_range(begin: float, end: float, share: float) -> None:
    row = MeteredEnergy(
        device="cpu",
        started_at=NOW + begin * HOUR,
        ended_at=NOW + end * HOUR,
        energy_j=1.0,
        method="rapl",
    )
    assert share_inside(row, NOW, NOW + 2 * HOUR) == share
