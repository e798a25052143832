"""Static averages and replayed traces."""

import json
import math
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.carbon.signal import StaticSignal, TraceSignal, open_signal
from core.errors import InvalidInput, SignalUnavailable

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


def mixes():
    folder = Path(find_spec("codecarbon").origin).parent / "data" / "private_infra"
    return json.loads((folder / "global_energy_mix.json").read_text())


def write(folder: Path, name: str, rows: list[str]) -> Path:
    file = folder / name
    file.write_text("zone,timestamp_utc,gco2eq_per_kwh\n" + "\n".join(rows) + "\n")
    return file


def hourly(start: datetime, values, zone="XX") -> list[str]:
    return [
        f"{zone},{(start + i * HOUR).isoformat()},{value}"
        for i, value in enumerate(values)
        if value is not None
    ]


def range_of(days: int) -> list[float]:
    """Different in every hour and inside the accepted range."""
    return [hour / 10 for hour in range(days * 24)]


def hours_into(start: datetime, moment: datetime) -> float:
    return ((moment - start) // HOUR) / 10


@pytest.mark.parametrize("zone", ["FR", "FRA", " fr "])
def test_a_country_has_the_value_of_the_shipped_file(zone):
    value = StaticSignal().at(zone, NOW)
    assert value.value_g_per_kwh == mixes()["FRA"]["carbon_intensity"]
    assert (value.kind, value.factor, value.is_estimated) == ("average", "lifecycle", True)
    assert "2023" in value.source


def test_states_are_converted_from_pounds():
    # 394.769 lbs/MWh in eGRID2023; 453.59237 g a pound
    california = StaticSignal().at("US-CA", NOW)
    assert california.value_g_per_kwh == pytest.approx(394.769 * 0.45359237)
    assert california.factor == "direct"


def test_a_grid_area_takes_its_state_and_says_so():
    signal = StaticSignal()
    area = signal.at("US-CAL-CISO", NOW)
    assert area.value_g_per_kwh == signal.at("US-CA", NOW).value_g_per_kwh
    assert area.zone == "US-CAL-CISO"
    assert "average of US-CA in place of US-CAL-CISO" in area.source


def test_no_zone_is_free_of_carbon():
    signal = StaticSignal()
    values = {zone: signal.at(zone, NOW).value_g_per_kwh for zone in signal.zones}
    assert len(values) > 300
    # the cleanest factor in the package is 20 g/kWh (Lesotho, hydro)
    assert min(values.values()) >= 20
    assert max(values.values()) < 1500


def test_the_world_is_weighed_by_generation():
    rows = [m for m in mixes().values() if m["carbon_intensity"]]
    mean = sum(m["carbon_intensity"] * m["total_TWh"] for m in rows) / sum(
        m["total_TWh"] for m in rows
    )
    assert StaticSignal().at("WORLD", NOW).value_g_per_kwh == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(
    ("zone", "hint"), [("France", "FR"), ("US-CALI", "US-CA"), ("XX", ""), ("", "")]
)
def test_an_unknown_zone_is_refused_with_close_matches(zone, hint):
    with pytest.raises(InvalidInput) as caught:
        StaticSignal().at(zone, NOW)
    assert caught.value.param == "green.zone"
    assert hint in caught.value.message


def test_a_static_series_is_one_slot():
    (slot,) = StaticSignal().series("DE", NOW, NOW + 5 * HOUR)
    assert (slot.moment, slot.until) == (NOW, NOW + 5 * HOUR)


def test_a_year_replays_by_month_day_and_hour(tmp_path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    write(tmp_path, "xx.csv", hourly(start, range_of(366)))
    signal = TraceSignal.load(tmp_path)
    here = signal.at("xx", NOW)
    assert here.value_g_per_kwh == hours_into(start, datetime(2024, 3, 1, 12, tzinfo=UTC))
    assert (here.moment, here.until) == (NOW.replace(minute=0), NOW.replace(minute=0) + HOUR)
    assert "replayed from 2024" in here.source
    assert not here.is_estimated


def test_29_february_of_a_leap_year_falls_on_the_28th(tmp_path):
    start = datetime(2023, 1, 1, tzinfo=UTC)
    write(tmp_path, "xx.csv", hourly(start, range_of(365)))
    value = TraceSignal.load(tmp_path).at("XX", datetime(2028, 2, 29, 5, tzinfo=UTC))
    assert value.value_g_per_kwh == hours_into(start, datetime(2023, 2, 28, 5, tzinfo=UTC))


def test_a_short_trace_repeats_in_whole_days(tmp_path):
    start = datetime(2024, 6, 1, tzinfo=UTC)
    write(tmp_path, "xx.csv", hourly(start, range(50)))  # two days and two hours
    signal = TraceSignal.load(tmp_path)
    assert signal.at("XX", start + 49 * HOUR).value_g_per_kwh == 49
    assert signal.at("XX", start + 50 * HOUR).value_g_per_kwh == 2
    assert signal.at("XX", NOW).value_g_per_kwh % 24 == NOW.hour


def test_a_missing_hour_takes_the_nearest_day_and_says_so(tmp_path):
    start = datetime(2024, 6, 1, tzinfo=UTC)
    values = [float(i) for i in range(72)]
    values[24 + 5] = None
    write(tmp_path, "xx.csv", hourly(start, values))
    slot = TraceSignal.load(tmp_path).at("XX", start + 29 * HOUR)
    assert (slot.value_g_per_kwh, slot.is_estimated) == (5, True)
    assert "1 day(s) earlier" in slot.source


def test_a_hole_of_weeks_is_unavailable_and_never_zero(tmp_path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = hourly(start, [100] * 24) + hourly(start + timedelta(days=40), [100] * 24)
    write(tmp_path, "xx.csv", rows)
    with pytest.raises(SignalUnavailable, match="within 7 days"):
        TraceSignal.load(tmp_path).at("XX", start + timedelta(days=20))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("XX,2024-01-01T02:00Z,-1", "gco2eq_per_kwh"),
        ("XX,2024-01-01T02:00Z,nan", "gco2eq_per_kwh"),
        ("XX,2024-01-01T02:00Z,", "gco2eq_per_kwh"),
        ("XX,2024-01-01T02:00Z,870000", "gco2eq_per_kwh"),
        ("XX,yesterday,1", "timestamp_utc"),
        ("XX,2024-01-01T02:00Z", "3 columns"),
        (",2024-01-01T02:00Z,5", "zone is empty"),
        ("XX,2024-01-01T01:00Z,7", "another value"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    write(tmp_path, "bad.csv", [*hourly(start, [1, 2]), row])
    with pytest.raises(InvalidInput) as caught:
        TraceSignal.load(tmp_path)
    assert "bad.csv line 4" in caught.value.message
    assert said in caught.value.message


def test_a_foreign_header_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="expected a CSV file"):
        open_signal("trace", tmp_path)
    (tmp_path / "a.csv").write_text("time,co2\n1,2\n")
    with pytest.raises(InvalidInput, match="columns must be"):
        open_signal("trace", tmp_path)
    (tmp_path / "a.csv").write_text("zone,timestamp_utc,gco2eq_per_kwh\n\n")
    with pytest.raises(InvalidInput, match="no file there has a row"):
        open_signal("trace", tmp_path)
    (tmp_path / "a.csv").write_bytes("zone,timestamp_utc,gco2eq_per_kwh\nDE".encode("utf-16"))
    with pytest.raises(InvalidInput, match=r"a\.csv is no CSV file in UTF-8"):
        open_signal("trace", tmp_path)
    with pytest.raises(InvalidInput, match="known: static, trace, electricity_maps"):
        open_signal("magic")


def test_an_unknown_trace_zone_names_those_at_hand(tmp_path):
    write(tmp_path, "de.csv", hourly(NOW, [1, 2], zone="DE"))
    with pytest.raises(InvalidInput, match="DE") as caught:
        open_signal("trace", tmp_path).at("DK", NOW)
    assert caught.value.param == "green.zone"


@given(
    speed=st.sampled_from([1.0, 3600.0, 7.0, 0.5, 1234.5]),
    begin_s=st.integers(0, 10_000_000),
    length_s=st.floats(0.001, 50),
)
def test_a_series_covers_its_span_without_gap_or_overlap(
    tmp_path_factory, speed, begin_s, length_s
):
    folder = tmp_path_factory.mktemp("traces")
    write(folder, "xx.csv", hourly(datetime(2024, 1, 1, tzinfo=UTC), range(1, 49)))
    signal = TraceSignal.load(folder, speed=speed, anchor=NOW)
    start = NOW + timedelta(seconds=begin_s)
    end = start + timedelta(seconds=length_s * 3600 / speed)
    slots = signal.series("XX", start, end)
    assert (slots[0].moment, slots[-1].until) == (start, end)
    assert all(a.until == b.moment for a, b in pairwise(slots))
    # no slot outlives its recorded hour, give or take the clock's microseconds
    longest = max((s.until - s.moment).total_seconds() for s in slots)
    assert longest <= 3600 / speed + 1e-5


def test_accelerated_replay_runs_through_a_day_in_seconds(tmp_path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    write(tmp_path, "xx.csv", hourly(start, range(48)))
    signal = TraceSignal.load(tmp_path, speed=3600, anchor=NOW)
    first = signal.at("XX", NOW).value_g_per_kwh
    later = signal.at("XX", NOW + timedelta(seconds=5)).value_g_per_kwh
    assert (later - first) % 48 == 5
    assert not math.isnan(first)


def test_a_trace_of_some_grid_leaves_the_world_at_its_yearly_average(tmp_path):
    """What a job without a zone is accounted at."""
    write(tmp_path, "xx.csv", hourly(NOW, [100.0] * 24))
    signal = open_signal("trace", tmp_path)
    assert signal.series("WORLD", NOW, NOW + HOUR) == StaticSignal().series(
        "WORLD", NOW, NOW + HOUR
    )
    assert signal.at("XX", NOW).value_g_per_kwh == 100


def test_trace_files_are_read_again_when_they_change(tmp_path, caplog):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    file = write(tmp_path, "xx.csv", hourly(start, [100.0] * 24))
    signal = open_signal("trace", tmp_path)
    assert signal.at("XX", NOW).value_g_per_kwh == 100
    write(tmp_path, "xx.csv", hourly(start, [200.0] * 36))
    assert signal.at("XX", NOW).value_g_per_kwh == 200
    assert {s.value_g_per_kwh for s in signal.series("XX", NOW, NOW + 2 * HOUR)} == {200}
    write(tmp_path, "yy.csv", hourly(start, [50.0] * 24, zone="YY"))
    assert signal.forecast("YY", NOW, NOW + HOUR)[0].value_g_per_kwh == 50
    # a broken change leaves the last good record in force
    file.write_text("zone,when,grams\n")
    assert signal.at("XX", NOW).value_g_per_kwh == 200
    assert "kept as it was" in caplog.text
    file.unlink()
    (tmp_path / "yy.csv").unlink()
    assert signal.at("XX", NOW).value_g_per_kwh == 200
    write(tmp_path, "xx.csv", hourly(start, [300.0] * 24))
    assert signal.at("XX", NOW).value_g_per_kwh == 300
