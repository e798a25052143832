"""Electricity Maps against a local server: the documented bodies, and every refusal."""

from datetime import UTC, datetime

import pytest

from core.errors import InvalidInput, SignalUnavailable
from tests.integration.carbon.asking import HOUR, LATEST, NOW, maps


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
