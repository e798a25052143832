"""WattTime v3 against a local server: the documented bodies, and every refusal."""

from datetime import timedelta

import pytest

from core.carbon.providers.watttime import WattTime
from core.errors import InvalidInput, SignalUnavailable
from tests.integration.carbon.asking import HOUR, NOW, fetcher


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


def test_watttime_is_asked_for_a_month_at_the_most(server, waits):
    """It refuses longer spans, which would read as a region that it does not know."""
    server.answer("/login", {"token": "jwt-1"})
    server.answer("/v3/historical", moer([870]))
    client = WattTime(fetcher(server, waits), "me", "pw")
    client.history("CAISO_NORTH", NOW - timedelta(days=90), NOW)
    assert server.seen[-1][1]["start"] == [(NOW - timedelta(days=31)).isoformat()]


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
