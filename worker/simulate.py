"""``greentune simulate``: a year of jobs on recorded intensities, as a table and as a page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from core.carbon.schedule import Floats
from core.carbon.sheet import Figure, document
from core.carbon.simulate import Fleet, Noise, Outcome, simulate
from core.carbon.trace import filled, read_traces
from core.errors import InvalidInput

#: field of a fleet -> the policies that heed it
_HEEDED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "rho": ("now", "shift", "suspend"),
    "rho_min": ("budget",),
    "budget_share": ("budget",),
    # the others look at forecasts
    "seed": ("shift", "suspend", "budget"),
}


def fleet_of(policy: str, said: Mapping[str, float | None], **options: Any) -> Fleet:
    """
    Args:
        said: those of `_HEEDED_BY`; None is not said.
        options: the fleet's other fields.

    Raises:
        InvalidInput: as `Fleet`, or the policy ignores what was said.
    """
    given = {name: value for name, value in said.items() if value is not None}
    fleet = Fleet(policy=policy, **given, **options)  # type: ignore[arg-type]  checked by Fleet
    for name in given:
        policies = _HEEDED_BY[name]
        if policy not in policies:
            *others, last = policies
            words = f"{', '.join(others)} or {last}" if others else last
            raise InvalidInput(
                f"--{name.replace('_', '-')} is for --policy {words}; {policy} ignores it: leave "
                "it out, or choose such a policy."
            )
    return fleet


def noise_of(*, is_on: bool, is_persistent: bool, seed: int | None) -> Noise:
    """Raises `InvalidInput` for a kind, or a seed, of noise that is switched off."""
    if is_on:
        return "persistent" if is_persistent else "independent"
    if is_persistent:
        raise InvalidInput(
            "--persistent-noise says how forecasts err, and with --no-forecast-noise they do not: "
            "leave one of them out."
        )
    if seed is not None:
        raise InvalidInput(
            "--seed is of the forecasts' error, and with --no-forecast-noise they have none: leave "
            "one of them out."
        )
    return "none"


def run(traces: Path, fleet: Fleet) -> list[Outcome]:
    """Every zone of the traces, in order of their names."""
    return [
        simulate(zone, filled(trace), trace.step.total_seconds() / 3600, fleet)
        for zone, trace in sorted(read_traces(traces).items())
    ]


def simulate_and_print(
    traces: Path, fleet: Fleet, *, page: Path | None = None, as_json: bool = False
) -> None:
    """Runs, prints the table (or JSON), and writes the page where one is asked for."""
    begun_s = time.monotonic()
    outcomes = run(traces, fleet)
    spent_s = time.monotonic() - begun_s
    if page is not None:
        page.write_text(to_html(outcomes, fleet), encoding="utf-8")
    if as_json:
        print(json.dumps(summary(outcomes, fleet), indent=1))
        return
    console = Console()
    console.print(_table(outcomes, fleet))
    jobs = sum(len(o.emissions_g_B) for o in outcomes)
    console.print(f"{jobs} jobs in {spent_s:.1f} s")
    if page is not None:
        console.print(f"page: {page}")


def summary(outcomes: Sequence[Outcome], fleet: Fleet) -> dict[str, Any]:
    """The figures of the table, plain JSON."""
    return {
        "policy": fleet.policy,
        "hours": fleet.hours,
        "slack_h": fleet.slack_h,
        "rho": None if fleet.policy == "budget" else fleet.rho,
        "noise": fleet.noise,
        "mean_ratio": _mean(o.ratio for o in outcomes),
        "mean_clairvoyant_ratio": _mean(o.clairvoyant_ratio for o in outcomes),
        "zones": [_figures(o) for o in outcomes],
    }


def _figures(outcome: Outcome) -> dict[str, Any]:
    has_budget = bool((outcome.budget_g_B == outcome.budget_g_B).all())
    return {
        "zone": outcome.zone,
        "jobs": len(outcome.emissions_g_B),
        "run_now_g": float(outcome.run_now_g_B.mean()),
        "emissions_g": float(outcome.emissions_g_B.mean()),
        "ratio": _known(outcome.ratio),
        "clairvoyant_ratio": _known(outcome.clairvoyant_ratio),
        "regret": _known(outcome.regret),
        "mean_rho": float(outcome.rho_B.mean()),
        "mean_starts": float(outcome.starts_B.mean()),
        "missed_deadlines": int(outcome.missed_B.sum()),
        "over_budget_share": outcome.over_budget() if has_budget else None,
    }


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _known(value: float) -> float | None:
    """None, as JSON has it, where a grid that is free of carbon leaves nothing to compare with."""
    return value if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else None


def _title(fleet: Fleet) -> str:
    what = f"budget {fleet.budget_share:g} of baseline" if fleet.policy == "budget" else ""
    what = what or f"rho {fleet.rho:g}"
    return (
        f"{fleet.policy}, {what}: {fleet.hours:g} h jobs, deadline {fleet.slack_h:g} h after "
        f"submission, forecast noise: {fleet.noise}"
    )


def _table(outcomes: Sequence[Outcome], fleet: Fleet) -> Table:
    table = Table(title=_title(fleet), caption="emissions / full fine-tuning run at submission")
    table.add_column("zone", no_wrap=True)
    for column in ("policy", "future known", "regret", "rho", "starts", "missed"):
        table.add_column(column, justify="right")
    if fleet.policy == "budget":
        table.add_column("over budget", justify="right")
    for line in summary(outcomes, fleet)["zones"]:
        cells = [
            line["zone"],
            _shown(line["ratio"], ".3f"),
            _shown(line["clairvoyant_ratio"], ".3f"),
            _shown(line["regret"], "+.1%"),
            f"{line['mean_rho']:.3f}",
            f"{line['mean_starts']:.2f}",
            str(line["missed_deadlines"]),
        ]
        if fleet.policy == "budget":
            cells.append(f"{line['over_budget_share']:.2%}")
        table.add_row(*cells)
    total = summary(outcomes, fleet)
    table.add_section()
    means = (total["mean_ratio"], total["mean_clairvoyant_ratio"])
    table.add_row("mean", *(_shown(mean, ".3f") for mean in means))
    return table


def to_html(outcomes: Sequence[Outcome], fleet: Fleet) -> str:
    """A page that opens offline: bars per zone, and how single jobs scatter."""
    known = [o for o in outcomes if o.run_now_g_B.any()]
    bars = {
        "data": [
            {
                "type": "bar",
                "name": name,
                "x": [*(o.zone for o in known), "mean"],
                "y": [*values, _mean(values)],
            }
            for name, values in (
                ("run now, full", [1.0] * len(known)),
                (fleet.policy, [o.ratio for o in known]),
                ("future known", [o.clairvoyant_ratio for o in known]),
            )
        ],
        "layout": {"yaxis": {"title": {"text": "emissions / run-now full fine-tuning"}}},
    }
    boxes = {
        "data": [
            {
                "type": "box",
                "name": o.zone,
                "y": [round(float(v), 4) for v in _single(o)[::24]],
                "boxpoints": False,
            }
            for o in known
        ],
        "layout": {"yaxis": {"title": {"text": "emissions / run-now full fine-tuning"}}},
    }
    charts: list[Figure] = [
        ("Mean emissions of each zone, and the mean of the zones", bars),
        ("Single jobs, one a day", boxes),
    ]
    return document("Simulated year", _title(fleet), [], charts)


def _single(outcome: Outcome) -> Floats:
    """Of jobs whose run-now grams are above 0."""
    dirty_B = outcome.run_now_g_B > 0
    return np.asarray(outcome.emissions_g_B[dirty_B] / outcome.run_now_g_B[dirty_B])
