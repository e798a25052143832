"""Encoder-decoder models from a file of pairs to answers of the reloaded result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.validation import DataLimits
from core.spec import EvalOptions, GreenOptions, JobSpec, MethodOptions
from core.training.generation import Decoding, generate
from core.training.models import load_model
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.pair_models import build_pair_models
from worker.prepare import export, prepare, train

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PROMPTS = [[5, 6, 7, 8, 9], [12, 13, 14]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pair_models(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize(
    ("kind", "method", "merge"),
    [
        ("tied T5", "green", False),
        ("untied T5", "full", False),
        ("untied T5", "green_lora", True),
        ("tied T5", "lora", False),
        ("tied T5", "prefix", False),
        ("BART", "green", False),
        ("BART", "last_k", False),
    ],
)
def test_from_pairs_to_answers(
    kind: str, method: str, merge: bool, models: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"add {n} and {n % 7}", "completion": f" {n + n % 7}"} for n in range(12)]
    data.write_text("\n".join(map(json.dumps, pairs)))
    options = MethodOptions(r=2, n_virtual_tokens=3, merge=merge)
    green = GreenOptions(method=method, options=options)  # type: ignore[arg-type]
    if green.follows_rho:
        green = dataclasses.replace(green, rho=0.7)
    spec = JobSpec(
        model=str(models[kind]),
        training_file=str(data),
        validation_file=str(data),
        training=TrainingOptions(n_epochs=2, learning_rate=1e-2),
        green=green,
        eval=EvalOptions(max_examples=2, max_new_tokens=4),
    )
    place = {spec.model: spec.model}
    limits = DataLimits(min_examples=1)
    prepared = prepare(
        spec, training_path=data, validation_path=data, models=place, cache=tmp_path, limits=limits
    )
    result = train(prepared, rho=lambda _step: 0.7, checkpoints=tmp_path / "checkpoints")
    assert result.outcome == "finished"
    assert result.validation_loss < result.first_validation_loss
    assert result.scores is not None
    batch = prepared.validation_batches()[0]

    def logits(model: Any) -> torch.Tensor:
        model.eval()
        step = LossStep(model)
        return step.logits(step.inputs(batch)).detach()

    decoding = Decoding(max_new_tokens=5)
    expected = logits(prepared.loaded.model)
    answers = generate(prepared.loaded.model, prepared.loaded.tokenizer, PROMPTS, decoding).texts
    back = load_model("result", folder=export(prepared, tmp_path / "out", result), cache=tmp_path)
    torch.testing.assert_close(logits(back.model), expected, rtol=1e-4, atol=1e-5)
    assert generate(back.model, back.tokenizer, PROMPTS, decoding).texts == answers
