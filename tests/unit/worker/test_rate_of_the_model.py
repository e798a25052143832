"""A job that leaves its rate open takes one for the model's own weights, adapters or not."""

import statistics

import pytest
import safetensors.torch

from core.spec import GreenOptions, JobSpec
from core.training.hooks import Hook
from core.training.weight_scale import REFERENCE_SIZE
from core.training_options import TrainingOptions
from worker.prepare import prepare, train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


class Rates(Hook):
    def __init__(self):
        self.found = []

    def on_step(self, record):
        self.found.append(record.learning_rate)

    def on_selection(self, record):
        self.found.append(record.peak_learning_rate)


@pytest.mark.parametrize(
    ("method", "on_smollm2"), [("full", 1e-4), ("lora", 2e-3), ("green_lora", 1e-3)]
)
def test_the_rule_times_the_size_of_the_weights(
    method, on_smollm2, tiny_model, chat_lines, tmp_path
):
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(12))
    training = TrainingOptions(n_epochs=1, max_steps=1, schedule="constant", warmup_ratio=0)
    prepared = prepare(
        JobSpec(
            model="tiny",
            training_file="train.jsonl",
            training=training,
            green=GreenOptions(method=method, rho=1.0),
        ),
        training_path=data,
        validation_path=None,
        models={"tiny": str(tiny_model)},
        cache=tmp_path / "models",
    )
    rates = Rates()
    train(prepared, rho=lambda _: 1.0, hooks=[rates])

    stored = safetensors.torch.load_file(tiny_model / "model.safetensors")
    sizes = [
        float(tensor.std(correction=0))
        for name, tensor in stored.items()
        if tensor.ndim == 2 and ".layers." in name
    ]
    times = statistics.median(sizes) / REFERENCE_SIZE
    assert not 0.9 < times < 1.1
    told, taken = rates.found
    assert told == taken == pytest.approx(on_smollm2 * times, rel=0.05)
