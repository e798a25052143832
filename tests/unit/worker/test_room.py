"""Memory foretold before a job trains, and what becomes of one that cannot fit."""

import json
from dataclasses import replace

import pytest
import torch

from core.errors import OutOfMemory
from core.option_names import by_option_names
from core.spec import GreenOptions, JobSpec, TrainingOptions
from core.training.hooks import Hook
from core.training.job import FitJob
from core.training.memory import MemoryEstimate, estimate, workspace_bytes
from core.training.numerics import choose_numerics
from core.training.pricing import price_steps
from core.training.probing import probe_batches
from tests.fixtures.hook_records import start_record
from worker.prepare import prepare, train
from worker.room import RoomHook, device_bytes, expected_memory, split

GIB = 2**30


class Started(Hook):
    """Keeps the start record; counts steps."""

    def __init__(self):
        self.record = None
        self.n_steps = 0

    def on_start(self, record):
        self.record = record

    def on_step(self, record):
        self.n_steps += 1


class Selected(Hook):
    def __init__(self):
        self.start, self.selections = None, []

    def on_start(self, record):
        self.start = record

    def on_selection(self, record):
        self.selections.append(record)


def _record(needed):
    return start_record(memory_estimate_bytes=needed)


def _prepare(tiny_model, tmp_path, method="green", **options):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": "a " * (1 + 2 * n)},
            ]
        }
        for n in range(10)
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    spec = JobSpec(
        model="mine",
        training_file=str(file),
        training=TrainingOptions(n_epochs=1, batch_size=2, precision="fp32", **options),
        green=GreenOptions(method=method, rho=0.7),
    )
    return prepare(
        spec, training_path=file, models={"mine": str(tiny_model)}, cache=tmp_path / "cache"
    )


def test_full_fine_tuning_is_told_for_the_largest_batch(tiny_model, tmp_path):
    prepared, started = _prepare(tiny_model, tmp_path, "full"), Started()
    shapes = [
        tuple(batch["labels"].shape)
        for batch in (prepared.feed().batch(0, at) for at in range(prepared.steps_per_epoch))
    ]
    assert prepared.largest[:2] == max(shapes, key=lambda shape: shape[0] * shape[1])
    model = prepared.loaded.model
    expected = estimate(model, dict(model.named_parameters()), prepared.largest)
    train(prepared, rho=lambda _step: 1.0, hooks=[started], device="cpu", memory_rho=1.0)
    assert started.record.memory_estimate_bytes == expected.peak_bytes


@pytest.mark.parametrize("method", ["green", "last_k", "lora", "green_lora", "prefix"])
def test_every_method_is_told_and_the_telling_changes_nothing(method, tiny_model, tmp_path):
    weights = []
    for memory_rho in (None, 0.7):
        prepared, started = _prepare(tiny_model, tmp_path, method), Started()
        train(prepared, rho=lambda _: 0.7, hooks=[started], device="cpu", memory_rho=memory_rho)
        needed = started.record.memory_estimate_bytes
        assert (needed is None) == (memory_rho is None)
        weights.append(dict(prepared.loaded.model.named_parameters()))
    held = sum(weight.nbytes for weight in weights[0].values())
    assert held < needed < 100 * held
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_smaller_share_and_checkpointing_need_less(tiny_model, tmp_path):
    needed = []
    for rho, options in ((1.0, {}), (0.7, {}), (0.7, {"gradient_checkpointing": True})):
        prepared, started = _prepare(tiny_model, tmp_path, **options), Started()
        train(prepared, rho=lambda _, rho=rho: rho, hooks=[started], device="cpu", memory_rho=rho)
        needed.append(started.record.memory_estimate_bytes)
    assert needed == sorted(set(needed), reverse=True)


def _expected(prepared, rho, device="cpu"):
    green = prepared.spec.green
    job = FitJob(
        model=prepared.loaded.model,
        feed=prepared.feed(),
        validation=[],
        method=prepared.method,
        rho=lambda _step: rho,
        prices=prepared.prices,
        profile=prepared.profile,
        training=prepared.training,
        seed=0,
        numerics=choose_numerics(device, prepared.training.precision),
        fingerprint="",
        importance=green.importance,
    )
    return job, expected_memory(job, prepared.largest, rho)


