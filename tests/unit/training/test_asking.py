"""Held-out questions before and after training: told, remembered, and without a trace in it."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import InvalidInput
from core.spec import EvalOptions, JobSpec
from core.training.answers import evaluate_answers
from core.training.generation import decoding_named
from core.training.hooks import CheckpointRecord, Control, EvaluationRecord, Hook
from core.training.job import FitJob
from core.training.loop import fit
from core.training.numerics import Numerics
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import BFLOAT16, FLOAT32, fit_job, prices_of
from tests.fixtures.specs import stored_and_read
from tests.fixtures.tiny_models import tiny_model

PROMPTS = [[7, 8, 9], [12, 13]]


class Tokens:
    eos_token_id, pad_token_id = 96, 0

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


class Told(Hook):
    def __init__(self) -> None:
        self.evaluations: list[EvaluationRecord] = []
        self.checkpoints: list[CheckpointRecord] = []

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.evaluations.append(record)

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        self.checkpoints.append(record)


def job(*, asks: bool = True, numerics: Numerics = FLOAT32) -> FitJob:
    model = tiny_model("opt", dropout=0.2)
    ask = functools.partial(
        evaluate_answers,
        model,
        Tokens(),
        PROMPTS,
        [["23 91"], ["1"]],
        metrics=["f1"],
        decoding=decoding_named("beam", max_new_tokens=4),
        forward=prices_of("opt").forward,
    )
    return fit_job(
        "opt",
        TrainingOptions(n_epochs=1),
        model=model,
        numerics=numerics,
        ask=ask if asks else None,
    )


def stop_before(step: int) -> Any:
    polls = iter(range(100))
    return lambda: Control.CHECKPOINT_AND_STOP if next(polls) == step else Control.CONTINUE


@pytest.mark.parametrize("numerics", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_asked_before_and_after_and_apart_from_training(numerics: Numerics, tmp_path: Path):
    silent, asking = job(asks=False, numerics=numerics), job(numerics=numerics)
    told = Told()
    without = fit(silent)
    result = fit(asking, checkpoints=tmp_path, hooks=[told])
    before, after = told.evaluations
    assert (before.step, after.step, after.epoch) == (0, 4, 1.0)
    assert result.first_scores == before.scores
    assert result.scores == after.scores
    assert set(after.scores) == {"f1"}
    assert told.checkpoints[-1].scores == after.scores
    # FLOPs are counted apart, and training is the same to the bit
    asked = before.flops + after.flops
    assert result.evaluation_flops == pytest.approx(without.evaluation_flops + asked)
    assert (result.flops, result.selection_flops) == (without.flops, without.selection_flops)
    for ours, theirs in zip(asking.model.parameters(), silent.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (without.first_scores, without.scores) == (None, None)


@pytest.mark.parametrize("stop", [0, 2])
def test_a_resumed_run_remembers_the_first_answers(stop: int, tmp_path: Path):
    straight = fit(job())
    told_first = Told()
    first = fit(job(), checkpoints=tmp_path, hooks=[told_first], control=stop_before(stop))
    assert first.outcome == "paused"
    assert first.first_scores == straight.first_scores
    # what was measured before two steps of training says nothing of the weights after them
    assert first.scores == (straight.first_scores if stop == 0 else None)
    assert (first.validation_loss is None) == (stop > 0)
    assert told_first.checkpoints[-1].scores == first.scores
    told = Told()
    resumed = fit(job(), checkpoints=tmp_path, hooks=[told])
    assert [record.step for record in told.evaluations] == [4]
    assert (resumed.first_scores, resumed.scores) == (straight.first_scores, straight.scores)
    assert resumed.evaluation_flops == straight.evaluation_flops
    # a run that is taken up at its end has nothing left to ask
    again = fit(job(), checkpoints=tmp_path, hooks=[told])
    assert len(told.evaluations) == 1
    assert again.scores == straight.scores


def test_options_are_checked_and_cross_json():
    spec = JobSpec(
        model="m",
        training_file="t",
        validation_file="v",
        eval=EvalOptions(metrics=["rougeL", "f1", "rougeL"], max_examples=5, decoding="beam"),
    )
    assert spec.eval.metrics == ("rougeL", "f1")
    assert spec.to_dict()["eval"]["metrics"] == ["rougeL", "f1"]
    assert stored_and_read(spec) == spec
    with pytest.raises(InvalidInput, match="asks about the examples of a validation file"):
        replace(spec, validation_file=None)
    for wrong in (
        {"metrics": ["bleu"]},
        {"metrics": "rougeL"},
        {"max_examples": 0},
        {"max_examples": True},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"decoding": "sampling"},
    ):
        with pytest.raises(InvalidInput, match=f"green.eval.{next(iter(wrong))} must be"):
            EvalOptions(**wrong)
