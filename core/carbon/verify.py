"""Checks a rendered report against the raw samples, in exact arithmetic and by other code.

Nothing of `core.carbon.account` is used: sums are taken over fractions, so that a figure that
agrees, agrees to the last digit shown. What no sample can bear out (the baseline's energy, a model;
its intensity; the number of tokens; the embodied grams) is taken as stated, and what follows from
it is recomputed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Protocol

from core.carbon.energy import MeteredRow

#: half a unit of the sixth digit shown
_HALF_DIGIT = Fraction(1, 2 * 10**6)
#: of the binary arithmetic that made the figure: absolute, and per amount
_HAIR = Fraction(1, 10**8)
_J_PER_WH = 3600
_J_PER_KWH = 3_600_000
_WH_PER_KWH = 1000
#: the ranges that the report states: +-5 % measured, a factor of two estimated
_LOW = {True: Fraction(95, 100), False: Fraction(1, 2)}
_HIGH = {True: Fraction(105, 100), False: Fraction(2)}


class Span(Protocol):
    """A time that went into something other than training steps."""

    @property
    def kind(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def ended_at(self) -> datetime: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure of the report as stated and as the raw rows have it.

    ``slack``: what the rounding of other figures, which this one follows from, can amount to.
    """

    figure: str
    stated: float | None
    exact: Fraction
    slack: Fraction = Fraction(0)

    @property
    def recomputed(self) -> float:
        return float(self.exact)

    @property
    def agrees(self) -> bool:
        if self.stated is None:
            return False
        error = _HALF_DIGIT + _HAIR + abs(self.exact) * Fraction(1, 10**12) + self.slack
        return abs(Fraction(self.stated) - self.exact) <= error


def verify(
    report: dict[str, Any], rows: Sequence[MeteredRow], overheads: Sequence[Span] = ()
) -> tuple[Check, ...]:
    """Recompute every figure of ``report`` from ``rows``.

    Args:
        report: as `core.carbon.report.to_dict` gave it.
        rows: every stored sample of the job, all attempts.
        overheads: the times that its ``overheads`` were taken from.

    Returns:
        All figures; the report holds if every one agrees.
    """
    kind, pue = report["intensity_g_per_kwh"]["kind"], Fraction(report["pue"])
    return (
        *_energy(report, rows, pue),
        *_emissions(report, rows, kind, pue),
        *_parts(report, "devices", "name", rows, lambda r: r.device),
        *_parts(report, "attempts", "n", rows, lambda r: r.attempt),
        *_overheads(report, rows, overheads),
        *_other_kinds(report, rows, kind, pue),
        *_intervals(report, rows, pue),
        *_baseline(report),
        *_savings(report, rows, kind, pue),
        *_sci(report, rows, kind, pue),
    )


def _wh(rows: Sequence[MeteredRow]) -> Fraction:
    return sum((Fraction(r.energy_j) for r in rows), Fraction(0)) / _J_PER_WH


def _row_g(row: MeteredRow, kind: str | None, pue: Fraction) -> Fraction:
    if row.intensity_g_per_kwh is None or row.intensity_kind != kind:
        return Fraction(0)
    return Fraction(row.energy_j) * pue * Fraction(row.intensity_g_per_kwh) / _J_PER_KWH


def _grams(rows: Sequence[MeteredRow], kind: str | None, pue: Fraction) -> Fraction:
    return sum((_row_g(r, kind, pue) for r in rows), Fraction(0))


def _energy(report: dict[str, Any], rows: Sequence[MeteredRow], pue: Fraction) -> Iterator[Check]:
    stated, computing_wh = report["energy_wh"], _wh(rows)
    for device in sorted({r.device for r in rows} | set(stated) - {"pue", "total"}):
        mine = _wh([r for r in rows if r.device == device])
        yield Check(figure=f"energy_wh.{device}", stated=stated.get(device), exact=mine)
    yield Check(figure="energy_wh.pue", stated=stated["pue"], exact=computing_wh * (pue - 1))
    yield Check(figure="energy_wh.total", stated=stated["total"], exact=computing_wh * pue)
    measured = _wh([r for r in rows if r.method != "estimate"])
    share = measured / computing_wh if computing_wh else Fraction(0)
    yield Check(figure="measured_share", stated=report["measured_share"], exact=share)
    unknown = _wh([r for r in rows if r.intensity_g_per_kwh is None])
    figure = "unaccounted.energy_wh"
    yield Check(figure=figure, stated=report["unaccounted"]["energy_wh"], exact=unknown)


