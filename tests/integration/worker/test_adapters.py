"""Jobs that train adapters, as the caller sees them: what is delivered, and what can go on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.jobs import store
from core.jobs.lifecycle import Status
from core.objects.folders import get_folder
from core.spec import MethodOptions
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.desk import Desk

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def _wish(method: str, **options: object) -> dict[str, object]:
    return {"method": method, "options": MethodOptions(r=2, n_virtual_tokens=3, **options)}


def _folder(desk: Desk, model: str, folder: Path) -> Path:
    with desk.database.read() as session:
        record = store.get_model(session, TENANT, model)
    get_folder(desk.objects, record.prefix, folder)
    return folder


@pytest.mark.parametrize(("method", "merge"), [("lora", False), ("green_lora", True)])
def test_an_adapter_and_its_checkpoint_are_bases(
    method: str, merge: bool, desk: Desk, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    first = desk.carry_out(desk.submit(chat_lines(12), green=_wish(method, merge=merge)))
    assert (first.status, first.error) == (Status.SUCCEEDED, None)
    assert first.fine_tuned_model is not None
    files = {path.name for path in _folder(desk, first.fine_tuned_model, tmp_path / "r").iterdir()}
    assert ("adapter_model.safetensors" in files) is not merge
    assert ("model.safetensors" in files) is merge
    with desk.database.read() as session:
        checkpoint = store.list_checkpoints(session, TENANT, first.id).items[0]
    losses = []
    for model in (first.fine_tuned_model, checkpoint.model):
        job = desk.carry_out(desk.submit(chat_lines(12), model=model, green=_wish("full")))
        assert (job.status, job.error) == (Status.SUCCEEDED, None)
        losses.append(job.progress.train_loss)
    assert losses[0] == losses[1]


def test_a_prefix_is_delivered_but_is_no_base(
    desk: Desk, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    job = desk.carry_out(desk.submit(chat_lines(12), green=_wish("prefix")))
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.fine_tuned_model is not None
    folder = _folder(desk, job.fine_tuned_model, tmp_path / "r")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["num_virtual_tokens"]) == ("tiny", 3)
    assert "library_name: peft" in (folder / "README.md").read_text()
    again = desk.carry_out(desk.submit(chat_lines(12), model=job.fine_tuned_model))
    assert again.status == Status.FAILED
    assert again.error is not None
    assert "prefix" in again.error.message
