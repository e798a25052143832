"""Live providers against a local server that answers with the documented bodies and errors."""

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import httpx
import pytest

from core.carbon.live import LiveSignal
from core.carbon.providers.electricity_maps import ElectricityMaps
from core.carbon.providers.entsoe import Entsoe, open_entsoe
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.great_britain import GreatBritain
from core.carbon.providers.watttime import WattTime
from core.carbon.signal import LiveOptions, open_signal
from core.carbon.static import StaticSignal
from core.errors import InvalidInput, SignalUnavailable
from tests.fixtures.provider_server import ProviderServer

NOW = datetime(2026, 5, 21, 0, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
LATEST = {
    "zone": "DE",
    "carbonIntensity": 322,
    "datetime": "2026-05-21T00:00:00.000Z",
    "updatedAt": "2026-05-20T23:46:00.000Z",
    "isEstimated": False,
    "estimationMethod": None,
    "emissionFactorType": "lifecycle",
}


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    running = ProviderServer()
    yield running
    running.close()


@pytest.fixture
def waits() -> list[float]:
    return []


def fetcher(server: ProviderServer, waits: list[float], name="Provider", **options) -> Fetcher:
    timeout = httpx.Timeout(0.5, connect=2.0)
    return Fetcher(name, server.url, timeout=timeout, sleep=waits.append, **options)


def maps(server, waits) -> ElectricityMaps:
    return ElectricityMaps(
        fetcher(server, waits, "Electricity Maps", headers={"auth-token": "s3cret"})
    )


def test_electricity_maps_as_documented(server, waits):
    server.answer("/carbon-intensity/latest", LATEST)
    slot = maps(server, waits).current("de", NOW)
    assert (slot.value_g_per_kwh, slot.zone, slot.kind, slot.factor) == (
        322.0,
        "DE",
        "average",
        "lifecycle",
    )
    assert slot.moment == datetime(2026, 5, 21, tzinfo=UTC)
    path, query, headers = server.seen[0]
    assert (path, query) == ("/carbon-intensity/latest", {"zone": ["DE"]})
    assert headers["auth-token"] == "s3cret"
    rows = [{"datetime": f"2026-05-21T0{h}:00:00.000Z", "carbonIntensity": 300 + h} for h in (0, 1)]
    server.answer("/carbon-intensity/forecast", {"zone": "DE", "updatedAt": "", "forecast": rows})
    coming = maps(server, waits).forecast("DE", NOW)
    assert [s.value_g_per_kwh for s in coming] == [300, 301]
    assert all(s.is_forecast for s in coming)
    past = [{**LATEST, "datetime": "2026-05-20T23:00:00Z", "isEstimated": True}, LATEST]
    server.answer("/carbon-intensity/history", {"zone": "DE", "history": past})
    told = maps(server, waits).history("DE", NOW - 24 * HOUR, NOW)
    assert [s.is_estimated for s in told] == [True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"carbonIntensity": None}, "no number"),
        ({"carbonIntensity": "322"}, "no number"),
        ({"carbonIntensity": -5}, "cannot be"),
        ({"carbonIntensity": float("nan")}, "cannot be"),
        ({"carbonIntensity": 322000}, "another unit"),
        ({"carbonIntensity": 10**400}, "another unit"),
        ({"zone": "FR"}, "'FR' instead of"),
        ({"datetime": "yesterday"}, "no time"),
        ({"datetime": "2026-05-21T00:00:00"}, "no time zone"),
        ({"datetime": None}, "no time"),
        ({"datetime": "0001-01-01T00:00:00+14:00"}, "no time"),
    ],
)
def test_implausible_values_are_refused_with_a_reason(server, waits, change, said):
    server.answer("/carbon-intensity/latest", {**LATEST, **change})
    with pytest.raises(SignalUnavailable, match=said):
        maps(server, waits).current("DE", NOW)


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (401, {"error": "Invalid auth-token"}, SignalUnavailable, "token is refused"),
        (403, {"error": "not in your plan"}, SignalUnavailable, "does not cover"),
        (404, {"error": "No zone"}, InvalidInput, "does not know zone"),
        (500, {}, SignalUnavailable, "answers 500, 3 times"),
        (503, {}, SignalUnavailable, "answers 503, 3 times"),
        (302, {}, SignalUnavailable, "answers 302"),
        (200, b"<html>maintenance</html>", SignalUnavailable, "without JSON"),
        (200, b"[]", SignalUnavailable, "an object was expected"),
        (200, b"", SignalUnavailable, "without JSON"),
        (200, b"[" * 100_000, SignalUnavailable, "without JSON"),
    ],
)
def test_every_refusal_has_its_reason(server, waits, status, body, error, said):
    server.answer("/carbon-intensity/latest", body, status)
    with pytest.raises(error, match=said) as caught:
        maps(server, waits).current("DE", NOW)
    assert "s3cret" not in str(caught.value)


