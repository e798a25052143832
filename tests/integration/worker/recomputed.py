"""A report's figures from its raw rows alone, by the formulas of the documentation: nothing of
`core.carbon` is used, and sums are taken over fractions.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

#: of the hardware's own footprint
G_PER_HOUR = 7.2
#: the grid's value changes every quarter of a second: 100, 113.3, 126.6, ... g/kWh
GRID = tuple(100 + 13.3 * (number % 7) for number in range(4_000))

Figures = dict[tuple[Any, ...], Any]


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Figures:
    """Every number of the JSON with the keys that lead to it."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return {path: value} if is_number else {}
    return {
        key: found for name, inner in items for key, found in numbers(inner, (*path, name)).items()
    }


def recomputed(told: dict[str, Any], evidence: dict[str, Any]) -> Figures:
    """The same numbers from the raw rows alone, by the formulas of the documentation."""
    rows = evidence["samples"]
    pue, tokens = Fraction(told["pue"]), evidence["trained_tokens"]
    joules = sum(Fraction(row["energy_j"]) for row in rows)
    grams = sum(_grams(row) for row in rows)
    hours = _held_s(told, rows) / 3600
    full_j, full_s, low, high = _full_effort(told, evidence)
    mean = _grid_mean(told, evidence, full_s)
    full_g = full_j * pue * mean / 3_600_000
    share = Fraction(evidence["spent_flops"]) / Fraction(evidence["full_flops"])
    embodied = Fraction(G_PER_HOUR) * hours
    fixed = _fixed_j(told, evidence) / full_j
    model, used = fixed + (1 - fixed) * share, joules / full_j
    figures: Figures = {
        ("pue",): Fraction(12, 10),
        ("energy_wh", "gpu"): Fraction(0),
        ("energy_wh", "pue"): joules * (pue - 1) / 3600,
        ("energy_wh", "total"): joules * pue / 3600,
        ("measured_share",): sum(
            Fraction(row["energy_j"]) for row in rows if row["method"] != "estimate"
        )
        / joules,
        ("co2e_g",): grams * pue,
        ("co2e_g_range", "low"): sum(_grams(row) * _factor(row, "low") for row in rows) * pue,
        ("co2e_g_range", "high"): sum(_grams(row) * _factor(row, "high") for row in rows) * pue,
        ("intensity_g_per_kwh", "mean"): grams * 3_600_000 / joules,
        ("unaccounted", "energy_wh"): Fraction(0),
        ("revised", "intervals"): 0,
        ("revised", "co2e_g_before"): grams * pue,
        ("baseline", "energy_wh"): full_j * pue / 3600,
        ("baseline", "duration_s"): full_s,
        ("baseline", "intensity_g_per_kwh"): mean,
        ("baseline", "co2e_g"): full_g,
        ("baseline", "co2e_g_range", "low"): full_g * low,
        ("baseline", "co2e_g_range", "high"): full_g * high,
        ("savings", "co2e_g"): full_g - grams * pue,
        ("savings", "share"): 1 - grams * pue / full_g,
        ("savings", "share_range", "low"): 1 - grams * pue / (full_g * low),
        ("savings", "share_range", "high"): 1 - grams * pue / (full_g * high),
        ("savings", "split_g", "rho"): full_g * (1 - model),
        ("savings", "split_g", "efficiency"): full_g * (model - used),
        ("savings", "split_g", "shifting"): full_g - grams * pue - full_g * (1 - used),
        ("trained_tokens",): tokens,
        ("flops_share",): share,
        ("sci", "operational_g"): grams * pue,
        ("sci", "embodied_g"): embodied,
        ("sci", "g_per_model"): grams * pue + embodied,
        ("sci", "g_per_1k_trained_tokens"): (grams * pue + embodied) * 1000 / tokens,
        ("co2_eq_emissions", "emissions"): grams * pue,
    }
    for group, label, key in (("devices", "name", "device"), ("attempts", "n", "attempt")):
        for number, line in enumerate(told[group]):
            mine = [row for row in rows if row[key] == line[label]]
            figures |= _line((group, number), mine, pue)
            if group == "devices":
                figures["energy_wh", line["name"]] = figures[group, number, "energy_wh"]
            else:
                figures[group, number, "n"] = number + 1
    for number, line in enumerate(told["overheads"]):
        spans = [span for span in evidence["overheads"] if span["kind"] == line["name"]]
        parts = [
            {**row, "energy_j": Fraction(row["energy_j"]) * _inside(row, span)}
            for span in spans
            for row in rows
        ]
        figures |= _line(("overheads", number), parts, pue)
    ordered = sorted(
        rows, key=lambda row: (_moment(row["started_at"]), row["attempt"], row["device"])
    )
    for number, row in enumerate(ordered):
        figures |= _line(("intervals", number), [row], pue)
        figures["intervals", number, "attempt"] = row["attempt"]
        figures["intervals", number, "intensity_g_per_kwh"] = row["intensity_g_per_kwh"]
    return {path: Fraction(value) for path, value in figures.items()}


