"""What all providers share: retries, patience and rate limits, over a local server."""

import pytest

from core.carbon.providers.electricity_maps import ElectricityMaps
from core.carbon.providers.fetch import Fetcher
from core.errors import SignalUnavailable
from tests.integration.carbon.asking import LATEST, NOW, fetcher, maps


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


def test_a_redirect_is_not_followed_with_the_token(server, waits):
    server.answer("/x", {}, 302, {"Location": f"{server.url}/elsewhere"})
    with pytest.raises(SignalUnavailable, match=r"it redirects \(302\), which is not followed"):
        fetcher(server, waits).get("/x")
    assert [path for path, *_ in server.seen] == ["/x"]


def test_a_connection_that_is_cut_in_the_answer_is_tried_again(server, waits):
    server.answer("/x", {"a": 1}, is_cut=True)
    server.answer("/x", {"a": 2}, then=True)
    assert fetcher(server, waits).get("/x").json() == {"a": 2}