def test_a_hiccup_is_retried_with_growing_pauses(server, waits):
    server.answer("/carbon-intensity/latest", {}, 502)
    server.answer("/carbon-intensity/latest", {}, 500, then=True)
    server.answer("/carbon-intensity/latest", LATEST, then=True)
    assert maps(server, waits).current("DE", NOW).value_g_per_kwh == 322
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


def test_a_silent_server_is_given_up(server, waits):
    server.answer("/carbon-intensity/latest", LATEST, hang_s=20)
    with pytest.raises(SignalUnavailable, match="did not answer in time"):
        maps(server, waits).current("DE", NOW)


def test_an_answer_that_drips_in_is_given_up(server, waits):
    """Every byte comes in time; the whole answer would take a minute."""
    server.answer("/carbon-intensity/latest", b" " * 600, drip_s=0.1)
    client = ElectricityMaps(fetcher(server, waits, whole_s=0.3))
    with pytest.raises(SignalUnavailable, match="did not answer in time"):
        client.current("DE", NOW)
    assert len(server.seen) == 3


def test_no_server_at_all(waits):
    client = Fetcher("Provider", "http://127.0.0.1:9", sleep=waits.append)
    with pytest.raises(SignalUnavailable, match="cannot be reached"):
        ElectricityMaps(client).current("DE", NOW)


def test_rate_limits_are_honoured_and_not_run_against_again(server, waits):
    client = maps(server, waits)
    server.answer("/carbon-intensity/latest", {}, 429, {"Retry-After": "2"})
    server.answer("/carbon-intensity/latest", LATEST, then=True)
    client.current("DE", NOW)
    assert 2.0 in waits
    server.answer("/carbon-intensity/latest", {}, 429, {"Retry-After": "600"})
    for _ in range(5):
        with pytest.raises(SignalUnavailable, match="not asked again before 20"):
            client.current("DE", NOW)
    assert len(server.seen) == 3


def test_our_own_limit_comes_first(server, waits):
    server.answer("/carbon-intensity/latest", LATEST)
    client = ElectricityMaps(fetcher(server, waits, per_minute=2))
    client.current("DE", NOW)
    client.current("DE", NOW)
    with pytest.raises(SignalUnavailable, match="used up"):
        client.current("DE", NOW)
    assert len(server.seen) == 2


def moer(values, region="CAISO_NORTH", units="lbs_co2_per_mwh", start=NOW - HOUR):
    start = start.replace(minute=0)
    return {
        "data": [
            {"point_time": (start + i * timedelta(minutes=5)).isoformat(), "value": v}
            for i, v in enumerate(values)
        ],
        "meta": {
            "region": region,
            "signal_type": "co2_moer",
            "units": units,
            "data_point_period_seconds": 300,
        },
    }


def test_watttime_as_documented(server, waits):
    server.answer("/login", {"token": "jwt-1"})
    server.answer("/v3/historical", moer([870, 900]))
    server.answer("/v3/forecast", moer([800] * 20, start=NOW))
    client = WattTime(fetcher(server, waits, "WattTime"), "me", "s3cret")
    slot = client.current("CAISO_NORTH", NOW)
    assert slot.value_g_per_kwh == pytest.approx(900 * 0.45359237)
    assert (slot.kind, slot.zone) == ("marginal", "CAISO_NORTH")
    assert (slot.until - slot.moment) == timedelta(minutes=5)
    coming = client.forecast("CAISO_NORTH", NOW)
    assert coming[0].moment <= NOW < coming[0].until
    paths = [path for path, _, _ in server.seen]
    assert paths == ["/login", "/v3/historical", "/v3/forecast"]
    assert server.seen[0][2]["Authorization"].startswith("Basic ")
    assert server.seen[1][2]["Authorization"] == "Bearer jwt-1"
    assert server.seen[1][1]["signal_type"] == ["co2_moer"]


def test_watttime_logs_in_again_when_its_token_has_expired(server, waits):
    server.answer("/login", {"token": "jwt-1"})
    server.answer("/v3/historical", {"error": "expired"}, 401)
    server.answer("/v3/historical", moer([870]), then=True)
    WattTime(fetcher(server, waits), "me", "pw").current("CAISO_NORTH", NOW)
    assert [p for p, _, _ in server.seen].count("/login") == 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (moer([1], units="percentile"), 200, "units 'percentile'"),
        (moer([1], region="PJM_DC"), 200, "region 'PJM_DC'"),
        (moer(["x"]), 200, "no number"),
        (moer([]), 200, "no value"),
        ({"data": [], "meta": None}, 200, "an object was expected"),
        ({"error": "plan"}, 403, "does not cover"),
        ({}, 418, "answers 418"),
    ],
)
def test_watttime_refusals(server, waits, body, status, said):
    server.answer("/login", {"token": "jwt"})
    server.answer("/v3/historical", body, status)
    with pytest.raises(SignalUnavailable, match=said):
        WattTime(fetcher(server, waits), "me", "pw").current("CAISO_NORTH", NOW)


