"""The shared cache of live signals: seen by every process, and never a reason to fail."""

from datetime import UTC, datetime, timedelta

from core.carbon.intensity import Intensity
from core.carbon.live import LiveSignal
from core.errors import SignalUnavailable
from core.jobs.database import Database, open_database
from core.jobs.signal_texts import SignalTexts

NOW = datetime(2026, 5, 21, 0, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Provider:
    """Counts requests; one slot that is in force."""

    def __init__(self) -> None:
        self.requests = 0

    def current(self, zone, now):
        self.requests += 1
        return Intensity(
            value_g_per_kwh=123.0, zone=zone, source="test", moment=now - HOUR, until=now + HOUR
        )

    def history(self, zone, start, end):
        return ()

    def forecast(self, zone, now):
        raise SignalUnavailable("no plan")


def test_texts_are_kept_and_replaced(database: Database) -> None:
    texts = SignalTexts(database)
    assert texts.load("a") is None
    texts.save("a", "one")
    texts.save("a", "two")
    texts.save("b", "three")
    assert (texts.load("a"), texts.load("b")) == ("two", "three")


def test_many_processes_make_one_request(database: Database) -> None:
    provider = Provider()
    for _ in range(20):
        signal = LiveSignal(provider, store=SignalTexts(database), clock=lambda: NOW)
        assert signal.at("FR", NOW).value_g_per_kwh == 123
        assert signal.forecast("FR", NOW, NOW + 3 * HOUR)[0].value_g_per_kwh == 123
    assert provider.requests == 1


def test_a_database_that_is_away_costs_only_the_cache(tmp_path) -> None:
    broken = open_database(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")
    signal = LiveSignal(Provider(), store=SignalTexts(broken), clock=lambda: NOW)
    assert signal.at("FR", NOW).value_g_per_kwh == 123
    broken.dispose()


def test_only_one_of_many_swaps_the_text_that_all_have_seen(database: Database) -> None:
    texts = SignalTexts(database)
    assert texts.swap("z", None, "first")
    assert not texts.swap("z", None, "second")
    assert not texts.swap("z", "other", "second")
    assert texts.load("z") == "first"
    assert texts.swap("z", "first", "second")
    assert texts.load("z") == "second"
