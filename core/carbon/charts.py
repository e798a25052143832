"""The figures of the report's page, as plotly.js takes them.

However long the job, a chart has at most `BINS` points a line: energy is spread over equal bins of
time, so that the area under the power is the energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from core.carbon.account import EmissionsReport, row_emissions_g
from core.carbon.energy import MeteredRow
from core.carbon.intensity import Intensity
from core.carbon.report import stamp

BINS = 300
#: longer stretches without any row are pauses, and so are shorter ones between two attempts (s)
_PAUSE_S = 60.0
#: thinner bands cannot be seen
_THINNEST = 1 / 400
_COLOURS = {"gpu": "#0b6e4f", "cpu": "#57a773", "ram": "#b9dcc4"}
_OTHER_COLOUR = "#8aa399"
_GREY, _BROWN, _RED, _DARK = "rgba(110,120,115,.16)", "#9a5b13", "#b3261e", "#0b6e4f"
_LAYOUT: dict[str, Any] = {
    "margin": {"l": 64, "r": 64, "t": 12, "b": 36},
    "legend": {"orientation": "h", "y": -0.16, "font": {"size": 12}},
    "font": {"family": "system-ui, sans-serif", "color": "#33443a"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "hovermode": "x unified",
}
_AXIS = {"gridcolor": "#e3ebe5", "zeroline": False, "rangemode": "tozero"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """Equal bins from the submission to the last sample."""

    start: datetime
    end: datetime

    @property
    def span(self) -> timedelta:
        return self.end - self.start

    @property
    def bin_s(self) -> float:
        return self.span.total_seconds() / BINS

    def x(self, index: int) -> str:
        return stamp(self.start + self.span * (index / BINS))

    def spread(
        self, rows: Iterable[MeteredRow], amount: Callable[[MeteredRow], float]
    ) -> list[float]:
        """``amount`` of each row, shared out over the bins that its time touches."""
        sums = [0.0] * BINS
        for row in rows:
            first, last = self._at(row.started_at), self._at(row.ended_at)
            for index in range(int(first), min(math.ceil(last), BINS)):
                both = min(last, index + 1) - max(first, index)
                sums[index] += amount(row) * both / (last - first)
        return sums

    def _at(self, moment: datetime) -> float:
        return min(max((moment - self.start) / self.span * BINS, 0.0), float(BINS))


def figures(
    report: EmissionsReport,
    *,
    grid: Sequence[Intensity] = (),
    rho_history: Sequence[tuple[datetime, float]] = (),
    budget_g: float | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """Title and figure of every chart; none where nothing was metered.

    Args:
        grid: the zone's intensity all the time, pauses included.
        rho_history: (moment, rho from then on), oldest first; empty: no such chart.
        budget_g: drawn into the cumulative chart.
    """
    if not report.rows:
        return []
    start = min(report.submitted_at, report.rows[0].started_at)
    clock = _Clock(start=start, end=max(r.ended_at for r in report.rows))
    if clock.span <= timedelta(0):
        return []
    bands = [_band(a, b) for a, b in pauses(report, clock.span * _THINNEST)]
    charts = [
        ("Energy and intensity over time", _power(report, clock, grid, bands)),
        ("Grams so far, against baseline and budget", _cumulative(report, clock, budget_g, bands)),
    ]
    if rho_history:
        charts.append(("rho over time", _rho(clock, rho_history, bands)))
    return charts


def pauses(
    report: EmissionsReport, shortest: timedelta = timedelta(0)
) -> list[tuple[datetime, datetime]]:
    """Times without any row from the submission on: waiting, suspended or between workers."""
    found = []
    until, attempt = report.submitted_at, None
    for row in report.rows:
        idle = row.started_at - until
        is_pause = idle.total_seconds() > _PAUSE_S or row.attempt != attempt
        if is_pause and idle > shortest:
            found.append((until, row.started_at))
        until, attempt = max(until, row.ended_at), row.attempt
    return found


def _band(start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": stamp(start),
        "x1": stamp(end),
        "y0": 0,
        "y1": 1,
        "fillcolor": _GREY,
        "line": {"width": 0},
        "layer": "below",
    }


def _band_key(bands: Sequence[object]) -> list[dict[str, Any]]:
    """The bands' line in the legend."""
    if not bands:
        return []
    marker = {"symbol": "square", "size": 12, "color": _GREY}
    return [{"x": [None], "y": [None], "mode": "markers", "marker": marker, "name": "not running"}]


def _x_axis(clock: _Clock) -> dict[str, Any]:
    return {"type": "date", "range": [stamp(clock.start), stamp(clock.end)], "gridcolor": "#e3ebe5"}


def _power(
    report: EmissionsReport,
    clock: _Clock,
    grid: Sequence[Intensity],
    bands: list[dict[str, Any]],
) -> dict[str, Any]:
    x = [clock.x(index) for index in range(BINS + 1)]
    data: list[dict[str, Any]] = []
    for device in sorted({r.device for r in report.rows}, reverse=True):
        rows = [r for r in report.rows if r.device == device]
        power_w = [energy_j / clock.bin_s for energy_j in clock.spread(rows, lambda r: r.energy_j)]
        colour = _COLOURS.get(device, _OTHER_COLOUR)
        data.append(
            {
                "x": x,
                "y": _rounded([*power_w, power_w[-1]]),
                "name": f"{device} (W)",
                "mode": "lines",
                "stackgroup": "power",
                "line": {"width": 0.5, "color": colour, "shape": "hv"},
                "fillcolor": colour,
                "hovertemplate": "%{y:.3s}W",
            }
        )
    data += [*_intensity(report, clock, grid), *_band_key(bands)]
    layout = _LAYOUT | {
        "xaxis": _x_axis(clock),
        "yaxis": _AXIS | {"title": {"text": "mean power, W"}},
        "yaxis2": _AXIS
        | {
            "title": {"text": "g CO2e per kWh"},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",
        },
        "shapes": bands,
    }
    return {"data": data, "layout": layout}