def _emissions(
    report: dict[str, Any], rows: Sequence[MeteredRow], kind: str | None, pue: Fraction
) -> Iterator[Check]:
    yield Check(figure="co2e_g", stated=report["co2e_g"], exact=_grams(rows, kind, pue))
    card = report["co2_eq_emissions"]["emissions"]
    figure = "co2_eq_emissions.emissions"
    yield Check(figure=figure, stated=card, exact=_grams(rows, kind, pue))
    for end, factor in (("low", _LOW), ("high", _HIGH)):
        exact = sum(
            (_row_g(r, kind, pue) * factor[r.method != "estimate"] for r in rows), Fraction(0)
        )
        yield Check(figure=f"co2e_g_range.{end}", stated=report["co2e_g_range"][end], exact=exact)
    known_wh = _wh([r for r in rows if r.intensity_kind == kind and kind is not None])
    if known_wh:
        mean = _grams(rows, kind, Fraction(1)) * _WH_PER_KWH / known_wh
        stated = report["intensity_g_per_kwh"]["mean"]
        yield Check(figure="intensity_g_per_kwh.mean", stated=stated, exact=mean)


def _parts(
    report: dict[str, Any],
    group: str,
    label: str,
    rows: Sequence[MeteredRow],
    key: Callable[[MeteredRow], str | int],
) -> Iterator[Check]:
    """Energy and grams of every line of one of the report's lists."""
    pue, kind = Fraction(report["pue"]), report["intensity_g_per_kwh"]["kind"]
    stated = {line[label]: line for line in report[group]}
    for part in sorted({key(r) for r in rows} | set(stated), key=str):
        mine = [r for r in rows if key(r) == part]
        line = stated.get(part, {})
        name = f"{group}.{part}"
        yield Check(figure=f"{name}.energy_wh", stated=line.get("energy_wh"), exact=_wh(mine))
        grams = _grams(mine, kind, pue)
        yield Check(figure=f"{name}.co2e_g", stated=line.get("co2e_g"), exact=grams)


def _overheads(
    report: dict[str, Any], rows: Sequence[MeteredRow], spans: Sequence[Span]
) -> Iterator[Check]:
    """By the share of each row's time that each span takes of it."""
    pue, kind = Fraction(report["pue"]), report["intensity_g_per_kwh"]["kind"]
    stated = {line["name"]: line for line in report["overheads"]}
    for name in sorted({s.kind for s in spans} | set(stated)):
        energy_wh = grams = Fraction(0)
        for span in (s for s in spans if s.kind == name):
            for row in rows:
                both = min(row.ended_at, span.ended_at) - max(row.started_at, span.started_at)
                if both > timedelta(0):
                    share = Fraction(_micros(both), _micros(row.ended_at - row.started_at))
                    energy_wh += Fraction(row.energy_j) * share / _J_PER_WH
                    grams += _row_g(row, kind, pue) * share
        line = stated.get(name, {})
        figure = f"overheads.{name}"
        yield Check(figure=f"{figure}.energy_wh", stated=line.get("energy_wh"), exact=energy_wh)
        yield Check(figure=f"{figure}.co2e_g", stated=line.get("co2e_g"), exact=grams)


