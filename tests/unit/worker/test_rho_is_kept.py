"""A whole run of varied lengths, from file to last step, costs what it says, and rho at most."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from core.data.validation import DataLimits
from core.spec import GreenOptions, JobSpec, MethodOptions
from core.training.numerics import choose_numerics
from core.training.step import needs_mask
from core.training_options import TrainingOptions
from tests.fixtures.models import build_tiny_model
from tests.fixtures.pair_models import build_pair_models
from worker.prepare import prepare, train

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
# batches are grouped anew each epoch, so padding differs a little from the first one's
OTHER_EPOCHS = 1.01


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"llama": build_tiny_model(folder / "causal"), **build_pair_models(folder)}


def varied_pairs(path: Path, rng: random.Random) -> Path:
    """Prompts and answers of one to fifteen words, the lengths drawn apart."""

    def words() -> str:
        # many are short, few are long
        return " ".join(str(rng.randint(0, 99)) for _ in range(int(16 ** rng.random())))

    rows = [{"prompt": words(), "completion": " " + words()} for _ in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("kind", "method", "rho"),
    [
        ("llama", "green", 0.6),
        ("llama", "green_lora", 0.7),
        ("tied T5", "green", 0.7),
    ],
)
def test_measured_flops_of_a_run_are_those_told_and_within_rho(
    kind: str, method: str, rho: float, models: dict[str, Path], tmp_path: Path
) -> None:
    data = varied_pairs(tmp_path / "train.jsonl", random.Random(f"{kind} {method}"))
    spec = JobSpec(
        model=str(models[kind]),
        training_file=str(data),
        training=TrainingOptions(n_epochs=2, batch_size=4, precision="fp32", prefix_reuse="off"),
        green=GreenOptions(method=method, rho=rho, options=MethodOptions(r=2)),  # type: ignore[arg-type]
    )
    place = {spec.model: spec.model}
    limits = DataLimits(min_examples=1)
    prepared = prepare(
        spec, training_path=data, validation_path=None, models=place, cache=tmp_path, limits=limits
    )
    # the counter does not see fused attention; ways to multiply are tried once a process
    prepared.loaded.model.set_attn_implementation("eager")
    choose_numerics(None, "fp32")
    with FlopCounterMode(display=False) as asking:
        # once at the start, whatever the data
        needs_mask(prepared.loaded.model)
    with FlopCounterMode(display=False) as counter:
        result = train(prepared, rho=lambda _step: rho)
    assert result.outcome == "finished"
    measured = counter.get_total_flops() - asking.get_total_flops()
    assert measured == pytest.approx(result.flops, rel=1e-3)
    # what measuring importance costs is paid out of rho
    assert result.flops <= rho * result.full_flops * OTHER_EPOCHS
    assert result.flops > 0.8 * rho * result.full_flops