def _intensity(
    report: EmissionsReport, clock: _Clock, grid: Sequence[Intensity]
) -> list[dict[str, Any]]:
    """What the grid had all the time, and what the metered energy was accounted with."""
    known = [r for r in report.rows if r.intensity_kind == report.kind and report.kind]
    seconds = clock.spread(known, _seconds)
    weighted = clock.spread(known, lambda r: _seconds(r) * (r.intensity_g_per_kwh or 0.0))
    used = [w / s if s > 0 else None for w, s in zip(weighted, seconds, strict=True)]
    lines = [(used, "intensity, accounted (g/kWh)", {"width": 2.5, "color": _BROWN})]
    if grid:
        thin = {"width": 1, "color": _BROWN, "dash": "dot"}
        lines.insert(0, (_on_grid(clock, grid), "intensity of the grid (g/kWh)", thin))
    return [
        {
            "x": [clock.x(index) for index in range(BINS + 1)],
            "y": _rounded([*values, values[-1]]),
            "name": name,
            "yaxis": "y2",
            "mode": "lines",
            "line": line | {"shape": "hv"},
            "hovertemplate": "%{y:.0f} g/kWh",
        }
        for values, name, line in lines
    ]


def _on_grid(clock: _Clock, grid: Sequence[Intensity]) -> list[float | None]:
    """Mean of each bin, by time."""
    sums, seconds = [0.0] * BINS, [0.0] * BINS
    for slot in grid:
        until = min(slot.until or clock.end, clock.end)
        begin = max(slot.moment, clock.start)
        first, last = ((m - clock.start) / clock.span * BINS for m in (begin, until))
        for index in range(int(first), min(math.ceil(last), BINS)):
            both = min(last, index + 1) - max(first, index)
            sums[index] += both * slot.value_g_per_kwh
            seconds[index] += both
    return [total / part if part > 0 else None for total, part in zip(sums, seconds, strict=True)]


def _seconds(row: MeteredRow) -> float:
    return (row.ended_at - row.started_at).total_seconds()


def _cumulative(
    report: EmissionsReport, clock: _Clock, budget_g: float | None, bands: list[dict[str, Any]]
) -> dict[str, Any]:
    grams = [0.0]
    spread = clock.spread(report.rows, lambda r: row_emissions_g(r, report.kind, report.pue))
    for amount in spread:
        grams.append(grams[-1] + amount)
    data: list[dict[str, Any]] = [
        {
            "x": [clock.x(index) for index in range(BINS + 1)],
            "y": _rounded(grams),
            "name": "this job (g)",
            "mode": "lines",
            "fill": "tozeroy",
            "fillcolor": "rgba(11,110,79,.12)",
            "line": {"color": _DARK, "width": 2.5},
            "hovertemplate": "%{y:.4s}g",
        }
    ]
    ends = [clock.end]
    if report.baseline is not None:
        against = report.baseline
        end = against.started_at + timedelta(seconds=against.effort.duration_s)
        ends.append(end)
        data.append(
            {
                "x": [stamp(against.started_at), stamp(end)],
                "y": _rounded([0.0, against.emissions_g]),
                "name": f"full fine-tuning at submission (g, {against.effort.basis})",
                "mode": "lines",
                "line": {"dash": "dash", "color": "#5f6b64"},
                "hovertemplate": "%{y:.4s}g",
            }
        )
    if budget_g is not None:
        data.append(
            {
                "x": [stamp(clock.start), stamp(max(ends))],
                "y": [budget_g, budget_g],
                "name": "budget (g)",
                "mode": "lines",
                "line": {"color": _RED, "dash": "dot", "width": 2},
                "hovertemplate": "%{y:.4s}g",
            }
        )
    layout = _LAYOUT | {
        "xaxis": _x_axis(clock) | {"range": [stamp(clock.start), stamp(max(ends))]},
        "yaxis": _AXIS | {"title": {"text": "g CO2e"}},
        "shapes": bands,
    }
    return {"data": data + _band_key(bands), "layout": layout}


def _rho(
    clock: _Clock, history: Sequence[tuple[datetime, float]], bands: list[dict[str, Any]]
) -> dict[str, Any]:
    last = max(history[-1][0], clock.end)
    points = [*history, (last, history[-1][1])]
    data = {
        "x": [stamp(moment) for moment, _ in points],
        "y": _rounded([rho for _, rho in points]),
        "mode": "lines",
        "line": {"shape": "hv", "color": _DARK, "width": 2},
        "name": "rho",
        "showlegend": True,
        "hovertemplate": "%{y:.3f}",
    }
    layout = _LAYOUT | {
        "xaxis": _x_axis(clock),
        "yaxis": _AXIS | {"range": [0, 1.05], "title": {"text": "share of full FLOPs"}},
        "shapes": bands,
    }
    return {"data": [data, *_band_key(bands)], "layout": layout}


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six digits are more than a chart can show, and half the page's size."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
