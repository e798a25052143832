"""A job goes on in the precision it began with, whatever this machine would choose."""

import pytest

from core.errors import InvalidInput
from core.spec import GreenOptions, JobSpec
from core.training.checkpoint import newest_checkpoint
from core.training.hooks import Control
from core.training_options import TrainingOptions
from worker.prepare import prepare, train


@pytest.fixture
def prepared(tiny_model, chat_lines, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(12))

    def build(precision, checkpoints=None):
        spec = JobSpec(
            model="tiny",
            training_file="train.jsonl",
            training=TrainingOptions(n_epochs=1, precision=precision),
            green=GreenOptions(method="full", rho=1.0),
        )
        return prepare(
            spec,
            training_path=data,
            models={"tiny": str(tiny_model)},
            cache=tmp_path / "models",
            checkpoints=checkpoints,
        )

    return build


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
def test_auto_keeps_what_the_checkpoint_was_computed_in(prepared, begun, tmp_path):
    folder = tmp_path / "checkpoints"
    polls = iter([Control.CONTINUE, Control.CHECKPOINT_AND_STOP])
    train(prepared(begun), rho=lambda _: 1.0, checkpoints=folder, control=lambda: next(polls))
    assert newest_checkpoint(folder).state.precision == begun

    resumed = prepared("auto", folder)
    assert resumed.training.precision == begun
    assert train(resumed, rho=lambda _: 1.0, checkpoints=folder).outcome == "finished"

    other = {"fp32": "bf16", "bf16": "fp32"}[begun]
    with pytest.raises(InvalidInput, match=f"was computed in {begun}, not in {other}"):
        train(prepared(other, folder), rho=lambda _: 1.0, checkpoints=folder)
