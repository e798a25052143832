"""Great Britain's signal against a local server: the documented bodies and refusals."""

import pytest

from core.carbon.providers.great_britain import GreatBritain
from core.errors import InvalidInput, SignalUnavailable
from tests.integration.carbon.asking import HOUR, NOW, fetcher


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