def test_watttime_login_refused_and_region_unknown(server, waits):
    server.answer("/login", {"error": "no"}, 401)
    with pytest.raises(SignalUnavailable, match="refuses the login"):
        WattTime(fetcher(server, waits), "me", "pw").current("CAISO_NORTH", NOW)
    server.answer("/login", {"token": "jwt"})
    server.answer("/v3/historical", {"error": "Invalid region"}, 400)
    with pytest.raises(InvalidInput) as caught:
        WattTime(fetcher(server, waits), "me", "pw").current("ATLANTIS", NOW)
    assert caught.value.param == "green.zone"


def half_hour(begin, actual, forecast=266):
    return {
        "from": f"2026-05-{begin}Z",
        "to": f"2026-05-{begin}Z",
        "intensity": {"forecast": forecast, "actual": actual, "index": "moderate"},
    }


def test_great_britain_as_documented(server, waits):
    client = GreatBritain(fetcher(server, waits))
    server.answer("/intensity", {"data": [half_hour("21T00:00", 263)]})
    slot = client.current("GB", NOW)
    assert (slot.value_g_per_kwh, slot.is_estimated, slot.factor) == (263, False, "direct")
    server.answer("/intensity", {"data": [half_hour("21T00:00", None)]})
    slot = client.current("GB", NOW)
    assert (slot.value_g_per_kwh, slot.is_estimated) == (266, True)
    server.answer(
        "/intensity/2026-05-21T00:20Z/fw48h",
        {"data": [half_hour("21T00:00", None), half_hour("21T00:30", None, 100)]},
    )
    assert [s.value_g_per_kwh for s in client.forecast("GB", NOW)] == [266, 100]
    server.answer(
        "/intensity/2026-05-20T23:21Z/2026-05-21T00:20Z",
        {"data": [half_hour("20T23:00", 200), half_hour("20T23:30", None, None)]},
    )
    told = client.history("GB", NOW - HOUR, NOW)
    assert [s.value_g_per_kwh for s in told] == [200]


def test_great_britain_refusals(server, waits):
    client = GreatBritain(fetcher(server, waits))
    with pytest.raises(InvalidInput, match="GB"):
        client.current("FR", NOW)
    error = {"error": {"code": "400 Bad Request", "message": "Please enter a valid date"}}
    server.answer("/intensity", error, 400)
    with pytest.raises(SignalUnavailable, match="400 Bad Request"):
        client.current("GB", NOW)
    server.answer("/intensity", {"data": []})
    with pytest.raises(SignalUnavailable, match="no current value"):
        client.current("GB", NOW)


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


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def live(server, waits, clock, troubles):
    return LiveSignal(maps(server, waits), on_trouble=troubles.append, clock=clock)


def healthy(server, now, value=300):
    begin = now.replace(minute=0)
    rows = [
        {**LATEST, "datetime": (begin - h * HOUR).isoformat(), "carbonIntensity": value + h}
        for h in range(24, -1, -1)
    ]
    server.answer("/carbon-intensity/history", {"zone": "DE", "history": rows})
    coming = [
        {"datetime": (begin + h * HOUR).isoformat(), "carbonIntensity": value - h}
        for h in range(48)
    ]
    server.answer("/carbon-intensity/forecast", {"zone": "DE", "forecast": coming})


