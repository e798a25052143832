"""An estimate as a picture: what a gram, an hour and a share of quality cost one another.

Three wishes pull against each other, so there are three charts, each with the options that nothing
beats in all three at once drawn full and joined where two axes suffice to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from core.carbon.sheet import amount, document, in_grams, table, tiles
from core.units import SECONDS_PER_HOUR

_GREEN, _GREY, _DARK, _RED = "#0b6e4f", "#a9b8af", "#1d2b23", "#b3261e"
#: from little effort to full fine-tuning
_SCALE = [[0.0, "#cfe6d8"], [0.5, "#57a773"], [1.0, "#0b4a36"]]
_AXIS = {"gridcolor": "#e3ebe5", "zeroline": False}
_LAYOUT: dict[str, Any] = {
    "margin": {"l": 64, "r": 24, "t": 12, "b": 48},
    "legend": {"orientation": "h", "y": -0.22, "font": {"size": 12}},
    "font": {"family": "system-ui, sans-serif", "color": "#33443a"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "hovermode": "closest",
}

_QUARTER = timedelta(minutes=15)
#: of the work, between a green option's finish and the deadline to ask for it with
_ROOM = 0.1

Option = Mapping[str, Any]


def to_html(estimate: Mapping[str, Any], *, model: str, words: str) -> str:
    """A self-contained page.

    Args:
        estimate: the answer of ``POST /v1/green/estimate``.
        model: that the estimate is of.
        words: what the figures rest on, in a sentence.
    """
    made_at = datetime.fromisoformat(estimate["made_at"])
    options: Sequence[Option] = estimate["options"]
    full = estimate["full_now"]
    charts = [
        (
            "Grams against expected quality",
            _chart(options, full, "co2e_g", "quality", made_at, joins_front=True),
        ),
        ("Grams against the finish", _chart(options, full, "hours", "co2e_g", made_at)),
        ("Expected quality against the finish", _chart(options, full, "hours", "quality", made_at)),
    ]
    front = [option for option in options if option["is_pareto"]]
    subtitle = (
        f"zone {estimate['zone']}, {estimate['kind']} intensity, made {made_at:%Y-%m-%d %H:%M} UTC"
    )
    parts = [
        tiles(_tiles(options, full)),
        table(
            "What nothing else beats in grams, finish and quality at once",
            front,
            {
                "rho": lambda o: f"{o['rho']:.2f}",
                "start": lambda o: (
                    f"{_hours(o['start'], made_at):.1f} h from then"
                    + (", then greener hours" if o["schedule"] == "green" else "")
                ),
                "finish": lambda o: f"{_hours(o['finish'], made_at):.1f} h",
                "energy": lambda o: amount(o["energy_wh"], "Wh"),
                "emissions": lambda o: in_grams(o["co2e_g"]),
                "quality": lambda o: f"{o['quality']:.2f}",
                "asked for with": _flags,
            },
        ),
        _remarks(estimate, words),
    ]
    return document(f"What {model} would cost", subtitle, parts, charts)


def left_out_of(estimate: Mapping[str, Any]) -> list[str]:
    """What was asked for and cannot be had, a sentence each."""
    lines, rho_min = [], estimate["basis"]["rho_min"]
    if too_low := estimate["rho_too_low"]:
        listed = ", ".join(f"{rho:g}" for rho in too_low)
        lines.append(f"rho {listed}: below {rho_min:.4g}, the lowest that this model can do.")
    if estimate["left_out"]:
        lines.append(
            f"{estimate['left_out']} combinations do not fit the deadline and are "
            "left out; allow more time, fewer tokens or epochs, or a lower rho."
        )
    return lines


def _remarks(estimate: Mapping[str, Any], words: str) -> str:
    lines = (
        words,
        f"Intensity: {estimate['source']}.",
        *left_out_of(estimate),
        "Diamonds: the planner's own hours until the deadline. Shade: rho.",
    )
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>What this rests on</h2><ul>{items}</ul>"


def _tiles(options: Sequence[Option], full: Option) -> list[tuple[str, str, str]]:
    found = [
        (
            "Full fine-tuning now",
            in_grams(full["co2e_g"]),
            f"{amount(full['energy_wh'], 'Wh')}, {full['duration_s'] / SECONDS_PER_HOUR:.2f} h",
        )
    ]
    if options:
        least = min(options, key=lambda o: o["co2e_g"])
        share = least["co2e_share_of_full_now"]
        found.append(
            (
                "Fewest grams",
                in_grams(least["co2e_g"]),
                f"rho {least['rho']:g}, quality {least['quality']:.2f}"
                + ("" if share is None else f", {share:.0%} of full now"),
            )
        )
        whole = [o for o in options if o["rho"] == max(o["rho"] for o in options)]
        best = min(whole, key=lambda o: o["co2e_g"])
        found.append(
            (
                f"Fewest at rho {best['rho']:g}",
                in_grams(best["co2e_g"]),
                f"quality {best['quality']:.2f}, greener hours alone",
            )
        )
    return found


def _chart(
    options: Sequence[Option],
    full: Option,
    x: str,
    y: str,
    made_at: datetime,
    *,
    joins_front: bool = False,
) -> dict[str, Any]:
    def of(option: Option, name: str) -> float:
        value = _hours(option["finish"], made_at) if name == "hours" else option[name]
        return float(f"{value:.6g}")

    data: list[dict[str, Any]] = []
    if joins_front:
        steps = _staircase([(of(o, x), of(o, y)) for o in options])
        data.append(
            {
                "x": [point[0] for point in steps],
                "y": [point[1] for point in steps],
                "name": "best quality for the grams",
                "mode": "lines",
                "line": {"color": _GREEN, "width": 1.5, "dash": "dot", "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    for name, is_front in (("beaten by another", False), ("nothing beats it", True)):
        mine = [o for o in options if o["is_pareto"] is is_front]
        if mine:
            data.append(
                {
                    "x": [of(o, x) for o in mine],
                    "y": [of(o, y) for o in mine],
                    "text": [_said(o, made_at) for o in mine],
                    "name": name,
                    "mode": "markers",
                    "marker": _marker(mine, is_front=is_front),
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    data.append(
        {
            "x": [of(full, x)],
            "y": [of(full, y)],
            "text": ["full fine-tuning, started now"],
            "name": "full fine-tuning now",
            "mode": "markers",
            "marker": {"symbol": "x", "size": 11, "color": _RED},
            "hovertemplate": "%{text}<extra></extra>",
        }
    )
    layout = _LAYOUT | {"xaxis": _axis(x), "yaxis": _axis(y)}
    return {"data": data, "layout": layout}


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The most of y that is to be had for each x, by rising x."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _marker(options: Sequence[Option], *, is_front: bool) -> dict[str, Any]:
    """Shade: rho. Diamonds: the planner's own hours."""
    return {
        "symbol": ["diamond" if o["schedule"] == "green" else "circle" for o in options],
        "size": 12 if is_front else 7,
        "color": [o["rho"] for o in options],
        "colorscale": _SCALE,
        "cmin": 0.0,
        "cmax": 1.0,
        "opacity": 1.0 if is_front else 0.45,
        "line": {"width": 1.5 if is_front else 0, "color": _DARK if is_front else _GREY},
    }


