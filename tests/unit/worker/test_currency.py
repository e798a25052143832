"""What a rho counts with: the clock, or counters where they see the device that trains."""

from __future__ import annotations

import time

import pytest
import torch

from core.carbon.sources import RaplSource, Reading
from core.errors import RhoInfeasible
from core.spec import GreenOptions, JobSpec
from core.training.hooks import Hook
from core.training_options import TrainingOptions
from worker.currency import opened_meter
from worker.local_folder import LocalFolder
from worker.prepare import prepare, train

CPU, CARD = torch.device("cpu"), torch.device("cuda")


class Source:
    """Tells the joules that it is given, one reading after the other."""

    def __init__(self, device, method, joules=(), *, refuses=False):
        self.devices = frozenset({device})
        self._reading = lambda energy_j: Reading(device=device, energy_j=energy_j, method=method)
        self._joules = iter(joules)
        self._refuses = refuses
        self.is_closed = False

    def open(self):
        if self._refuses:
            raise OSError("not for you")

    def poll(self): ...

    def read(self):
        return (self._reading(next(self._joules, 0.0)),)

    def close(self):
        self.is_closed = True


def test_flops_need_no_meter_and_seconds_a_clock():
    with opened_meter("flops", CPU) as meter:
        assert meter is None
    with opened_meter("seconds", CPU) as meter:
        assert (meter.currency, meter.unit, meter.read) == (
            "seconds",
            "seconds",
            time.perf_counter,
        )


def test_joules_of_the_card_and_the_processor_are_added():
    card = Source("gpu", "nvml_counter", [7.0, 3.0, 0.5])
    processor = Source("cpu", "rapl", [1.0, 2.0, 0.25])
    with opened_meter("joules", CARD, [card, processor]) as meter:
        assert meter.unit == "joules"
        assert meter.least_s > 0
        before = meter.read()
        assert meter.read() - before == 0.75
    assert card.is_closed
    assert processor.is_closed


def test_the_kernels_counter_is_read(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("1000000000")
    (zone / "energy_uj").write_text("5000000")
    with opened_meter("joules", CPU, [RaplSource(tmp_path)]) as meter:
        before = meter.read()
        (zone / "energy_uj").write_text("7500000")
        assert meter.read() - before == 2.5


@pytest.mark.parametrize(
    ("device", "sources"),
    [
        (CPU, []),
        # a processor's counter says nothing of a card, nor a card's of the processor
        (CARD, [Source("cpu", "rapl", [1.0] * 9)]),
        (CPU, [Source("gpu", "nvml_counter", [1.0] * 9)]),
        (CPU, [Source("cpu", "estimate", [1.0] * 9)]),
        (CARD, [Source("gpu", "nvml_power", [1.0] * 9)]),
        (CPU, [Source("cpu", "rapl", refuses=True)]),
    ],
)
def test_without_a_counter_energy_goes_with_time(device, sources):
    with opened_meter("joules", device, sources) as meter:
        assert (meter.currency, meter.unit, meter.read) == ("joules", "seconds", time.perf_counter)


class Seen(Hook):
    def __init__(self):
        self.start, self.selections = None, []

    def on_start(self, record):
        self.start = record

    def on_selection(self, record):
        self.selections.append(record)


@pytest.fixture
def prepared(tiny_model, chat_lines, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(12))

    def build(rho, currency="seconds"):
        spec = JobSpec(
            model="tiny",
            training_file="train.jsonl",
            training=TrainingOptions(n_epochs=1, precision="fp32", max_steps=2),
            green=GreenOptions(rho=rho, currency=currency, zone="FR"),
        )
        return prepare(
            spec,
            training_path=data,
            models={"tiny": str(tiny_model)},
            cache=tmp_path / "models",
        )

    return build


def test_a_number_is_refused_and_auto_is_raised(prepared):
    # below what any step costs in FLOPs, which does not count here
    for rho in (0.01, "auto"):
        job, seen = prepared(rho), Seen()
        if rho == "auto":
            result = train(job, rho=lambda _step: 0.01, hooks=[seen], memory_rho=0.01)
            assert result.outcome == "finished"
            assert seen.selections[0].rho == pytest.approx(seen.start.rho_min)
            assert seen.start.memory_estimate_bytes is None
        else:
            with pytest.raises(RhoInfeasible, match="not feasible in seconds"):
                train(job, rho=lambda _step: 0.01, hooks=[seen])
            assert not seen.selections


def test_joules_without_a_counter_train_as_well(prepared):
    seen = Seen()
    train(prepared(1.0, "joules"), rho=lambda _step: 1.0, hooks=[seen])
    assert {s.currency for s in seen.selections} == {"joules"}


def test_a_folder_from_before_there_were_currencies_goes_on(tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("{}")
    spec = JobSpec(model="m", training_file=str(data))
    folder = LocalFolder(path=tmp_path)
    begun = folder.begin(spec, [data])
    job = tmp_path / "job.json"
    job.write_text(job.read_text().replace('"currency": "flops",', ""))
    assert "currency" not in job.read_text()
    assert folder.begin(spec, [data]) == begun
