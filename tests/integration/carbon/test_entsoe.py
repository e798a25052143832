"""ENTSO-E against a local server: the documented bodies, and every refusal."""

import logging
from datetime import timedelta

import pytest

from core.carbon.providers.entsoe import Entsoe, open_entsoe
from core.errors import InvalidInput, SignalUnavailable
from tests.integration.carbon.asking import HOUR, NOW, fetcher


def series(fuel, points, *, area="10YFR-RTE------C", unit="MAW", way="in", slots=4, step="PT15M"):
    told = "".join(
        f"<Point><position>{position}</position><quantity>{mw}</quantity></Point>"
        for position, mw in points.items()
    )
    end = NOW.replace(hour=0, minute=0) + slots * timedelta(minutes=15)
    return (
        f"<TimeSeries><{way}BiddingZone_Domain.mRID codingScheme='A01'>{area}"
        f"</{way}BiddingZone_Domain.mRID>"
        f"<quantity_Measure_Unit.name>{unit}</quantity_Measure_Unit.name><curveType>A03</curveType>"
        f"<MktPSRType><psrType>{fuel}</psrType></MktPSRType><Period><timeInterval>"
        f"<start>2026-05-21T00:00Z</start><end>{end:%Y-%m-%dT%H:%MZ}</end></timeInterval>"
        f"<resolution>{step}</resolution>{told}</Period></TimeSeries>"
    )


def document(*parts):
    space = "urn:iec62325.351:tc57wg16:451-6:generationloaddocument:3:0"
    body = f"<GL_MarketDocument xmlns='{space}'>{''.join(parts)}</GL_MarketDocument>"
    return ("<?xml version='1.0'?>" + body).encode()


def acknowledgement(text):
    space = "urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0"
    return (
        f"<Acknowledgement_MarketDocument xmlns='{space}'><Reason><code>999</code>"
        f"<text>{text}</text></Reason></Acknowledgement_MarketDocument>"
    ).encode()


def test_entsoe_weighs_the_mix(server, waits):
    body = document(
        series("B14", {1: 3000}),  # nuclear, told once: repeats
        series("B04", {1: 1000, 3: 3000}),  # gas
        series("B10", {1: 5000}),  # pumped storage is left out
        series("B10", {1: 700}, way="out"),
    )
    server.answer("/api", body)
    told = Entsoe(fetcher(server, waits), "tok").history("FR", NOW - HOUR, NOW)
    quarter = (3000 * 12 + 1000 * 490) / 4000
    half = (3000 * 12 + 3000 * 490) / 6000
    assert [s.value_g_per_kwh for s in told] == pytest.approx([quarter, quarter, half, half])
    assert (told[0].factor, told[0].kind) == ("lifecycle", "average")
    query = server.seen[0][1]
    assert query["in_Domain"] == ["10YFR-RTE------C"]
    assert query["documentType"] == ["A75"]
    assert query["periodStart"] == ["202605202320"]


def test_fuels_that_report_by_the_hour_count_in_every_quarter_of_it(server, waits):
    body = document(
        series("B14", {1: 3000}, step="PT60M"),
        series("B04", {1: 1000, 2: 500, 3: 3000, 4: 0}, step="PT15M"),
    )
    server.answer("/api", body)
    told = Entsoe(fetcher(server, waits), "tok").history("FR", NOW - HOUR, NOW)
    expected = [(3000 * 12 + gas * 490) / (3000 + gas) for gas in (1000, 500, 3000, 0)]
    assert [s.value_g_per_kwh for s in told] == pytest.approx(expected)
    assert {s.until - s.moment for s in told} == {timedelta(minutes=15)}


def test_entsoe_waits_for_fuels_that_report_late(server, waits):
    body = document(series("B14", {1: 3000}, slots=2), series("B04", {1: 1000}, slots=4))
    server.answer("/api", body)
    told = Entsoe(fetcher(server, waits), "tok").history("FR", NOW - HOUR, NOW)
    assert len(told) == 2
    assert told[-1].value_g_per_kwh == pytest.approx((3000 * 12 + 1000 * 490) / 4000)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (document(series("B04", {1: 1}, unit="KWH")), 200, "in 'KWH'"),
        (document(series("B04", {1: 1}, area="10YBE----------2")), 200, "10YBE"),
        (document(series("B04", {1: -7})), 200, "-7"),
        (document(series("B04", {1: "NaN"})), 200, "nan"),
        (document(series("B04", {"x": 1})), 200, "without position"),
        (document(series("B04", {1: 1}, step="P1D")), 200, "resolution 'P1D'"),
        (document(series("B04", {1: 1}, slots=-1)), 200, "a period from"),
        (document(series("B04", {1: 1}, slots=4 * 24 * 400)), 200, "a period from"),
        (document(), 200, "no complete mix"),
        (acknowledgement("No matching data found for Data item"), 200, "no complete mix"),
        (acknowledgement("Invalid query attributes"), 400, "Invalid query attributes"),
        (b"Unauthorized. Missing or invalid security token.", 401, "security token"),
        (b"<html><body>gateway", 200, "broken XML"),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", 200, "without a document"),
        (b"<other/>", 200, "with a other"),
    ],
)
def test_entsoe_refusals(server, waits, body, status, said):
    server.answer("/api", body, status)
    with pytest.raises(SignalUnavailable, match=said):
        Entsoe(fetcher(server, waits), "tok").current("FR", NOW)


def test_entsoe_ban_is_kept_and_the_zone_must_be_known(server, waits):
    client = Entsoe(fetcher(server, waits, pause_s=600.0), "tok")
    server.answer("/api", b"too many", 429)
    for _ in range(3):
        with pytest.raises(SignalUnavailable, match="not asked again before 20"):
            client.current("FR", NOW)
    assert len(server.seen) == 1
    with pytest.raises(InvalidInput, match="ENTSO-E"):
        client.current("US", NOW)


def test_no_token_reaches_the_log(server, caplog):
    server.answer("/api", document(series("B14", {1: 1})))
    caplog.set_level(logging.DEBUG)
    open_entsoe("very-s3cret", server.url).history("FR", NOW - HOUR, NOW)
    assert caplog.records
    assert "very-s3cret" not in caplog.text
