"""ENTSO-E Transparency Platform: actual generation per type (A75), weighed with lifecycle factors.

Average of the zone's own generation: imports and exports are not traced. Pumped and other storage
gives back what was generated before, so its output is left out of the mix.

Factors, g CO2-eq/kWh: medians of IPCC AR5 WG III, annex III, table A.III.2 (2014); oil: UK
Parliamentary Office of Science and Technology, note 383 (2011). Lignite, oil shale and peat are
given coal's, coal-derived gas too; waste and "other" 700, as Electricity Maps does for unknown
sources (the mean of coal, gas and oil, rounded). There is no forecast in A75.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import httpx

from core.carbon.intensity import Intensity, normal_zone, unknown_zone
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.port import moment_of, slots_of
from core.errors import SignalUnavailable

BASE_URL = "https://web-api.tp.entsoe.eu"
_COAL, _GAS, _OIL, _UNKNOWN = 820.0, 490.0, 650.0, 700.0
FACTORS_G_PER_KWH: dict[str, float] = {
    "B01": 230.0,  # biomass
    "B02": _COAL,  # lignite
    "B03": _COAL,  # coal-derived gas
    "B04": _GAS,
    "B05": _COAL,  # hard coal
    "B06": _OIL,
    "B07": _COAL,  # oil shale
    "B08": _COAL,  # peat
    "B09": 38.0,  # geothermal
    "B11": 24.0,  # run of river
    "B12": 24.0,  # reservoirs
    "B13": 17.0,  # marine
    "B14": 12.0,  # nuclear
    "B15": 230.0,  # other renewable: mostly biogas
    "B16": 45.0,  # solar: between rooftop (41) and utility (48)
    "B17": _UNKNOWN,  # waste
    "B18": 12.0,  # wind offshore
    "B19": 11.0,  # wind onshore
    "B20": _UNKNOWN,
}
_STORAGE = frozenset({"B10", "B25"})
#: zone -> Energy Identification Code of the country, control area or bidding zone
EIC: dict[str, str] = {
    "AT": "10YAT-APG------L",
    "BA": "10YBA-JPCC-----D",
    "BE": "10YBE----------2",
    "BG": "10YCA-BULGARIA-R",
    "CH": "10YCH-SWISSGRIDZ",
    "CZ": "10YCZ-CEPS-----N",
    "DE": "10Y1001A1001A83F",
    "DK": "10Y1001A1001A65H",
    "DK-DK1": "10YDK-1--------W",
    "DK-DK2": "10YDK-2--------M",
    "EE": "10Y1001A1001A39I",
    "ES": "10YES-REE------0",
    "FI": "10YFI-1--------U",
    "FR": "10YFR-RTE------C",
    "GR": "10YGR-HTSO-----Y",
    "HR": "10YHR-HEP------M",
    "HU": "10YHU-MAVIR----U",
    "IE": "10YIE-1001A00010",
    "IT": "10YIT-GRTN-----B",
    "LT": "10YLT-1001A0008Q",
    "LU": "10YLU-CEGEDEL-NQ",
    "LV": "10YLV-1001A00074",
    "ME": "10YCS-CG-TSO---S",
    "MK": "10YMK-MEPSO----8",
    "NL": "10YNL----------L",
    "NO": "10YNO-0--------C",
    "NO-NO1": "10YNO-1--------2",
    "NO-NO2": "10YNO-2--------T",
    "NO-NO3": "10YNO-3--------J",
    "NO-NO4": "10YNO-4--------9",
    "NO-NO5": "10Y1001A1001A48H",
    "PL": "10YPL-AREA-----S",
    "PT": "10YPT-REN------W",
    "RO": "10YRO-TEL------P",
    "RS": "10YCS-SERBIATSOV",
    "SE": "10YSE-1--------K",
    "SE-SE1": "10Y1001A1001A44P",
    "SE-SE2": "10Y1001A1001A45N",
    "SE-SE3": "10Y1001A1001A46L",
    "SE-SE4": "10Y1001A1001A47J",
    "SI": "10YSI-ELES-----O",
    "SK": "10YSK-SEPS-----K",
}
_STEPS = {
    "PT15M": timedelta(minutes=15),
    "PT30M": timedelta(minutes=30),
    "PT60M": timedelta(hours=1),
    "PT1H": timedelta(hours=1),
}
_RECENT = timedelta(hours=12)
#: what one request may ask for
_LONGEST = timedelta(days=366)
#: fuels report with different delays; a slot counts once those that report at all have reported
_DELAY = timedelta(hours=6)

_Mix = dict[datetime, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Period:
    """Mean power of one fuel over adjoining steps."""

    fuel: str
    begin: datetime
    end: datetime
    step: timedelta
    powers_mw: tuple[float, ...]

    def in_steps_of(self, step: timedelta) -> Iterator[tuple[datetime, float]]:
        """Fuels of one zone report by the hour and by the quarter of it: without hourly ones, three
        quarters of every hour would lack them.
        """
        parts = self.step // step
        for index, power_mw in enumerate(self.powers_mw):
            for part in range(parts):
                yield self.begin + index * self.step + part * step, power_mw


class Entsoe:
    """Needs a security token."""

    def __init__(self, fetcher: Fetcher, token: str) -> None:
        self._fetcher = fetcher
        self._token = token

    def current(self, zone: str, now: datetime) -> Intensity:
        slots = self.history(zone, now - _RECENT, now)
        if not slots:
            raise SignalUnavailable(f"ENTSO-E has no complete mix of {zone} of the last 12 h.")
        return slots[-1]

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        area = EIC.get(normal_zone(zone))
        if area is None:
            raise unknown_zone(zone, EIC, "ENTSO-E")
        answer = self._fetcher.get(
            "/api",
            {
                "securityToken": self._token,
                "documentType": "A75",
                "processType": "A16",
                "in_Domain": area,
                "periodStart": _stamp(start),
                "periodEnd": _stamp(end),
            },
        )
        document = self._document(answer, zone)
        return () if document is None else _intensities(document, normal_zone(zone), area)

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:  # noqa: ARG002
        """None: A75 tells what was generated; the planner then expects the grid's habits."""
        return ()

    def _document(self, answer: httpx.Response, zone: str) -> ET.Element | None:
        """The generation document; None where there is no data for the span."""
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise SignalUnavailable("ENTSO-E refuses the security token.")
        if b"<!DOCTYPE" in answer.content or b"<!ENTITY" in answer.content:
            raise SignalUnavailable(f"ENTSO-E answers {answer.status_code} without a document.")
        try:
            root = ET.fromstring(answer.content)  # noqa: S314  without DTD no entity can expand
        except ET.ParseError:
            raise SignalUnavailable(
                f"ENTSO-E answers {answer.status_code} with broken XML."
            ) from None
        name = _local(root)
        if name == "Acknowledgement_MarketDocument":
            reason = _text(root, "Reason", "text") or "no reason"
            if "No matching data" in reason:
                return None
            raise SignalUnavailable(f"ENTSO-E refuses the request for {zone}: {reason[:200]}")
        if name != "GL_MarketDocument" or answer.status_code != httpx.codes.OK:
            raise SignalUnavailable(f"ENTSO-E answers {answer.status_code} with a {name}.")
        return root


