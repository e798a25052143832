"""Callbacks whose training goes on from a checkpoint: theirs, another's, or one without them."""

import json

import pytest
import torch

from core.training.callback import GreenTrainerCallback
from tests.fixtures.trainers import Watch, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
SAVING = {"save_strategy": "steps", "save_steps": 5}


def _stored(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["GreenTrainerCallback"]["attributes"]["history"]


@pytest.mark.parametrize("restores", [False, True])
def test_a_resumed_training_goes_on_with_its_selection(tmp_path, restores):
    options = {**SAVING, "restore_callback_states_from_checkpoint": restores}
    callback = GreenTrainerCallback(rho=0.6)
    straight = trainer_of(tmp_path, callback, **options)
    straight.train()
    stored = _stored(tmp_path / "checkpoint-5")
    assert stored[0]["names"] == list(callback.selections[0].names)
    watch = Watch()
    resumed = trainer_of(tmp_path, GreenTrainerCallback(rho=0.6), watch=watch, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert len(watch.updated) == 11
    assert watch.updated[0] == set(callback.selections[0].names)
    assert watch.updated[-1] == set(callback.selections[1].names)
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("restores", [False, True])
def test_a_callback_joins_at_a_checkpoint_made_without_it(tmp_path, restores):
    trainer_of(tmp_path, Watch(), **SAVING).train()
    callback, watch = GreenTrainerCallback(rho=0.6), Watch()
    options = {**SAVING, "restore_callback_states_from_checkpoint": restores}
    resumed = trainer_of(tmp_path, callback, watch=watch, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    # at its first step, and when the second epoch begins
    assert [s.step for s in callback.selections] == [5, 8]
    assert [updated == set(callback.selections[0].names) for updated in watch.updated[:3]] == [
        True
    ] * 3
    assert [one["step"] for one in _stored(tmp_path / "checkpoint-10")] == [5, 8]


def test_a_callback_used_again_takes_nothing_along(tmp_path):
    callback = GreenTrainerCallback(rho=0.6, every=2)
    trainer_of(tmp_path / "own", callback, **SAVING).train()
    assert [s.step for s in callback.selections] == list(range(0, 16, 2))

    trainer_of(tmp_path / "plain", Watch(), **SAVING).train()
    again = trainer_of(tmp_path / "plain", callback, **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-10"))
    assert [s.step for s in callback.selections] == [10, 12, 14]

    own = trainer_of(tmp_path / "own", callback, **SAVING)
    own.train(resume_from_checkpoint=str(tmp_path / "own" / "checkpoint-10"))
    assert [s.step for s in callback.selections] == list(range(0, 16, 2))