def _micros(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def _other_kinds(
    report: dict[str, Any], rows: Sequence[MeteredRow], kind: str | None, pue: Fraction
) -> Iterator[Check]:
    stated = {line["name"]: line for line in report["other_kinds"]}
    found = {r.intensity_kind for r in rows if r.intensity_kind not in (None, kind)}
    for name in sorted({str(n) for n in found} | set(stated)):
        mine = [r for r in rows if r.intensity_kind == name]
        line = stated.get(name, {})
        figure = f"other_kinds.{name}"
        yield Check(figure=f"{figure}.energy_wh", stated=line.get("energy_wh"), exact=_wh(mine))
        grams = _grams(mine, name, pue)
        yield Check(figure=f"{figure}.co2e_g", stated=line.get("co2e_g"), exact=grams)


def _intervals(
    report: dict[str, Any], rows: Sequence[MeteredRow], pue: Fraction
) -> Iterator[Check]:
    """An interval holds the rows of its attempt, device, method and intensity that begin in it."""
    groups: dict[tuple[Any, ...], list[MeteredRow]] = {}
    for row in sorted(rows, key=lambda r: r.started_at):
        value = (row.intensity_g_per_kwh, row.intensity_source)
        groups.setdefault((row.attempt, row.device, row.method, *value), []).append(row)
    starts = {key: [r.started_at for r in group] for key, group in groups.items()}
    for number, line in enumerate(report["intervals"]):
        value = (line["intensity_g_per_kwh"], line["source"])
        key = (line["attempt"], line["device"], line["method"], *value)
        begin, end = (datetime.fromisoformat(line[name]) for name in ("started_at", "ended_at"))
        begun = starts.get(key, [])
        # at least what begins with it: an interval may have no length
        until = max(bisect_left(begun, end), bisect_right(begun, begin))
        mine = groups.get(key, [])[bisect_left(begun, begin) : until]
        name = f"intervals.{number}"
        yield Check(figure=f"{name}.energy_wh", stated=line["energy_wh"], exact=_wh(mine))
        if line["co2e_g"] is not None:
            grams = _grams(mine, line["kind"], pue)
            yield Check(figure=f"{name}.co2e_g", stated=line["co2e_g"], exact=grams)


def _baseline(report: dict[str, Any]) -> Iterator[Check]:
    """Its grams follow from its energy and intensity, which are modelled and taken as stated."""
    line = report["baseline"]
    if line is None:
        return
    kwh, intensity = (
        Fraction(line["energy_wh"]) / _WH_PER_KWH,
        Fraction(line["intensity_g_per_kwh"]),
    )
    slack = _HALF_DIGIT * (kwh + intensity / _WH_PER_KWH)
    yield Check(figure="baseline.co2e_g", stated=line["co2e_g"], exact=kwh * intensity, slack=slack)


def _savings(
    report: dict[str, Any], rows: Sequence[MeteredRow], kind: str | None, pue: Fraction
) -> Iterator[Check]:
    savings, baseline = report["savings"], report["baseline"]
    if savings is None or baseline is None:
        return
    grams, full_g = _grams(rows, kind, pue), Fraction(baseline["co2e_g"])
    full_wh, spent_wh = Fraction(baseline["energy_wh"]), _wh(rows) * pue
    ratio = spent_wh / full_wh
    ratio_slack = _HALF_DIGIT * ratio / full_wh
    saved = full_g - grams
    split = savings["split_g"]
    yield Check(figure="savings.co2e_g", stated=savings["co2e_g"], exact=saved, slack=_HALF_DIGIT)
    yield Check(
        figure="savings.share",
        stated=savings["share"],
        exact=saved / full_g,
        slack=_HALF_DIGIT * grams / full_g**2,
    )
    stated_share = report["flops_share"]
    share = ratio if stated_share is None else Fraction(stated_share)
    share_slack = _HALF_DIGIT * (1 + full_g) + ratio_slack * full_g
    parts = {"rho": full_g * (1 - share), "efficiency": full_g * (share - ratio)}
    for name, exact in parts.items():
        figure = f"savings.split_g.{name}"
        yield Check(figure=figure, stated=split[name], exact=exact, slack=share_slack)
    yield Check(
        figure="savings.split_g.shifting",
        stated=split["shifting"],
        exact=saved - Fraction(split["rho"]) - Fraction(split["efficiency"]),
        slack=3 * _HALF_DIGIT,
    )


def _sci(
    report: dict[str, Any], rows: Sequence[MeteredRow], kind: str | None, pue: Fraction
) -> Iterator[Check]:
    sci, tokens = report["sci"], report["trained_tokens"]
    operational = _grams(rows, kind, pue)
    grams = operational + Fraction(sci["embodied_g"])
    yield Check(figure="sci.operational_g", stated=sci["operational_g"], exact=operational)
    yield Check(figure="sci.g_per_model", stated=sci["g_per_model"], exact=grams, slack=_HALF_DIGIT)
    if tokens:
        yield Check(
            figure="sci.g_per_1k_trained_tokens",
            stated=sci["g_per_1k_trained_tokens"],
            exact=grams * 1000 / tokens,
            slack=_HALF_DIGIT * 1000 / tokens,
        )