@pytest.mark.parametrize("method", ["green", "green_lora"])
def test_importance_that_would_fill_the_device_takes_less_for_more_flops(
    method, tiny_model, tmp_path, monkeypatch
):
    options = {"method": method, "selection_interval": 0.4}
    prepared = _prepare(tiny_model, tmp_path, **options)
    job, ample = _expected(prepared, 0.7)
    assert ample.selecting_bytes > ample.training_bytes, "the case is not met"
    job = replace(job, probe_prices=price_steps(job.model, recomputes=True))
    less = expected_memory(job, prepared.largest, 0.7)
    records = []
    for total_bytes in (10 * ample.selecting_bytes, ample.selecting_bytes, None):
        monkeypatch.setattr("worker.room.device_bytes", lambda _device, n=total_bytes: n)
        prepared, told = _prepare(tiny_model, tmp_path, **options), Selected()
        train(prepared, rho=lambda _: 0.7, hooks=[told], device="cpu", memory_rho=0.7)
        records.append((told.start.memory_estimate_bytes, told.selections[0]))
    (plain, selection), (saving, again), unknown = records
    assert plain == ample.peak_bytes == unknown[0]
    assert ample.training_bytes <= saving < plain
    assert saving == less.peak_bytes
    assert again.flops > 1.1 * selection.flops
    assert unknown[1].flops == selection.flops
    assert again.names


def test_a_single_selection_is_told_by_its_own_probes_and_without_moments(tiny_model, tmp_path):
    job, once = _expected(_prepare(tiny_model, tmp_path), 0.7)
    probes = probe_batches(job, 0)
    longest = max(batch["labels"].shape[1] for batch in probes)
    assert longest < _prepare(tiny_model, tmp_path).largest[1], "the case is not met"
    assert once.selecting_bytes == once.weights_bytes + once.selection_bytes

    _, often = _expected(_prepare(tiny_model, tmp_path, selection_interval=0.4), 0.7)
    # later probes may be of the largest batch, and moments are there by then
    assert often.selection_bytes > once.selection_bytes
    lasting = often.weights_bytes + often.moments_bytes
    assert often.selecting_bytes == lasting + often.selection_bytes


@pytest.mark.parametrize(("capability", "mebibytes"), [((8, 0), 2 * 8.125), ((9, 0), 2 * 32)])
def test_on_a_card_workspaces_of_the_library_that_multiplies_count(
    capability, mebibytes, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert workspace_bytes(torch.device("cuda")) == mebibytes * 2**20
    assert workspace_bytes(torch.device("cpu")) == 0
    shape = MemoryEstimate(
        weights_bytes=1, gradients_bytes=1, moments_bytes=2, activations_bytes=1, logits_bytes=1,
        step_bytes=3, selection_bytes=9, reselects=False, libraries_bytes=100,
    )  # fmt: skip
    assert (shape.training_bytes, shape.selecting_bytes) == (106, 110)


def test_what_cannot_fit_ends_before_it_trains(tiny_model, tmp_path):
    prepared, started = _prepare(tiny_model, tmp_path), Started()
    room = RoomHook(None, lambda _device: 1000)
    with pytest.raises(OutOfMemory) as caught:
        train(prepared, rho=lambda _: 0.7, hooks=[started, room], device="cpu", memory_rho=0.7)
    assert caught.value.code == "out_of_memory"
    assert started.record.memory_estimate_bytes > 1000
    assert started.n_steps == 0


def test_the_sentence_says_how_much_and_what_to_do():
    with pytest.raises(OutOfMemory) as caught:
        RoomHook(None, lambda _device: 10 * GIB).on_start(_record(13 * GIB))
    for word in ("13.00 GiB", "10.00 GiB", "cpu", "batch_size", "rho", "gradient_checkpointing"):
        assert word in caught.value.message
    assert by_option_names(caught.value.message).endswith(
        ": lower --batch-size (raising --accumulation alike) or --rho, or turn on "
        "--gradient-checkpointing."
    )


def test_a_micro_batch_that_is_split_is_told_in_the_request_s_words():
    told = []
    training = TrainingOptions(batch_size=5, gradient_accumulation=3)
    smaller = split(training, OutOfMemory("much"), lambda text, **_: told.append(text))
    assert (smaller.batch_size, smaller.gradient_accumulation) == (3, 6)
    (text,) = told
    assert text == (
        "Out of memory with hyperparameters.batch_size 5; going on with 3 and "
        "green.training.gradient_accumulation 6"
    )


def test_where_batches_are_split_it_is_only_told():
    told = []
    room = RoomHook(lambda text, **more: told.append((text, more)), lambda _device: 10 * GIB)
    room.on_start(_record(13 * GIB))
    ((text, more),) = told
    assert "13.00 GiB" in text
    assert more["level"] == "warn"
    assert more["data"]["memory_estimate_bytes"] == 13 * GIB


@pytest.mark.parametrize("needed", [None, 9 * GIB, 12 * GIB])
def test_what_may_fit_is_tried(needed):
    RoomHook(None, lambda _device: 10 * GIB).on_start(_record(needed))


def test_an_unknown_device_refuses_nothing():
    RoomHook(None, lambda _device: None).on_start(_record(10**18))
    assert device_bytes(torch.device("meta")) is None
    assert device_bytes(torch.device("cpu")) > 0
