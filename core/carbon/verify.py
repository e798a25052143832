"""Checks a rendered report against the raw rows, in exact arithmetic and by other code.

Nothing of `core.carbon.account`, `baseline` or `compose` is used: sums are taken over fractions, so
that a figure that agrees, agrees to the last digit shown. Taken as stored: the samples, the grid's
values, tokens and FLOPs, what full fine-tuning was measured to take, the hardware's own grams per
hour, and PUE.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from core.carbon.account import OverheadRow
from core.carbon.energy import MeteredEnergy, MeteredRow
from core.carbon.evidence import Evidence

#: half a unit of the sixth digit shown
_HALF_DIGIT = Fraction(1, 2 * 10**6)
#: of the binary arithmetic that made the figure: absolute, and per amount
_HAIR = Fraction(1, 10**8)
_ZERO = Fraction(0)
_J_PER_WH = 3600
_J_PER_KWH = 3_600_000
_WH_PER_KWH = 1000
_S_PER_HOUR = 3600
_MICROS_PER_S = 10**6
#: the range of a measured baseline
_CALIBRATION = (Fraction(95, 100), Fraction(105, 100))
#: the ranges that the report states: +-5 % measured, a factor of two estimated
_LOW = {True: Fraction(95, 100), False: Fraction(1, 2)}
_HIGH = {True: Fraction(105, 100), False: Fraction(2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure of the report as stated and as the raw rows have it."""

    figure: str
    stated: float | None
    exact: Fraction

    @property
    def recomputed(self) -> float:
        return float(self.exact)

    @property
    def agrees(self) -> bool:
        if self.stated is None:
            return False
        error = _HALF_DIGIT + _HAIR + abs(self.exact) * Fraction(1, 10**12)
        return abs(Fraction(self.stated) - self.exact) <= error


def verify(report: dict[str, Any], evidence: Evidence) -> tuple[Check, ...]:
    """Recompute every figure of ``report``, as `core.carbon.report.to_dict` gave it.

    Returns:
        All figures; the report holds if every one agrees.
    """
    full = _full(report, evidence)
    return (
        *verify_spent(report, evidence),
        *([] if full is None else _baseline(report, full)),
        *([] if full is None else _savings(report, evidence, full)),
    )


def verify_spent(report: dict[str, Any], evidence: Evidence) -> tuple[Check, ...]:
    """What the samples alone bear out: all figures but the baseline's and the savings'."""
    rows = evidence.samples
    kind, pue = report["intensity_g_per_kwh"]["kind"], Fraction(report["pue"])
    return (
        *_energy(report, rows, pue),
        *_emissions(report, rows, kind, pue),
        *_parts(report, "devices", "name", rows, lambda r: r.device),
        *_parts(report, "attempts", "n", rows, lambda r: r.attempt),
        *_overheads(report, rows, evidence.overheads),
        *_other_kinds(report, rows, kind, pue),
        *_intervals(report, rows, pue),
        *_work(report, evidence),
        *_sci(report, evidence, kind, pue),
    )


def _wh(rows: Sequence[MeteredRow]) -> Fraction:
    return sum((Fraction(r.energy_j) for r in rows), Fraction(0)) / _J_PER_WH


def _row_g(row: MeteredRow, kind: str | None, pue: Fraction) -> Fraction:
    if row.intensity_g_per_kwh is None or row.intensity_kind != kind:
        return Fraction(0)
    return Fraction(row.energy_j) * pue * Fraction(row.intensity_g_per_kwh) / _J_PER_KWH


