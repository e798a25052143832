"""A live signal always has an answer and says which: outages, caches, fallbacks."""

import threading
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise

import pytest

from core.carbon.live import LiveSignal
from core.carbon.providers.electricity_maps import ElectricityMaps
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.watttime import WattTime
from core.carbon.signal import LiveOptions, open_signal
from core.carbon.slot_cache import Known, MemoryStore
from core.carbon.static import StaticSignal
from core.errors import InvalidInput
from tests.integration.carbon.asking import HOUR, LATEST, NOW, fetcher, maps


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


def test_an_answer_that_another_process_waits_for_serves_all_as_soon_as_it_is_there(server, waits):
    """Else whoever looked in that moment would count with averages until the next refresh."""
    healthy(server, NOW)
    (answer,) = server.script["/carbon-intensity/history"]
    server.answer("/carbon-intensity/history", answer.body, hang_s=600)
    store = MemoryStore()
    provider = ElectricityMaps(Fetcher("Electricity Maps", server.url))
    asker = LiveSignal(provider, store=store, clock=Clock(NOW), patience=timedelta(seconds=0.05))
    other = LiveSignal(maps(server, waits), store=store, clock=Clock(NOW))
    asker.at("DE", NOW)
    assert "has not answered yet" in other.at("DE", NOW).source
    server.release.set()
    for thread in threading.enumerate():
        if thread.name == "carbon-signal":
            thread.join(30)
    assert other.at("DE", NOW).value_g_per_kwh == 300
    assert len(server.seen) == 1


def test_who_asks_at_the_very_same_moment_asks_once(server, waits):
    """As a thousand jobs do when the hour turns: all have looked before the first has asked."""
    healthy(server, NOW)
    n_jobs = 8
    everybody_has_looked = threading.Barrier(n_jobs)

    class Store(MemoryStore):
        def load(self, key):
            text = super().load(key)
            with suppress(threading.BrokenBarrierError):
                everybody_has_looked.wait(2)
            everybody_has_looked.abort()
            return text

    store, told = Store(), []
    signals = [
        LiveSignal(maps(server, waits), store=store, clock=Clock(NOW)) for _ in range(n_jobs)
    ]
    threads = [
        threading.Thread(target=lambda s=signal: told.append(s.at("DE", NOW))) for signal in signals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == n_jobs
    assert len(server.seen) == 1
    assert [signal.at("DE", NOW).value_g_per_kwh for signal in signals] == [300] * n_jobs
    assert len(server.seen) == 1


@pytest.mark.parametrize("patience", [None, timedelta(minutes=1)])
def test_threads_of_one_process_wait_for_the_same_answer(server, waits, patience):
    """A meter and a plan that look in the same moment: neither counts with a stand-in."""
    healthy(server, NOW)
    (answer,) = server.script["/carbon-intensity/history"]
    server.answer("/carbon-intensity/history", answer.body, hang_s=600)
    provider = ElectricityMaps(Fetcher("Electricity Maps", server.url))
    signal = LiveSignal(provider, clock=Clock(NOW), patience=patience)
    told = []
    threads = [threading.Thread(target=lambda: told.append(signal.at("DE", NOW))) for _ in range(4)]
    threads[0].start()
    while not server.seen:
        threads[0].join(0.01)
    for thread in threads[1:]:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive(), "it waits with the first"
    server.release.set()
    for thread in threads:
        thread.join(30)
    assert [intensity.value_g_per_kwh for intensity in told] == [300] * 4
    assert len(server.seen) == 1


def test_an_asker_that_died_is_not_waited_for_for_long(server, waits):
    clock, store = Clock(NOW), MemoryStore()
    healthy(server, NOW)
    left = Known(asked_at=NOW, trouble="it has not answered yet.", is_pending=True)
    store.save("intensity/ElectricityMaps/recent/DE", left.to_text())
    signal = LiveSignal(maps(server, waits), store=store, clock=clock)
    assert "has not answered yet" in signal.at("DE", NOW).source
    clock.now += timedelta(minutes=1)
    assert signal.at("DE", clock.now).value_g_per_kwh == 300


@pytest.mark.parametrize(
    "change",
    [
        {"datetime": "9999-12-31T23:59:00Z"},
        {"emissionFactorType": ["direct"]},
        {"emissionFactorType": {"a": 1}},
        {"carbonIntensity": 10**400},
        {"carbonIntensity": {"value": 3}},
        {"datetime": {"$date": 1}},
        {"isEstimated": ["yes"]},
    ],
)
def test_no_answer_however_odd_gets_out_of_the_signal(server, waits, change):
    rows = [{**LATEST, **change}]
    server.answer("/carbon-intensity/history", {"zone": "DE", "history": rows})
    server.answer("/carbon-intensity/latest", {**LATEST, **change})
    server.answer("/carbon-intensity/forecast", {"zone": "DE", "forecast": rows})
    signal = live(server, waits, Clock(NOW), [])
    assert signal.at("DE", NOW).value_g_per_kwh > 0
    assert signal.forecast("DE", NOW, NOW + HOUR)[-1].until == NOW + HOUR


def test_a_base_url_that_is_none_is_an_outage(waits):
    provider = ElectricityMaps(Fetcher("Electricity Maps", "http://[::1", sleep=waits.append))
    slot = LiveSignal(provider, clock=Clock(NOW)).at("DE", NOW)
    assert "static average" in slot.source
    assert "InvalidURL" in slot.source


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


@pytest.mark.parametrize("kind", ["electricity_maps", "watttime", "gb", "entsoe"])
def test_the_world_is_its_yearly_average_and_no_provider_is_asked_for_it(kind, server):
    """What a job without a zone is accounted at."""
    options = LiveOptions(token="t", user="u", password="p", base_url=server.url)
    signal = open_signal(kind, live=options)
    expected = StaticSignal().series("WORLD", NOW, NOW + HOUR)
    assert signal.series("WORLD", NOW, NOW + HOUR) == expected
    assert signal.forecast("world", NOW, NOW + HOUR) == expected
    assert signal.at("WORLD", NOW).value_g_per_kwh == expected[0].value_g_per_kwh
    assert server.seen == []


def test_estimates_are_asked_for_again_until_they_were_measured(server, waits):
    clock, troubles = Clock(NOW), []
    signal = live(server, waits, clock, troubles)
    hours = [(NOW - n * HOUR).replace(minute=0) for n in (3, 2, 1)]

    def history(values, *, is_estimated):
        rows = [
            {
                **LATEST,
                "datetime": hour.isoformat(),
                "carbonIntensity": value,
                "isEstimated": is_estimated and hour != hours[0],
            }
            for hour, value in zip(hours, values, strict=True)
        ]
        server.answer("/carbon-intensity/history", {"zone": "DE", "history": rows})

    server.answer("/carbon-intensity/latest", LATEST)
    history([100, 200, 300], is_estimated=True)
    told = signal.series("DE", hours[0], hours[0] + 3 * HOUR)
    assert [slot.value_g_per_kwh for slot in told] == [100, 200, 300]
    assert [slot.is_estimated for slot in told] == [False, True, True]
    history([100, 210, 290], is_estimated=False)
    clock.now += timedelta(minutes=10)
    again = signal.series("DE", hours[0], hours[0] + 3 * HOUR)
    assert [slot.value_g_per_kwh for slot in again] == [100, 210, 290]
    assert not any(slot.is_estimated for slot in again)
    assert troubles == []
