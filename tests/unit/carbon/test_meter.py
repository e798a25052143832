"""The meter on its own thread, and the counters it reads; no hardware needed."""

import logging
import signal
import sys
import threading
import time
import types
from itertools import pairwise

import pytest

from core.carbon.meter import EnergyMeter
from core.carbon.sources import NvmlSource, RaplSource, Reading
from core.carbon.tracker import CodecarbonSource


class Fake:
    """A source that gives ``power_w`` for its devices; errors are put into ``trouble``."""

    def __init__(self, *devices, method="rapl", power_w=10.0):
        self.devices = frozenset(devices)
        self.method = method
        self.power_w = power_w
        self.trouble: list[Exception] = []
        self.closed = False

    def open(self):
        self._last_s = time.monotonic()
        if self.trouble:
            raise self.trouble.pop()

    def poll(self):
        pass

    def read(self):
        if self.trouble:
            raise self.trouble.pop()
        now_s = time.monotonic()
        energy_j = self.power_w * (now_s - self._last_s)
        self._last_s = now_s
        return tuple(
            Reading(device=d, energy_j=energy_j, method=self.method) for d in sorted(self.devices)
        )

    def close(self):
        self.closed = True


class Log:
    def __init__(self):
        self.samples = []
        self.batches = 0
        self.warnings = []
        self.refuse = 0

    def take(self, batch):
        if self.refuse:
            self.refuse -= 1
            raise OSError("database away")
        self.batches += 1
        self.samples += batch


def metered(log, *sources, interval_s=3600.0):
    return EnergyMeter(log.take, log.warnings.append, interval_s=interval_s, sources=sources)


def test_intervals_adjoin_and_sum_to_what_the_source_gave():
    log, source = Log(), Fake("cpu")
    with metered(log, source) as meter:
        for _ in range(3):
            time.sleep(0.02)
            meter.sample()
    assert source.closed
    assert all(a.ended_at == b.started_at for a, b in pairwise(log.samples))
    assert all(s.ended_at > s.started_at for s in log.samples)
    spent_s = (log.samples[-1].ended_at - log.samples[0].started_at).total_seconds()
    total_j = sum(s.energy_j for s in log.samples)
    assert total_j == pytest.approx(10.0 * spent_s, rel=0.2)
    assert (log.warnings, meter.gaps) == ([], ())


def test_batches_come_by_themselves():
    log, arrived = Log(), threading.Event()
    meter = EnergyMeter(
        lambda batch: (log.take(batch), arrived.set()),
        print,
        interval_s=0.01,
        sources=[Fake("cpu")],
    )
    with meter:
        assert arrived.wait(5)


def test_what_was_metered_before_anybody_received_comes_first():
    log, source = Log(), Fake("cpu")
    broken = Fake("gpu")
    broken.trouble = [OSError("no driver")]
    meter = EnergyMeter(interval_s=3600.0, sources=[broken, source])
    meter.start()
    begun_at = meter.started_at
    meter.sample()
    meter.sample()
    assert (log.samples, log.warnings) == ([], [])
    meter.receive(log.take, log.warnings.append)
    with meter:  # runs already, and goes on
        meter.sample()
        assert len(log.samples) == 3
        assert log.warnings == ["Fake cannot be read: OSError: no driver."]
    assert len(log.samples) == 4
    assert meter.started_at == begun_at <= log.samples[0].started_at
    assert all(a.ended_at == b.started_at for a, b in pairwise(log.samples))
    assert meter.gaps == ()


def test_measured_beats_estimated_per_device():
    log = Log()
    with metered(log, Fake("cpu"), Fake("cpu", "ram", method="estimate")) as meter:
        time.sleep(0.01)
        meter.sample()
    assert {(s.device, s.method) for s in log.samples} == {("cpu", "rapl"), ("ram", "estimate")}


def test_a_failing_source_is_one_warning_and_one_gap_and_loses_no_counted_joule():
    log, source = Log(), Fake("cpu")
    with metered(log, source) as meter:
        source.trouble = [OSError("bus error"), OSError("bus error")]
        meter.sample()
        meter.sample()
        assert log.samples == []
        time.sleep(0.02)
        meter.sample()
        (sample,) = log.samples
    assert len(log.warnings) == 1
    assert "bus error" in log.warnings[0]
    assert "cpu" in log.warnings[0]
    (gap,) = meter.gaps
    assert gap.devices == ("cpu",)
    # the counter's next reading reaches back to the last good one
    assert sample.started_at == gap.started_at
    spent_s = (sample.ended_at - sample.started_at).total_seconds()
    assert sample.energy_j == pytest.approx(10 * spent_s, rel=0.3)


def test_without_any_source_it_warns_and_training_goes_on():
    log, source = Log(), Fake("cpu")
    source.trouble = [PermissionError("root only")]
    with metered(log, source) as meter:
        meter.sample()
    assert log.samples == []
    assert "root only" in log.warnings[0]
    assert "not metered" in log.warnings[1]
    assert meter.gaps[0].reason == "no energy source"


def test_refused_batches_are_offered_again():
    log = Log()
    log.refuse = 2
    with metered(log, Fake("cpu")) as meter:
        for _ in range(3):
            time.sleep(0.005)
            meter.sample()
        assert log.batches == 1
        assert len(log.samples) == 3
    assert len(log.warnings) == 1


