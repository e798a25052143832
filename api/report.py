"""A job's emissions report for the terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from api.watch import NO_VALUE, duration, number
from core.carbon.held_out import quality_words


def print_report(report: dict[str, Any], console: Console) -> None:
    """``report`` is the body of ``GET /v1/fine_tuning/jobs/{id}/emissions``."""
    intensity = report["intensity_g_per_kwh"]
    console.print(f"Emissions of {report['job_id']}", style="bold", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    basis = report["baseline"]["basis"] if report["baseline"] else "not known"
    for name in ("", "this job", f"full fine-tuning ({basis})"):
        table.add_column(name, justify="left" if not name else "right")
    baseline = report["baseline"] or {}
    table.add_row(
        "energy",
        f"{report['energy_wh']['total']:.3f} Wh",
        _with_unit(baseline.get("energy_wh"), "Wh"),
    )
    table.add_row(
        "emissions", f"{report['co2e_g']:.4f} gCO2e", _with_unit(baseline.get("co2e_g"), "gCO2e")
    )
    table.add_row(
        "grid intensity",
        f"{number(intensity['mean'], '.1f')} g/kWh",
        _with_unit(baseline.get("intensity_g_per_kwh"), "g/kWh", digits=1),
    )
    if report["ended_at"]:
        ended, started = (
            datetime.fromisoformat(report[name]) for name in ("ended_at", "started_at")
        )
        modelled = duration(baseline["duration_s"]) if baseline else NO_VALUE
        table.add_row("duration", duration((ended - started).total_seconds()), modelled)
    console.print(table)
    for line in _details(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _details(report: dict[str, Any]) -> list[str]:
    intensity = report["intensity_g_per_kwh"]
    lines = []
    if report["savings"]:
        split = report["savings"]["split_g"]
        lines.append(
            f"saved {report['savings']['co2e_g']:.4f} gCO2e ({report['savings']['share']:.0%}): "
            + ", ".join(f"{name} {grams:+.4f}" for name, grams in split.items())
        )
    if report.get("quality"):
        lines.append(quality_words(report["quality"]))
    devices = (
        f"{device['name']} {device['energy_wh']:.3f} Wh ({'+'.join(device['methods'])})"
        for device in report["devices"]
    )
    lines.append("by device: " + (", ".join(devices) or "nothing metered"))
    source = "; ".join(intensity["source"]) or "unknown"
    lines.append(f"zone {report['zone']}, {intensity['kind'] or 'no'} intensity from {source}")
    lines.append(
        f"range {report['co2e_g_range']['low']:.4f} to {report['co2e_g_range']['high']:.4f} gCO2e"
    )
    if report["baseline"]:
        lines.append(f"baseline: {report['baseline']['method']}")
    return lines + [f"note: {note}" for note in report["notes"]]


def _with_unit(value: float | None, unit: str, *, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f} {unit}"