def _first(row: MeteredRow) -> MeteredRow:
    """As it was accounted at first."""
    told = row.revised_from or row
    return MeteredEnergy(
        device=row.device,
        started_at=row.started_at,
        ended_at=row.ended_at,
        energy_j=row.energy_j,
        method=row.method,
        intensity_g_per_kwh=told.intensity_g_per_kwh,
        intensity_kind=told.intensity_kind,
    )


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
    revised = [r for r in rows if r.revised_from is not None]
    stated = report["revised"]
    yield Check(
        figure="revised.intervals", stated=stated["intervals"], exact=Fraction(len(revised))
    )
    first = [_first(r) for r in rows]
    figure, exact = "revised.co2e_g_before", _grams(first, kind, pue)
    yield Check(figure=figure, stated=stated["co2e_g_before"], exact=exact)
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
    report: dict[str, Any], rows: Sequence[MeteredRow], spans: Sequence[OverheadRow]
) -> Iterator[Check]:
    """By the share of each row's time that each span takes of it."""
    pue, kind = Fraction(report["pue"]), report["intensity_g_per_kwh"]["kind"]
    stated = {line["name"]: line for line in report["overheads"]}
    for name in sorted({s.kind for s in spans} | set(stated)):
        energy_wh = grams = _ZERO
        for span in (s for s in spans if s.kind == name):
            for row, share in _met(rows, span):
                energy_wh += _energy_wh(row) * share
                grams += _row_g(row, kind, pue) * share
        line = stated.get(name, {})
        figure = f"overheads.{name}"
        yield Check(figure=f"{figure}.energy_wh", stated=line.get("energy_wh"), exact=energy_wh)
        yield Check(figure=f"{figure}.co2e_g", stated=line.get("co2e_g"), exact=grams)


def _met(rows: Sequence[MeteredRow], span: OverheadRow) -> Iterator[tuple[MeteredRow, Fraction]]:
    """Rows that meet the span, and the share of their time inside it."""
    for row in rows:
        both = min(row.ended_at, span.ended_at) - max(row.started_at, span.started_at)
        if both > timedelta(0):
            yield row, Fraction(_micros(both), _micros(row.ended_at - row.started_at))


def _energy_wh(row: MeteredRow) -> Fraction:
    return Fraction(row.energy_j) / _J_PER_WH


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


def _work(report: dict[str, Any], evidence: Evidence) -> Iterator[Check]:
    tokens = Fraction(evidence.trained_tokens)
    yield Check(figure="trained_tokens", stated=report["trained_tokens"], exact=tokens)
    if evidence.spent_flops > 0 and evidence.full_flops > 0:
        share = Fraction(evidence.spent_flops) / Fraction(evidence.full_flops)
        yield Check(figure="flops_share", stated=report["flops_share"], exact=share)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Full:
    """Full fine-tuning from submission on; energy with PUE."""

    wh: Fraction
    #: the part of it that does not go with FLOPs
    fixed_wh: Fraction
    duration_s: Fraction
    intensity: Fraction
    #: grams at the least, as stated, and at the most
    grams: tuple[Fraction, Fraction, Fraction]


def _full(report: dict[str, Any], evidence: Evidence) -> _Full | None:
    """None where the report has no baseline."""
    if report["baseline"] is None:
        return None
    rows, tokens = evidence.samples, evidence.trained_tokens
    if evidence.full_j_per_token is not None and evidence.full_s_per_token is not None and tokens:
        wh, fixed_wh = Fraction(evidence.full_j_per_token) * tokens / _J_PER_WH, Fraction(0)
        duration_s = Fraction(evidence.full_s_per_token) * tokens
        factors = _CALIBRATION
    else:
        ratio = Fraction(evidence.full_flops) / Fraction(evidence.spent_flops)
        spent_wh, held_s = _wh(rows), _held_s(report, rows)
        fixed_s = min(_fixed_s(evidence.overheads), held_s)
        fixed_wh = spent_wh * fixed_s / held_s if held_s else _ZERO
        wh = fixed_wh + (spent_wh - fixed_wh) * ratio
        duration_s = fixed_s + (held_s - fixed_s) * ratio
        ends = (spent_wh, spent_wh * ratio)
        factors = (min(ends) / wh, max(ends) / wh)
    wh *= Fraction(report["pue"])
    intensity = _mean_of_grid(report, evidence, duration_s)
    grams = wh * intensity / _WH_PER_KWH
    low, high = factors
    return _Full(
        wh=wh,
        fixed_wh=fixed_wh * Fraction(report["pue"]),
        duration_s=duration_s,
        intensity=intensity,
        grams=(grams * low, grams, grams * high),
    )


def _fixed_s(spans: Sequence[OverheadRow]) -> Fraction:
    """Of everything beside steps and selections."""
    lengths = (_micros(s.ended_at - s.started_at) for s in spans if s.kind != "selection")
    return Fraction(sum(lengths), _MICROS_PER_S)