def test_batches_nobody_ever_took_are_a_gap():
    log = Log()
    log.refuse = 99
    with metered(log, Fake("cpu")) as meter:
        time.sleep(0.005)
        meter.sample()
    assert meter.gaps[-1].reason == "samples not stored"


def test_stopping_twice_is_fine():
    meter = metered(Log(), Fake("cpu"))
    meter.start()
    meter.stop()
    meter.stop()
    meter.sample()


def zone(root, name, label, energy_uj, wrap_uj=1_000_000):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap_uj}\n")


def test_rapl_sums_packages_splits_dram_and_survives_the_wrap(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 100)
    zone(tmp_path, "intel-rapl:0:0", "dram", 5)
    zone(tmp_path, "intel-rapl:0:1", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 9)
    source = RaplSource(tmp_path)
    source.open()
    assert source.devices == {"cpu", "ram"}
    zone(tmp_path, "intel-rapl:0", "package-0", 400_000)  # wrapped: 500,000 uJ
    zone(tmp_path, "intel-rapl:1", "package-1", 250_100)
    zone(tmp_path, "intel-rapl:0:0", "dram", 20_005)
    energy_j = {r.device: r.energy_j for r in source.read()}
    assert energy_j == pytest.approx({"cpu": 0.75, "ram": 0.02})
    assert {r.energy_j for r in source.read()} == {0.0}


def test_rapl_gives_a_process_its_share(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    source = RaplSource(tmp_path, share=lambda: 0.25)
    source.open()
    zone(tmp_path, "intel-rapl:0", "package-0", 800_000)
    assert source.read()[0].energy_j == pytest.approx(0.2)


def test_no_rapl_is_no_device(tmp_path):
    source = RaplSource(tmp_path)
    source.open()
    assert (source.devices, source.read()) == (frozenset(), ())


class NotSupportedError(Exception):
    pass


class LibraryNotFoundError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in for the driver with two cards; the second has no energy counter."""
    module = types.ModuleType("pynvml")
    module.NVMLError_NotSupported = NotSupportedError
    module.NVMLError_LibraryNotFound = LibraryNotFoundError
    module.counter_mj = {0: 5_000}
    module.power_mw = {0: 300_000, 1: 100_000}

    def counter(handle):
        if handle not in module.counter_mj:
            raise NotSupportedError
        return module.counter_mj[handle]

    module.nvmlInit = lambda: None
    module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetHandleByUUID = {"GPU-aa": 0, "GPU-bb": 1}.__getitem__
    module.nvmlDeviceGetTotalEnergyConsumption = counter
    module.nvmlDeviceGetPowerUsage = lambda handle: module.power_mw[handle]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_counter(nvml):
    source = NvmlSource(["aa"])
    source.open()
    nvml.counter_mj[0] = 7_500
    (reading,) = source.read()
    assert (reading.device, reading.method, reading.energy_j) == ("gpu", "nvml_counter", 2.5)


def test_nvml_power_is_integrated_where_no_counter_is(nvml):
    source = NvmlSource(["GPU-bb"])
    source.open()
    begun_s = time.monotonic()
    nvml.power_mw[1] = 300_000
    time.sleep(0.05)
    (reading,) = source.read()
    spent_s = time.monotonic() - begun_s
    assert reading.method == "nvml_power"
    assert reading.energy_j == pytest.approx(200 * spent_s, rel=0.2)


def test_all_cards_when_none_is_named(nvml):
    source = NvmlSource()
    source.open()
    nvml.counter_mj[0] += 1_000
    (reading,) = source.read()
    assert reading.energy_j >= 1.0
    assert reading.method == "nvml_power"  # the weaker method names the sum


def test_no_driver_is_no_device(nvml):
    def no_driver():
        raise LibraryNotFoundError

    nvml.nvmlInit = no_driver
    source = NvmlSource()
    source.open()
    assert (source.devices, source.read()) == (frozenset(), ())
    source.close()


def test_codecarbon_meters_this_process_in_silence(capfd):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    log = Log()
    with metered(log, CodecarbonSource()) as meter:
        deadline_s = time.monotonic() + 0.3
        while time.monotonic() < deadline_s:
            sum(range(1000))
        meter.sample()
    assert {s.device for s in log.samples} >= {"cpu", "ram"}
    assert sum(s.energy_j for s in log.samples) > 0
    # on machines without counters the mode must be told as what it is
    assert {s.method for s in log.samples if s.device == "ram"} == {"estimate"}
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert logging.getLogger("codecarbon").level == logging.CRITICAL


def test_codecarbon_meters_whatever_the_host_has_configured_for_its_own_use(tmp_path, monkeypatch):
    for name, value in {
        "output_dir": str(tmp_path / "gone"),
        "output_methods": "csv,api",
        "save_to_file": "true",
        "allow_multiple_runs": "false",
    }.items():
        monkeypatch.setenv(f"CODECARBON_{name.upper()}", value)
    monkeypatch.chdir(tmp_path)
    log = Log()
    with metered(log, CodecarbonSource()):
        pass
    assert log.warnings == []
    assert {s.device for s in log.samples} >= {"cpu", "ram"}
    assert list(tmp_path.iterdir()) == []
