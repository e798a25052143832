"""Yearly averages by country and region out of the data files that codecarbon ships; no network.

Sources, as the files themselves state them: countries, Our World in Data / Ember (lifecycle);
states of the USA, EPA eGRID total output emission rate (direct, lbs/MWh); provinces of China,
MEE/NBS (direct); bidding zones of Sweden and Norway, ENTSO-E generation (lifecycle); provinces of
Canada, generation mix. Where a file gives a mix and no intensity, or the impossible intensity 0,
the mix is weighed with the lifecycle factors per source that the package ships
(codecarbon itself counts only fossil sources in Canada, which makes a hydro province 0 g/kWh).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pycountry

from core.carbon.intensity import (
    WORLD,
    Factor,
    Intensity,
    normal_zone,
    unknown_zone,
)
from core.carbon.zones import enclosing_areas
from core.errors import SignalUnavailable
from core.units import pounds_per_mwh_to_g_per_kwh

_CANADA = {
    "alberta": "AB",
    "british columbia": "BC",
    "manitoba": "MB",
    "new brunswick": "NB",
    "newfoundland and labrador": "NL",
    "northwest territories": "NT",
    "nova scotia": "NS",
    "nunavut": "NU",
    "ontario": "ON",
    "prince edward island": "PE",
    "quebec": "QC",
    "saskatchewan": "SK",
    "yukon": "YT",
}
#: names of sources in the mixes -> names in the table of factors
_SOURCES = {
    "biofuel": "biofuel",
    "biomass": "biomass",
    "coal": "coal",
    "gas": "natural_gas",
    "hydro": "hydroelectricity",
    "hydroelectricity": "hydroelectricity",
    "naturalGas": "natural_gas",
    "nuclear": "nuclear",
    "oil": "petroleum",
    "petroleum": "petroleum",
    "solar": "solar",
    "wind": "wind",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Average:
    value_g_per_kwh: float
    factor: Factor
    source: str


class StaticSignal:
    """The year's average of a zone, at every moment: good for totals, useless for shifting.

    Zones: ISO 3166 countries (``FR`` or ``FRA``), states (``US-CA``), provinces (``CA-ON``,
    ``CN-BJ``), bidding zones (``SE-SE1``), ``WORLD``, and grid areas of Electricity Maps
    (``US-CAL-CISO``), for which the enclosing state or country stands in and is named.
    """

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(sorted({*_averages(), *enclosing_areas()}))

    def at(self, zone: str, moment: datetime) -> Intensity:
        return self._value(zone, moment, None)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        return (self._value(zone, start, end),)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        return (self._value(zone, now, end),)

    def _value(self, zone: str, moment: datetime, until: datetime | None) -> Intensity:
        asked = normal_zone(zone)
        averages = _averages()
        area = _canonical(asked)
        if area not in averages:
            area = enclosing_areas().get(asked, area)
        if area not in averages:
            raise unknown_zone(zone, self.zones, "static", meant=_code_of(asked))
        average = averages[area]
        stand_in = "" if area == _canonical(asked) else f"; average of {area} in place of {asked}"
        return Intensity(
            value_g_per_kwh=average.value_g_per_kwh,
            zone=asked,
            factor=average.factor,
            source=average.source + stand_in,
            moment=moment,
            until=until,
            is_estimated=True,
        )


def _canonical(zone: str) -> str:
    """``FRA`` -> ``FR``, ``SE1`` -> ``SE-SE1``; everything else as it is."""
    if len(zone) == 3 and zone[:2] in ("SE", "NO") and zone[2].isdigit():
        return f"{zone[:2]}-{zone}"
    country = pycountry.countries.get(alpha_3=zone) if len(zone) == 3 else None
    return zone if country is None else str(country.alpha_2)


def _code_of(name: str) -> str | None:
    try:
        return str(pycountry.countries.lookup(name).alpha_2)
    except LookupError:
        return None


@cache
def _averages() -> dict[str, _Average]:
    folder = _data_folder()
    factors = json.loads((folder / "carbon_intensity_per_source.json").read_text())
    return {
        **_countries(_read(folder, "global_energy_mix.json"), factors),
        **_states(_read(folder, "*/usa_emissions.json")),
        **_provinces_of_canada(_read(folder, "*/canada_energy_mix.json"), factors),
        **_provinces_of_china(_read(folder, "*/china_provincial_emissions.json")),
        **_nordic_zones(_read(folder, "nordic_emissions.json")),
    }


def _data_folder() -> Path:
    spec = find_spec("codecarbon")  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise SignalUnavailable("The package codecarbon, which ships the averages, is missing.")
    return Path(spec.origin).parent / "data" / "private_infra"


def _read(folder: Path, pattern: str) -> dict[str, Any]:
    """The newest file that matches; regional files lie in folders named by year."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise SignalUnavailable(f"codecarbon {version('codecarbon')} ships no {pattern}.")
    loaded: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return loaded


