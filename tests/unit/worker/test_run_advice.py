"""A bug that ends `greentune run`: a traceback, and then what to do."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from core.settings import Settings
from core.spec import GreenOptions, JobSpec
from core.training_options import TrainingOptions
from worker.run_local import run_local


def test_a_bug_in_a_model_ends_with_the_command_that_goes_on(
    tmp_path: Path,
    tiny_model: Path,
    chat_lines: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import LlamaForCausalLM

    def broken(*_: object, **__: object) -> None:
        raise KeyError("loss")

    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(12))
    spec = JobSpec(
        model=str(tiny_model),
        training_file=str(data),
        training=TrainingOptions(n_epochs=1),
        green=GreenOptions(zone="FR", rho=0.7),
    )
    settings = Settings(home=tmp_path / "home", meter_interval_s=0.2)
    with pytest.raises(KeyError) as caught:
        run_local(spec, tmp_path / "out", settings, Console(quiet=True))
    lines = "".join(traceback.format_exception(caught.value)).splitlines()
    where = tmp_path / "out" / "checkpoints"
    advice = f"The same command tries again, from the newest checkpoint in {where} if there is one."
    assert lines[-2:] == ["KeyError: 'loss'", advice]
    attempts = (tmp_path / "out" / "attempts.jsonl").read_text().splitlines()
    assert json.loads(attempts[-1])["outcome"] == "failed"