def _line(path: tuple[Any, ...], rows: list[dict[str, Any]], pue: Fraction) -> Figures:
    joules = sum((Fraction(row["energy_j"]) for row in rows), Fraction(0))
    grams = sum((_grams(row) for row in rows), Fraction(0))
    return {(*path, "energy_wh"): joules / 3600, (*path, "co2e_g"): grams * pue}


def _grams(row: dict[str, Any]) -> Fraction:
    return Fraction(row["energy_j"]) * Fraction(row["intensity_g_per_kwh"]) / 3_600_000


def _factor(row: dict[str, Any], end: str) -> Fraction:
    if row["method"] == "estimate":
        return {"low": Fraction(1, 2), "high": Fraction(2)}[end]
    return {"low": Fraction(95, 100), "high": Fraction(105, 100)}[end]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _seconds(span: timedelta) -> Fraction:
    return Fraction(span // timedelta(microseconds=1), 10**6)


def _inside(row: dict[str, Any], span: dict[str, Any]) -> Fraction:
    begin, end = _moment(row["started_at"]), _moment(row["ended_at"])
    both = min(end, _moment(span["ended_at"])) - max(begin, _moment(span["started_at"]))
    return _seconds(max(both, timedelta(0))) / _seconds(end - begin)


def _held_s(told: dict[str, Any], rows: list[dict[str, Any]]) -> Fraction:
    """Every attempt from its start to its last sample."""
    return sum(
        (
            _seconds(
                max(_moment(row["ended_at"]) for row in rows if row["attempt"] == attempt["n"])
                - _moment(attempt["started_at"])
            )
            for attempt in told["attempts"]
        ),
        Fraction(0),
    )


def _full_effort(
    told: dict[str, Any], evidence: dict[str, Any]
) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Joules, seconds, and the ends of the range as shares of them."""
    if evidence["full_j_per_token"] is not None:
        assert (evidence["full_j_per_token"], evidence["full_s_per_token"]) == (0.4567, 0.0123)
        tokens = evidence["trained_tokens"]
        spread = Fraction(5, 100)
        return (
            Fraction(0.4567) * tokens,
            Fraction(0.0123) * tokens,
            1 - spread,
            1 + spread,
        )
    ratio = Fraction(evidence["full_flops"]) / Fraction(evidence["spent_flops"])
    joules = sum((Fraction(row["energy_j"]) for row in evidence["samples"]), Fraction(0))
    held_s = _held_s(told, evidence["samples"])
    fixed_s = _fixed_s(told, evidence)
    full_j = joules * (fixed_s + (held_s - fixed_s) * ratio) / held_s
    return (
        full_j,
        fixed_s + (held_s - fixed_s) * ratio,
        joules / full_j,
        joules * ratio / full_j,
    )


def _fixed_s(told: dict[str, Any], evidence: dict[str, Any]) -> Fraction:
    """What full fine-tuning takes as well: all overheads but selections."""
    spans = [span for span in evidence["overheads"] if span["kind"] != "selection"]
    lengths = (_seconds(_moment(s["ended_at"]) - _moment(s["started_at"])) for s in spans)
    return min(sum(lengths, Fraction(0)), _held_s(told, evidence["samples"]))


def _fixed_j(told: dict[str, Any], evidence: dict[str, Any]) -> Fraction:
    """At the mean power; 0 where full steps were measured."""
    if evidence["full_j_per_token"] is not None:
        return Fraction(0)
    joules = sum((Fraction(row["energy_j"]) for row in evidence["samples"]), Fraction(0))
    return joules * _fixed_s(told, evidence) / _held_s(told, evidence["samples"])


def _grid_mean(told: dict[str, Any], evidence: dict[str, Any], full_s: Fraction) -> Fraction:
    """The trace itself, from the submission on, weighted by time."""
    begin = _moment(told["submitted_at"])
    end = begin + timedelta(microseconds=round(full_s * 10**6))
    weighted = Fraction(0)
    for slot in evidence["grid"]:
        both = min(end, _moment(slot["ended_at"])) - max(begin, _moment(slot["started_at"]))
        assert both > timedelta(0)
        weighted += _seconds(both) * Fraction(slot["intensity_g_per_kwh"])
    assert {slot["intensity_g_per_kwh"] for slot in evidence["grid"]} <= set(GRID)
    return weighted / _seconds(end - begin)