def _label(what: str, year: object = None) -> str:
    when = "yearly average, year not stated" if year is None else f"average of {year}"
    return f"codecarbon {version('codecarbon')}: {what}, {when}"


def _countries(mixes: dict[str, Any], factors: dict[str, Any]) -> dict[str, _Average]:
    averages = {}
    energy_twh = grams = 0.0
    for iso3, mix in mixes.items():
        what = "Our World in Data / Ember"
        value = mix.get("carbon_intensity")
        if not value:
            what += " generation mix x lifecycle factor per source"
            value = _weigh({name.removesuffix("_TWh"): twh for name, twh in mix.items()}, factors)
        country = pycountry.countries.get(alpha_3=iso3)
        if not value or country is None:
            continue
        averages[str(country.alpha_2)] = _Average(
            value_g_per_kwh=value, factor="lifecycle", source=_label(what, mix["year"])
        )
        energy_twh += mix["total_TWh"]
        grams += mix["total_TWh"] * value
    averages[WORLD] = _Average(
        value_g_per_kwh=grams / energy_twh,
        factor="lifecycle",
        source=_label(
            f"mean of {len(averages)} countries weighed by generation, Our World in Data / Ember",
            max(mix["year"] for mix in mixes.values()),
        ),
    )
    return averages


def _weigh(mix: dict[str, float], factors: dict[str, Any]) -> float:
    """Lifecycle g/kWh of a generation mix; 0 where no source of it is known."""
    known = {name: amount for name, amount in mix.items() if name in _SOURCES}
    total = sum(known.values())
    if total <= 0:
        return 0.0
    return sum(float(factors[_SOURCES[name]]) * amount for name, amount in known.items()) / total


def _states(states: dict[str, Any]) -> dict[str, _Average]:
    source = states.get("_source", {})
    label = _label(source.get("name", "EPA eGRID"), source.get("year"))
    return {
        f"US-{entry['regionCode']}": _Average(
            value_g_per_kwh=pounds_per_mwh_to_g_per_kwh(entry["emissions"]),
            factor="direct",
            source=label,
        )
        for name, entry in states.items()
        if not name.startswith("_") and len(entry["regionCode"]) == 2
    }


def _provinces_of_canada(mixes: dict[str, Any], factors: dict[str, Any]) -> dict[str, _Average]:
    return {
        f"CA-{_CANADA[name]}": _Average(
            value_g_per_kwh=_weigh(mix, factors),
            factor="lifecycle",
            source=_label("provincial generation mix x lifecycle factor per source"),
        )
        for name, mix in mixes.items()
        if name in _CANADA and _weigh(mix, factors) > 0
    }


def _provinces_of_china(document: dict[str, Any]) -> dict[str, _Average]:
    return {
        code: _Average(
            value_g_per_kwh=entry["emission_factor"],
            factor="direct",
            source=_label("MEE/NBS provincial factors", entry["year"]),
        )
        for code, entry in document["data"].items()
    }


def _nordic_zones(document: dict[str, Any]) -> dict[str, _Average]:
    return {
        f"{code[:2]}-{code}": _Average(
            value_g_per_kwh=entry["emission_factor"],
            factor="lifecycle",
            source=_label("ENTSO-E generation x factor per source", entry["year"]),
        )
        for code, entry in document["data"].items()
        if code[:2] in ("SE", "NO") and code[2:].isdigit()
    }