def _axis(name: str) -> dict[str, Any]:
    titles = {
        "hours": "finish, hours from now",
        "co2e_g": "g CO2e, PUE included",
        "quality": "expected quality (full: 1)",
    }
    mode = "tozero" if name != "quality" else "normal"
    return _AXIS | {"title": {"text": titles[name]}, "rangemode": mode}


def _said(option: Option, made_at: datetime) -> str:
    where = "greener hours" if option["schedule"] == "green" else "one run"
    return (
        f"rho {option['rho']:.2f}, {where}<br>start +{_hours(option['start'], made_at):.1f} h, "
        f"finish +{_hours(option['finish'], made_at):.1f} h<br>"
        f"{amount(option['energy_wh'], 'Wh')}, {in_grams(option['co2e_g'])}, "
        f"quality {option['quality']:.2f}"
    )


def _flags(option: Option) -> str:
    """Of ``greentune submit``."""
    flags = f"--rho {option['rho']:g}"
    if option["schedule"] != "green":
        return f"{flags} --earliest-start {_minute(datetime.fromisoformat(option['start']))}"
    # plans keep the time of a start and of slower steps in hand
    room = timedelta(seconds=_ROOM * option["duration_s"]) + _QUARTER
    late = datetime.fromisoformat(option["finish"]) + room
    quarter = datetime.fromtimestamp(late.timestamp() // _QUARTER.seconds * _QUARTER.seconds, UTC)
    return f"{flags} --schedule green --deadline {_minute(quarter)}"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def _hours(moment: str, since: datetime) -> float:
    return (datetime.fromisoformat(moment) - since).total_seconds() / SECONDS_PER_HOUR