def _intensities(root: ET.Element, zone: str, area: str) -> tuple[Intensity, ...]:
    periods = _periods(root, area)
    step = min((period.step for period in periods), default=timedelta(hours=1))
    mix: _Mix = defaultdict(dict)
    ends: dict[str, datetime] = {}
    for period in periods:
        for moment, power_mw in period.in_steps_of(step):
            mix[moment][period.fuel] = mix[moment].get(period.fuel, 0.0) + power_mw
        ends[period.fuel] = max(ends.get(period.fuel, period.end), period.end)
    newest = max(ends.values(), default=None)
    reporting = {fuel: end for fuel, end in ends.items() if newest and end > newest - _DELAY}
    complete = min(reporting.values(), default=None)
    points = [
        (moment, _weigh(fuels), False)
        for moment, fuels in mix.items()
        if complete is not None and moment < complete and sum(fuels.values()) > 0
    ]
    source = "ENTSO-E generation x IPCC lifecycle factors"
    return slots_of(points, zone=zone, source=source, step=step)


def _periods(root: ET.Element, area: str) -> list[_Period]:
    found: list[_Period] = []
    for series in _children(root, "TimeSeries"):
        told = _text(series, "inBiddingZone_Domain.mRID")
        if told is None:
            continue  # consumption of storage: outBiddingZone_Domain
        unit, fuel = (
            _text(series, "quantity_Measure_Unit.name"),
            _text(series, "MktPSRType", "psrType"),
        )
        if told != area or unit != "MAW":
            raise SignalUnavailable(f"ENTSO-E told area {told!r} in {unit!r}, not {area!r} in MAW.")
        if fuel not in _STORAGE and fuel is not None:
            found += [_period(fuel, period) for period in _children(series, "Period")]
    return found


def _weigh(fuels: dict[str, float]) -> float:
    """Unknown codes count as unknown sources: never as free of carbon."""
    grams = sum(FACTORS_G_PER_KWH.get(fuel, _UNKNOWN) * power for fuel, power in fuels.items())
    return grams / sum(fuels.values())


def _period(fuel: str, period: ET.Element) -> _Period:
    """MW of one fuel. A position that is left out repeats the one before it (curve type A03)."""
    begin = moment_of(_text(period, "timeInterval", "start"), "ENTSO-E")
    end = moment_of(_text(period, "timeInterval", "end"), "ENTSO-E")
    step = _STEPS.get(_text(period, "resolution") or "")
    if step is None:
        raise SignalUnavailable(f"ENTSO-E told resolution {_text(period, 'resolution')!r}.")
    if not begin < end <= begin + _LONGEST:
        raise SignalUnavailable(f"ENTSO-E told a period from {begin:%F %R} to {end:%F %R}.")
    told: dict[int, float] = {}
    for point in _children(period, "Point"):
        try:
            position = int(_text(point, "position") or "")
            power_mw = float(_text(point, "quantity") or "")
        except ValueError:
            raise SignalUnavailable("ENTSO-E told a point without position or quantity.") from None
        if not 0 <= power_mw < 1e6:
            raise SignalUnavailable(f"ENTSO-E told {power_mw} MW of {fuel}.")
        told[position] = power_mw
    powers_mw, power_mw = [], 0.0
    for index in range((end - begin) // step):
        power_mw = told.get(index + 1, power_mw)
        powers_mw.append(power_mw)
    return _Period(fuel=fuel, begin=begin, end=end, step=step, powers_mw=tuple(powers_mw))


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: ET.Element, name: str) -> list[ET.Element]:
    return [child for child in element if _local(child) == name]


def _text(element: ET.Element, *path: str) -> str | None:
    at = element
    for name in path:
        found = _children(at, name)
        if not found:
            return None
        at = found[0]
    return at.text.strip() if at.text else None


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M")


def open_entsoe(token: str, base_url: str = BASE_URL) -> Entsoe:
    # 400 requests a minute are allowed; who exceeds them is banned for ten minutes
    return Entsoe(Fetcher("ENTSO-E", base_url, per_minute=100, pause_s=600.0, secret=token), token)
