"""When hidden states are stored: by the passes between two selections, the room, and the wish."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from core.errors import InvalidInput
from core.spec import MethodOptions
from core.training.interval import Spared
from core.training.methods import method_named
from core.training_options import TrainingOptions
from worker import reuse as module
from worker.reuse import prefix_reuse

GREEN, LAST = method_named("green"), method_named("last_k", MethodOptions(k=1))


SPARED = Spared(boundary={}, flops=(1.0,))


def _reuse(choice="auto", *, method=GREEN, interval=1.0, n_epochs=3.0, n_tokens=1000, folder=None):
    head = SimpleNamespace(weight=torch.empty(7, 16, device="meta"))
    return prefix_reuse(
        TrainingOptions(prefix_reuse=choice, selection_interval=interval),
        method,
        SimpleNamespace(
            get_output_embeddings=lambda: head, config=SimpleNamespace(is_encoder_decoder=False)
        ),
        data=[SimpleNamespace(report=SimpleNamespace(n_tokens=n_tokens))],
        n_epochs=n_epochs,
        folder=folder,
        spared=lambda: SPARED,
    )


@pytest.mark.parametrize(
    ("given", "is_stored"),
    [
        ({}, False),  # each sample is seen once per selection
        ({"interval": 2.0}, True),
        ({"interval": 2.0, "n_epochs": 1.0}, False),
        ({"interval": 2.0, "n_epochs": 0.5}, False),
        ({"method": LAST}, True),  # selects once
        ({"method": LAST, "choice": "off"}, False),
        ({"choice": "on"}, True),
        ({"interval": None}, True),  # as long as it pays
        ({"interval": None, "n_epochs": 1.0}, False),
        ({"interval": None, "method": method_named("full"), "choice": "on"}, False),
    ],
)
def test_auto_follows_the_passes_between_selections(given, is_stored):
    assert (_reuse(**given) is not None) == is_stored


def test_auto_stores_all_or_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(
        module.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 30_000)
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 40_000))
    given = {"interval": 2.0, "folder": tmp_path / "not" / "yet"}
    room = _reuse(n_tokens=1000, **given)  # 64,000 bytes
    assert (room.memory_bytes, room.disk_bytes) == (30_000, 40_000)
    assert room.folder == tmp_path / "not" / "yet"
    assert not (tmp_path / "not").exists()
    assert _reuse(n_tokens=1100, **given) is None
    assert room.spared == SPARED
    # stored as far as there is room, which no selection may count on
    assert _reuse("on", n_tokens=1100, **given).spared is None


def test_other_words_are_refused():
    with pytest.raises(InvalidInput, match="prefix_reuse must be one of auto, on, off"):
        TrainingOptions(prefix_reuse="yes")
