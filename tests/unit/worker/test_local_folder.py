"""What `greentune run` and its neighbours say where they may not write."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import pytest

from core.errors import Conflict, StartRefused
from core.spec import JobSpec
from worker.__main__ import main
from worker.local_folder import LocalFolder


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StartRefused, match=r"cannot be made \(Not a directory\); .* --out"),
        LocalFolder(path=tmp_path / "file" / "out").held(),
    ):
        pass


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path):
    folder = LocalFolder(path=tmp_path / "out")
    with (
        folder.held(),
        pytest.raises(Conflict, match="Another `greentune run` works in"),
        folder.held(),
    ):
        pass
    with folder.held():
        pass


def test_a_job_that_never_trained_may_be_mended_in_its_folder(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    folder = LocalFolder(path=tmp_path)

    def begin(text: str, seed: int) -> datetime:
        data.write_text(text)
        return folder.begin(JobSpec(model="m", training_file=str(data), seed=seed), [data])

    first = begin("a mistake", seed=1)
    assert begin("mended", seed=2) == first
    folder.settle_rho(lambda: 0.5)
    assert begin("mended", seed=2) == first
    for text, seed in (("other data", 2), ("mended", 3)):
        with pytest.raises(Conflict, match="choose another --out"):
            begin(text, seed)


def test_output_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    counts = ["--train", "1", "--validation", "1", "--test", "1"]
    monkeypatch.setattr(sys, "argv", ["greentune", "demo-data", "/dev/null/data", *counts])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == "Input or output failed: Not a directory (/dev/null/data)."
