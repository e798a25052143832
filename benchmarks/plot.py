"""A line plot as SVG: no library, readable in a repository's page, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

Points = Sequence[tuple[float, float]]

#: of the whole, and the margins of the plane in it, in pixels
_WIDTH: Final = 760
_HEIGHT: Final = 440
_LEFT: Final = 60
_RIGHT: Final = 190
_TOP: Final = 20
_BOTTOM: Final = 50
_TICKS: Final = 5
#: Okabe and Ito's colours, told apart by the colour-blind too; a second turn is dashed
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")


def line_plot(series: Mapping[str, Points], *, x_label: str, y_label: str) -> str:
    """``series``: name -> points (x, y); those without points are left out."""
    drawn = {name: sorted(points) for name, points in series.items() if points}
    everything = [point for points in drawn.values() for point in points]
    x_range = _range([x for x, _ in everything])
    y_range = _range([y for _, y in everything])
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_axes(x_range, y_range, x_label, y_label),
    ]
    for at, (name, points) in enumerate(drawn.items()):
        parts += _line(at, name, [_place(point, x_range, y_range) for point in points])
    return "\n".join([*parts, "</svg>", ""])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With a margin; 0 to 1 where there is nothing."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _place(
    point: tuple[float, float], x_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[float, float]:
    x_share = (point[0] - x_range[0]) / (x_range[1] - x_range[0])
    y_share = (point[1] - y_range[0]) / (y_range[1] - y_range[0])
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _LEFT + x_share * width, _HEIGHT - _BOTTOM - y_share * height


def _axes(
    x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str
) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for at in range(_TICKS):
        x = x_range[0] + (at + 0.5) / _TICKS * (x_range[1] - x_range[0])
        y = y_range[0] + (at + 0.5) / _TICKS * (y_range[1] - y_range[0])
        px, py = _place((x, y), x_range, y_range)
        parts += [
            f'<path d="M{px:.1f} {_TOP}V{bottom}M{_LEFT} {py:.1f}H{right}" stroke="#ddd"/>',
            f'<text x="{px:.1f}" y="{bottom + 16}" text-anchor="middle">{x:.3g}</text>',
            f'<text x="{_LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:.3g}</text>',
        ]
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    return [
        *parts,
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
        f'<text x="{middle_x}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
        (
            f'<text transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        ),
    ]


def _line(at: int, name: str, places: Points) -> list[str]:
    turn, colour = divmod(at, len(_COLOURS))
    dash = ' stroke-dasharray="6 4"' if turn else ""
    stroke = f'stroke="{_COLOURS[colour]}" stroke-width="2"{dash}'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    y = _TOP + 14 + 18 * at
    x = _WIDTH - _RIGHT + 12
    return [
        f'<path d="{path}" fill="none" {stroke}/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" {stroke}/>' for px, py in places),
        f'<path d="M{x} {y - 4}h24" {stroke}/>',
        f'<text x="{x + 30}" y="{y}">{escape(name)}</text>',
    ]
