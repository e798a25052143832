"""Checkpoints: what comes back is what went in, or it is refused."""

import json
from dataclasses import replace

import pytest
import torch

from core.errors import StorageUnavailable
from core.training.checkpoint import (
    MANIFEST,
    WEIGHT_FILES,
    Checkpoint,
    TrainState,
    checkpoint_folders,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    random_state,
    restore_random_state,
    save_checkpoint,
    state_files,
)


def _checkpoint(step=3):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 6, generator=generator)
    return Checkpoint(
        state=TrainState(step=step, names=("a", "b"), ever_trained=("a", "b", "c"), flops=1e15 / 3),
        # a transposed view: not contiguous, as Conv1D weights may be
        weights={"a": weight.t(), "b": weight[0].clone()},
        optimizer={"a/step": torch.tensor(3.0), "a/exp_avg": weight.clone()},
        random=random_state(),
    )


def test_round_trip_is_exact(tmp_path):
    saved = _checkpoint()
    folder = save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(folder)
    assert loaded.state == saved.state
    for part in ("weights", "optimizer", "random"):
        tensors, expected = getattr(loaded, part), getattr(saved, part)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_the_weights_can_be_had_without_the_state(tmp_path):
    saved = replace(_checkpoint(), best={"a": torch.ones(2)})
    saved.state.fingerprint = "of the base"
    folder = save_checkpoint(tmp_path, saved)
    names = state_files(folder)
    assert names == ("best.safetensors", "optimizer.safetensors", "random.safetensors")
    for name in names:
        (folder / name).unlink()
    assert {f.name for f in folder.iterdir()} == set(WEIGHT_FILES)
    loaded = load_weights(folder)
    assert loaded.fingerprint == "of the base"
    assert {name: t.tolist() for name, t in loaded.tensors.items()} == {
        name: t.tolist() for name, t in saved.weights.items()
    }
    with pytest.raises(StorageUnavailable):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_damaged_weights_are_refused(tmp_path, file):
    folder = save_checkpoint(tmp_path, _checkpoint())
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    with pytest.raises(StorageUnavailable) as refused:
        load_weights(folder)
    assert refused.value.code == "checkpoint_corrupt"


def test_no_pickle_is_written(tmp_path):
    folder = save_checkpoint(tmp_path, _checkpoint())
    assert {f.suffix for f in folder.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_detected_and_the_one_before_used(tmp_path, file, damage):
    save_checkpoint(tmp_path, _checkpoint(step=2))
    folder = save_checkpoint(tmp_path, _checkpoint(step=3))
    path = folder / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(StorageUnavailable) as caught:
        load_checkpoint(folder)
    assert caught.value.code == "checkpoint_corrupt"
    assert newest_checkpoint(tmp_path).state.step == 2


def test_a_folder_without_its_manifest_does_not_count(tmp_path):
    folder = save_checkpoint(tmp_path, _checkpoint())
    (folder / MANIFEST).unlink()
    assert checkpoint_folders(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_another_format_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, _checkpoint())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(StorageUnavailable, match="format 99"):
        load_checkpoint(folder)


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, _checkpoint())
    other = _checkpoint()
    other.state.tokens = 17
    assert load_checkpoint(save_checkpoint(tmp_path, other)).state.tokens == 17
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        save_checkpoint(blocked, _checkpoint())


def test_pruning_keeps_the_newest_and_clears_what_crashes_left(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, _checkpoint(step))
    (tmp_path / ".step-00000011.999").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


def test_random_state_comes_back():
    state = random_state()
    expected = torch.rand(3)
    torch.rand(5)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), expected)