def _held_s(report: dict[str, Any], rows: Sequence[MeteredRow]) -> Fraction:
    """Each attempt from its start to its last sample; to its end where it has no sample."""
    total = 0
    for line in report["attempts"]:
        if line["started_at"] is None:
            continue
        ends = [r.ended_at for r in rows if r.attempt == line["n"]]
        if not ends and line["ended_at"] is not None:
            ends = [datetime.fromisoformat(line["ended_at"])]
        if ends:
            total += max(_micros(max(ends) - datetime.fromisoformat(line["started_at"])), 0)
    return Fraction(total, _MICROS_PER_S)


def _mean_of_grid(report: dict[str, Any], evidence: Evidence, duration_s: Fraction) -> Fraction:
    """Over the time that full fine-tuning would have run; beyond the last slot, that one's."""
    grid = evidence.grid
    last = Fraction(grid[-1].intensity_g_per_kwh)
    length = round(duration_s * _MICROS_PER_S)
    begin = datetime.fromisoformat(report["submitted_at"])
    end = begin + timedelta(microseconds=length)
    weighted, covered = Fraction(0), 0
    for slot in grid:
        both = min(slot.ended_at or end, end) - max(slot.started_at, begin)
        if both > timedelta(0):
            weighted += _micros(both) * Fraction(slot.intensity_g_per_kwh)
            covered += _micros(both)
    return (weighted + (length - covered) * last) / length if length else last


def _baseline(report: dict[str, Any], full: _Full) -> Iterator[Check]:
    line = report["baseline"]
    low, grams, high = full.grams
    figures = {"energy_wh": full.wh, "duration_s": full.duration_s}
    figures |= {"intensity_g_per_kwh": full.intensity, "co2e_g": grams}
    for name, exact in figures.items():
        yield Check(figure=f"baseline.{name}", stated=line[name], exact=exact)
    for end, exact in (("low", low), ("high", high)):
        stated = line["co2e_g_range"][end]
        yield Check(figure=f"baseline.co2e_g_range.{end}", stated=stated, exact=exact)


def _savings(report: dict[str, Any], evidence: Evidence, full: _Full) -> Iterator[Check]:
    stated = report["savings"]
    if stated is None:
        return
    rows, pue = evidence.samples, Fraction(report["pue"])
    spent_g = _grams(rows, report["intensity_g_per_kwh"]["kind"], pue)
    low, full_g, high = full.grams
    saved = full_g - spent_g
    used = _wh(rows) * pue / full.wh
    modelled = used
    if evidence.spent_flops > 0 and evidence.full_flops > 0:
        fixed = full.fixed_wh / full.wh
        share = Fraction(evidence.spent_flops) / Fraction(evidence.full_flops)
        modelled = fixed + (1 - fixed) * share
    rho, efficiency = full_g * (1 - modelled), full_g * (modelled - used)
    figures = {
        "co2e_g": (stated["co2e_g"], saved),
        "share": (stated["share"], saved / full_g),
        "share_range.low": (stated["share_range"]["low"], 1 - spent_g / low),
        "share_range.high": (stated["share_range"]["high"], 1 - spent_g / high),
        "split_g.rho": (stated["split_g"]["rho"], rho),
        "split_g.efficiency": (stated["split_g"]["efficiency"], efficiency),
        "split_g.shifting": (stated["split_g"]["shifting"], saved - rho - efficiency),
    }
    for name, (told, exact) in figures.items():
        yield Check(figure=f"savings.{name}", stated=told, exact=exact)


def _sci(
    report: dict[str, Any], evidence: Evidence, kind: str | None, pue: Fraction
) -> Iterator[Check]:
    sci, tokens = report["sci"], evidence.trained_tokens
    operational = _grams(evidence.samples, kind, pue)
    hours = _held_s(report, evidence.samples) / _S_PER_HOUR
    embodied = Fraction(evidence.embodied_g_per_hour or 0) * hours
    yield Check(figure="sci.operational_g", stated=sci["operational_g"], exact=operational)
    yield Check(figure="sci.embodied_g", stated=sci["embodied_g"], exact=embodied)
    whole = operational + embodied
    yield Check(figure="sci.g_per_model", stated=sci["g_per_model"], exact=whole)
    if tokens:
        stated, exact = sci["g_per_1k_trained_tokens"], whole * 1000 / tokens
        yield Check(figure="sci.g_per_1k_trained_tokens", stated=stated, exact=exact)
