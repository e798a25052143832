"""What our pages have in common: one HTML file that opens offline, plotly.js inside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import Unavailable

Figure = tuple[str, dict[str, Any]]
#: lines of a table that are shown at once; the rest unfolds
_SHOWN = 12
STYLE = """
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
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
summary{cursor:pointer;color:#0b6e4f;padding:.4rem 0}
li{color:#46554c;margin:.2rem 0}
@media print{.chart{break-inside:avoid}details{display:none}}
"""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))


def document(title: str, subtitle: str, parts: Sequence[str], charts: Sequence[Figure]) -> str:
    """A self-contained page: heading, charts with their titles, and the rest.

    Args:
        parts: HTML. The first stands above the charts, the others below them.
        charts: title, and figure as plotly.js takes it.
    """
    above, below = parts[:1], parts[1:]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=sub>{escape(subtitle)}</p>",
        *above,
        *(
            f"<h2>{escape(name)}</h2><div class=chart id=chart{i}></div>"
            for i, (name, _) in enumerate(charts)
        ),
        *below,
    ]
    # no text of anybody's can end the script element
    data = json.dumps([figure for _, figure in charts], allow_nan=False).replace("<", "\\u003c")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>"
        + "".join(body)
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


def amount(value: float, unit: str) -> str:
    """Three digits and a prefix: 2.42 MWh, 41.3 mg."""
    scale, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), _PREFIXES[-1])
    return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}" if value else f"0 {unit}"


def in_grams(value: float) -> str:
    """Kilograms and tonnes, as people say them."""
    return amount(value / 1e6, "t") if abs(value) >= 1e6 else amount(value, "g")


def tiles(lines: Sequence[tuple[str, str, str]]) -> str:
    """Name, figure and remark of each, side by side."""
    return (
        "<div class=big>"
        + "".join(
            f"<div>{escape(name)}<b>{escape(value)}</b>{escape(note)}</div>"
            for name, value, note in lines
        )
        + "</div>"
    )


def table(
    title: str, lines: Sequence[Mapping[str, Any]], columns: dict[str, Callable[[Any], str]]
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
    shown_table = f"<h2>{title}</h2><table><tr>{head}</tr>{''.join(shown)}</table>"
    if rest:
        shown_table += (
            f"<details><summary>{len(rest)} more</summary><table>{''.join(rest)}</table></details>"
        )
    return shown_table
