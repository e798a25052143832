"""The emissions report as one HTML file that opens offline: plotly.js travels inside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.carbon.account import EmissionsReport
from core.carbon.charts import figures
from core.carbon.intensity import Intensity
from core.carbon.report import to_dict
from core.errors import Unavailable

#: lines of a table that are shown at once; the rest unfolds
_SHOWN = 12
_STYLE = """
:root{color-scheme:light}
body{font:16px/1.55 system-ui,sans-serif;max-width:64rem;margin:2.5rem auto;padding:0 1.25rem;
color:#1d2b23;background:#fff}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.25rem 0 .5rem}
.sub{color:#56665c;margin:.25rem 0 1.5rem}
.big{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr))}
.big div{background:#eff6f1;border-radius:.6rem;padding:.8rem 1rem;color:#56665c;font-size:.86rem}
.big b{display:block;font-size:1.55rem;line-height:1.3;color:#0b6e4f;font-weight:650}
.chart{height:21rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}
td,th{padding:.32rem .7rem .32rem 0;text-align:left;border-bottom:1px solid #dfe8e2}
th{color:#56665c;font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums}
summary{cursor:pointer;color:#0b6e4f;padding:.4rem 0}
li{color:#46554c;margin:.2rem 0}
@media print{.chart{break-inside:avoid}details{display:none}}
"""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))


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
    parts = [
        f"<h1>Emissions of {escape(report.job_id)}</h1>",
        f"<p class=sub>{escape(_subtitle(body))}</p>",
        _headline(body, budget_g),
        *(
            f"<h2>{escape(title)}</h2><div class=chart id=chart{i}></div>"
            for i, (title, _) in enumerate(charts)
        ),
        *_tables(body),
        _facts(body),
    ]
    title = f"Emissions of {escape(report.job_id)}"
    # no text of anybody's can end the script element
    data = json.dumps([figure for _, figure in charts], allow_nan=False).replace("<", "\\u003c")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style><body>"
        + "".join(parts)
        + f"<script>{plotly_js()}</script>"
        + f"<script>{data}.forEach((f,i)=>Plotly.newPlot('chart'+i,f.data,f.layout,"
        + "{responsive:true,displayModeBar:false}))</script></body></html>"
    )


@cache
def plotly_js() -> str:
    """The library's own minified bundle, out of the installed wheel."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise Unavailable("The package plotly, whose JavaScript draws the charts, is missing.")
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _amount(value: float, unit: str) -> str:
    """Three digits and a prefix: 2.42 MWh, 41.3 mg."""
    scale, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), _PREFIXES[-1])
    return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}" if value else f"0 {unit}"


def _grams(value: float) -> str:
    """Kilograms and tonnes, as people say them."""
    return _amount(value / 1e6, "t") if abs(value) >= 1e6 else _amount(value, "g")


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
    tiles = [
        ("Emissions", _grams(grams), included),
        (
            "Energy",
            _amount(total_wh, "Wh"),
            f"{body['measured_share']:.0%} measured, rest estimated",
        ),
    ]
    if body["savings"]:
        basis = body["baseline"]["basis"]
        saved = f"{_grams(body['savings']['co2e_g'])} against {basis} full fine-tuning"
        tiles.append(("Saved", f"{body['savings']['share']:.0%}", saved))
    mean = body["intensity_g_per_kwh"]["mean"]
    if mean is not None:
        kind = f"mean of the hours used, {body['intensity_g_per_kwh']['kind']}"
        tiles.append(("Intensity", f"{mean:.0f} g/kWh", kind))
    if budget_g is not None:
        tiles.append(("Budget", f"{grams / budget_g:.0%} used", f"of {_grams(budget_g)}"))
    return (
        "<div class=big>"
        + "".join(
            f"<div>{name}<b>{escape(value)}</b>{escape(note)}</div>" for name, value, note in tiles
        )
        + "</div>"
    )


def _tables(body: dict[str, Any]) -> list[str]:
    energy: dict[str, Callable[[Any], str]] = {
        "energy": lambda line: _amount(line["energy_wh"], "Wh"),
        "emissions": lambda line: _grams(line["co2e_g"]),
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
        _table("Devices", body["devices"], devices),
        _table("Attempts", body["attempts"], attempts),
        _table("Overheads, part of the above", body["overheads"], {"": _field("name"), **energy}),
        _table("Time not metered", body["unaccounted"]["gaps"], gaps),
    ]


def _field(name: str) -> Callable[[Any], str]:
    def text(line: dict[str, Any]) -> str:
        value = line[name]
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return "" if value is None else str(value)

    return text


def _table(
    title: str, lines: Sequence[dict[str, Any]], columns: dict[str, Callable[[Any], str]]
) -> str:
    """Nothing where there are no lines."""
    if not lines:
        return ""
    classes = [" class=n" if name in ("energy", "emissions") else "" for name in columns]
    head = "".join(f"<th{c}>{name}</th>" for name, c in zip(columns, classes, strict=True))
    rows = [
        "<tr>"
        + "".join(
            f"<td{c}>{escape(text(line))}</td>"
            for text, c in zip(columns.values(), classes, strict=True)
        )
        + "</tr>"
        for line in lines
    ]
    shown, rest = rows[:_SHOWN], rows[_SHOWN:]
    table = f"<h2>{title}</h2><table><tr>{head}</tr>{''.join(shown)}</table>"
    if rest:
        table += (
            f"<details><summary>{len(rest)} more</summary><table>{''.join(rest)}</table></details>"
        )
    return table


def _facts(body: dict[str, Any]) -> str:
    """Baseline, savings, SCI and the remarks, as they stand in the JSON."""
    against, savings = body["baseline"], body["savings"]
    lines = []
    if against:
        lines.append(
            f"Baseline ({against['basis']}): {against['what']}: "
            f"{_amount(against['energy_wh'], 'Wh')}, {_grams(against['co2e_g'])} at "
            f"{against['intensity_g_per_kwh']:.0f} g/kWh; {against['method']}."
        )
    if savings:
        split = ", ".join(f"{name} {_grams(grams)}" for name, grams in savings["split_g"].items())
        lines.append(f"Saved {_grams(savings['co2e_g'])}: {split}.")
    span = body["co2e_g_range"]
    lines.append(f"Range {_grams(span['low'])} to {_grams(span['high'])} ({span['note']}).")
    lines.append(_sci(body["sci"]))
    lines.append("Intensity: " + "; ".join(body["intensity_g_per_kwh"]["source"] or ["none"]) + ".")
    lines += [body["attribution"]["note"], *body["notes"]]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f"<h2>How it was computed</h2><ul>{items}</ul>"


def _sci(sci: dict[str, Any]) -> str:
    tokens = sci["g_per_1k_trained_tokens"]
    per_tokens = "" if tokens is None else f", {_grams(tokens)} per 1,000 trained tokens"
    return (
        f"SCI ({sci['standard']}): {_grams(sci['g_per_model'])} per fine-tuned model{per_tokens}; "
        f"embodied part M {_grams(sci['embodied_g'])} ({sci['embodied_basis']})."
    )
