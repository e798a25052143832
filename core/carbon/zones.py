"""Zones of live providers that the yearly averages do not list, and the area that stands in.

Electricity Maps cuts some countries into grid areas (https://app.electricitymaps.com/map). A static
average exists for the state or the country around them only; whoever uses it says so.
"""

from __future__ import annotations

from functools import cache

#: area with a yearly average -> zones inside it, prefix first
_INSIDE: dict[str, str] = {
    "US-CA": "US-CAL: BANC CISO IID LDWP TIDC",
    "US-NC": "US-CAR: CPLE CPLW DUK YAD",
    "US-SC": "US-CAR: SC SCEG",
    "US-FL": "US-FLA: FMPP FPC FPL GVL HST JEA NSB SEC TAL TEC",
    "US-NY": "US-NY: NYIS",
    "US-TX": "US-TEX: ERCO",
    "US-TN": "US-TEN: TVA",
    "US-NV": "US-NW: NEVP",
    "US-MT": "US-NW: NWMT WAUW WWA GWA",
    "US-OR": "US-NW: PGE PACW BPAT",
    "US-UT": "US-NW: PACE",
    "US-CO": "US-NW: PSCO WACM",
    "US-ID": "US-NW: IPCO",
    "US-WA": "US-NW: AVA CHPD DOPD GCPD GRID PSEI SCL TPWR",
    "US-AZ": "US-SW: AZPS SRP TEPC WALC",
    "US-NM": "US-SW: PNM",
    "US-KY": "US-MIDW: LGEE",
    "US-MO": "US-MIDW: AECI",
    "US": "US: CENT-SPA CENT-SWPP MIDA-PJM MIDW-MISO NE-ISNE SE-SEPA SE-SOCO SW-EPE",
    "AU": "AU: LH NSW NT QLD SA TAS TAS-CBI TAS-FI TAS-KI VIC WA WA-RI",
    "BR": "BR: CS N NE S",
    "CL": "CL: CHP SEA SEM SEN",
    "DK": "DK: BHM DK1 DK2",
    "ES": "ES: CE CN-FV CN-GC CN-HI CN-IG CN-LP CN-LZ CN-TE IB-FO IB-IZ IB-MA IB-ME ML",
    "FR": "FR: COR",
    "GB": "GB: NIR ORK SHI ZET",
    "GR": "GR: IS",
    "IN": "IN: AN DL EA HP KA MH NE NO PB SO UP UT WE",
    "IT": "IT: CNO CSO NO SAR SIC SO",
    "JP": "JP: CB CG HKD HR KN KY ON SK TH TK",
    "MX": "MX: BC BCS CE NE NO NW OC OR PN",
    "MY": "MY: EM WM",
    "NZ": "NZ: NZA NZC NZST",
    "PH": "PH: LU MI VI",
    "PT": "PT: AC MA",
    "RU": "RU: 1 2 AS EU FE KGD",
    "UA": "UA: CR",
    "CA-NL": "CA-NL: LB NF",
}


@cache
def enclosing_areas() -> dict[str, str]:
    """Zone such as ``US-CAL-CISO`` -> area with a yearly average, such as ``US-CA``."""
    return {
        f"{prefix}-{suffix}": area
        for area, entry in _INSIDE.items()
        for prefix, _, suffixes in [entry.partition(": ")]
        for suffix in suffixes.split()
    }
