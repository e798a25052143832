"""The emissions report as one HTML file that opens offline: plotly.js travels inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from typing import Any

from core.carbon.account import EmissionsReport
from core.carbon.charts import figures
from core.carbon.held_out import quality_words
from core.carbon.intensity import Intensity
from core.carbon.report import to_dict
from core.carbon.sheet import amount, document, in_grams, table, tiles


def to_html(
    report: EmissionsReport,
    *,
    grid: Sequence[Intensity] = (),
    rho_history: Sequence[tuple[datetime, float]] = (),
    budget_g: float | None = None,
) -> str:
    """A self-contained page.

    Args:
        grid: the zone's intensity all the time, drawn behind that of the samples.
        rho_history: (moment, rho from then on), oldest first; empty: no such chart.
        budget_g: drawn into the cumulative chart.
    """
    body = to_dict(report)
    charts = figures(report, grid=grid, rho_history=rho_history, budget_g=budget_g)
    return document(
        f"Emissions of {report.job_id}",
        _subtitle(body),
        [_headline(body, budget_g) + _quality(body), *_tables(body), _facts(body)],
        charts,
    )


def _subtitle(body: dict[str, Any]) -> str:
    words = [f"zone {body['zone']}", f"submitted {_minute(body['submitted_at'])}"]
    if body["started_at"] is not None:
        words.append(f"metered {_minute(body['started_at'])} to {_minute(body['ended_at'])}")
    return ", ".join(words)


def _minute(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"


def _headline(body: dict[str, Any], budget_g: float | None) -> str:
    grams, total_wh = body["co2e_g"], body["energy_wh"]["total"]
    included = f"CO2-equivalent, PUE {body['pue']:g} included"
    lines = [
        ("Emissions", in_grams(grams), included),
        (
            "Energy",
            amount(total_wh, "Wh"),
            f"{body['measured_share']:.0%} measured, rest estimated",
        ),
    ]
    if body["savings"]:
        basis = body["baseline"]["basis"]
        saved = f"{in_grams(body['savings']['co2e_g'])} against {basis} full fine-tuning"
        lines.append(("Saved", f"{body['savings']['share']:.0%}", saved))
    mean = body["intensity_g_per_kwh"]["mean"]
    if mean is not None:
        kind = f"mean of the hours used, {body['intensity_g_per_kwh']['kind']}"
        lines.append(("Intensity", f"{mean:.0f} g/kWh", kind))
    if budget_g is not None:
        lines.append(("Budget", f"{grams / budget_g:.0%} used", f"of {in_grams(budget_g)}"))
    return tiles(lines)


def _quality(body: dict[str, Any]) -> str:
    quality = body["quality"]
    return "" if quality is None else f"<p>{escape(quality_words(quality))}.</p>"


def _tables(body: dict[str, Any]) -> list[str]:
    energy: dict[str, Callable[[Any], str]] = {
        "energy": lambda line: amount(line["energy_wh"], "Wh"),
        "emissions": lambda line: in_grams(line["co2e_g"]),
    }
    devices = {"device": _field("name"), **energy, "measured by": _field("methods")}
    attempts = {
        "attempt": _field("n"),
        "worker": _field("worker"),
        "began": lambda line: _minute(line["started_at"]) if line["started_at"] else "",
        "ended": lambda line: _minute(line["ended_at"]) if line["ended_at"] else "",
        "how it ended": _field("reason"),
        **energy,
    }
    gaps = {
        "from": _field("started_at"),
        "to": _field("ended_at"),
        "devices": _field("devices"),
        "what is missing": _field("reason"),
    }
    return [
        table("Devices", body["devices"], devices),
        table("Attempts", body["attempts"], attempts),
        table("Overheads, part of the above", body["overheads"], {"": _field("name"), **energy}),
        table("Time not metered", body["unaccounted"]["gaps"], gaps),
    ]


def _field(name: str) -> Callable[[Any], str]:
    def text(line: dict[str, Any]) -> str:
        value = line[name]
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return "" if value is None else str(value)

    return text


def _facts(body: dict[str, Any]) -> str:
    """Baseline, savings, SCI and the remarks, as they stand in the JSON."""
    against, savings = body["baseline"], body["savings"]
    lines = []
    if against:
        lines.append(
            f"Baseline ({against['basis']}): {against['what']}: "
            f"{amount(against['energy_wh'], 'Wh')}, {in_grams(against['co2e_g'])} at "
            f"{against['intensity_g_per_kwh']:.0f} g/kWh; {against['method']}."
        )
    if savings:
        split = ", ".join(f"{name} {in_grams(grams)}" for name, grams in savings["split_g"].items())
        lines.append(f"Saved {in_grams(savings['co2e_g'])}: {split}.")
    span = body["co2e_g_range"]
    lines.append(f"Range {in_grams(span['low'])} to {in_grams(span['high'])} ({span['note']}).")
    lines.append(_sci(body["sci"]))
    lines.append("Intensity: " + "; ".join(body["intensity_g_per_kwh"]["source"] or ["none"]) + ".")
    lines += [body["attribution"]["note"], *body["notes"]]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f"<h2>How it was computed</h2><ul>{items}</ul>"


def _sci(sci: dict[str, Any]) -> str:
    tokens = sci["g_per_1k_trained_tokens"]
    per_tokens = "" if tokens is None else f", {in_grams(tokens)} per 1,000 trained tokens"
    per_model = in_grams(sci["g_per_model"])
    return (
        f"SCI ({sci['standard']}): {per_model} per fine-tuned model{per_tokens}; "
        f"embodied part M {in_grams(sci['embodied_g'])} ({sci['embodied_basis']})."
    )