def test_a_thousand_readers_are_one_request(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    healthy(server, NOW)
    for _ in range(1000):
        assert signal.at("DE", NOW).value_g_per_kwh == 300
    assert len(server.seen) == 1
    signal.forecast("DE", NOW, NOW + 24 * HOUR)
    signal.forecast("DE", NOW, NOW + 24 * HOUR)
    assert len(server.seen) == 2
    assert troubles == []


def test_an_outage_of_every_length_has_an_answer_that_says_what_it_is(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    healthy(server, NOW)
    assert not signal.at("DE", NOW).is_estimated
    for path in ("history", "forecast", "latest"):
        server.answer(f"/carbon-intensity/{path}", {}, 503)
    clock.now = NOW + 2 * HOUR
    held = signal.at("DE", clock.now)
    assert (held.value_g_per_kwh, held.is_estimated) == (300, True)
    assert "last known value" in held.source
    clock.now = NOW + 9 * HOUR
    average = signal.at("DE", clock.now)
    assert average.value_g_per_kwh == StaticSignal().at("DE", NOW).value_g_per_kwh
    assert "static average" in average.source
    assert len(troubles) == 2
    spread = signal.series("DE", NOW - HOUR, clock.now)
    assert (spread[0].moment, spread[-1].until) == (NOW - HOUR, clock.now)
    assert all(a.until == b.moment for a, b in pairwise(spread))
    assert min(s.value_g_per_kwh for s in spread) > 0
    # back again, and the gap is filled with what really was
    healthy(server, clock.now, value=200)
    clock.now += timedelta(minutes=2)
    assert signal.at("DE", clock.now).value_g_per_kwh == 200
    assert signal.at("DE", NOW + 5 * HOUR).value_g_per_kwh == 204


def test_a_failure_is_not_repeated_at_once(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    server.answer("/carbon-intensity/history", {"error": "Invalid auth-token"}, 401)
    for _ in range(50):
        assert signal.at("DE", NOW).value_g_per_kwh > 0
    assert len(server.seen) == 1
    assert len(troubles) == 1


def test_nobody_waits_longer_than_the_patience_for_a_request(server, waits):
    """It goes on by itself; whoever asks later has its answer."""
    healthy(server, NOW)
    (answer,) = server.script["/carbon-intensity/history"]
    server.answer("/carbon-intensity/history", answer.body, hang_s=600)
    provider = ElectricityMaps(Fetcher("Electricity Maps", server.url))
    patience = timedelta(seconds=0.05)
    signal = LiveSignal(provider, clock=Clock(NOW), patience=patience)
    average = signal.at("DE", NOW)
    assert average.value_g_per_kwh == StaticSignal().at("DE", NOW).value_g_per_kwh
    assert "has not answered yet" in average.source
    assert "has not answered yet" in signal.at("DE", NOW).source
    server.release.set()
    for thread in threading.enumerate():
        if thread.name == "carbon-signal":
            thread.join(30)
    assert signal.at("DE", NOW).value_g_per_kwh == 300
    assert len(server.seen) == 1, "nobody asked twice"


def test_a_zone_that_was_known_is_no_mistake_of_the_callers(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    healthy(server, NOW)
    signal.at("DE", NOW)
    server.answer("/carbon-intensity/history", {"error": "No zone"}, 404)
    clock.now = NOW + 2 * HOUR
    held = signal.at("DE", clock.now)
    assert held.value_g_per_kwh == 300
    assert "does not know zone" in held.source
    assert len(troubles) == 1


def test_stale_answers_are_refused(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    healthy(server, NOW - 30 * HOUR)
    old = (NOW - 30 * HOUR).isoformat()
    server.answer("/carbon-intensity/latest", {**LATEST, "datetime": old})
    assert "static average" in signal.at("DE", NOW).source
    assert "newest value" in troubles[0]


def test_an_unknown_zone_stays_an_error(server, waits):
    signal = live(server, waits, Clock(NOW), [])
    for _ in range(2):
        with pytest.raises(InvalidInput):
            signal.at("ATLANTIS", NOW)


def test_forecasts_fall_back_to_habits_and_then_to_the_average(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    healthy(server, NOW)
    server.answer("/carbon-intensity/forecast", {"error": "plan"}, 403)
    expected = signal.forecast("DE", NOW, NOW + 12 * HOUR)
    assert (expected[0].moment, expected[-1].until) == (NOW, NOW + 12 * HOUR)
    assert "same time of the last days" in expected[-1].source
    for path in ("history", "latest"):
        server.answer(f"/carbon-intensity/{path}", {}, 500)
    fresh = live(server, waits, clock, troubles)
    flat = fresh.forecast("DE", NOW, NOW + 12 * HOUR)
    assert len({s.value_g_per_kwh for s in flat}) == 1
    assert "static average" in flat[0].source


def test_a_marginal_provider_that_is_away_is_not_mixed_with_the_average(server, waits):
    server.answer("/login", {"token": "jwt"})
    server.answer("/v3/historical", {}, 503)
    provider = WattTime(fetcher(server, waits), "me", "pw")
    slot = LiveSignal(provider, clock=Clock(NOW)).at("CAISO_NORTH", NOW)
    assert slot.kind == "average"
    assert slot.value_g_per_kwh == StaticSignal().at("US-CA", NOW).value_g_per_kwh
    assert "(US-CA)" in slot.source


def test_opening_makes_no_request_and_asks_for_credentials(server):
    for kind in ("electricity_maps", "entsoe", "watttime"):
        with pytest.raises(InvalidInput, match="needs a"):
            open_signal(kind)
        options = LiveOptions(token="t", user="u", password="p", base_url=server.url)
        assert "'t'" not in repr(options)
        open_signal(kind, live=options)
    open_signal("gb", live=LiveOptions(base_url=server.url))
    assert server.seen == []
