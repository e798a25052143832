"""What `greentune run` and its neighbours say where they may not write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core.errors import Conflict, StartRefused
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


def test_output_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    counts = ["--train", "1", "--validation", "1", "--test", "1"]
    monkeypatch.setattr(sys, "argv", ["greentune", "demo-data", "/dev/null/data", *counts])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == "Input or output failed: Not a directory (/dev/null/data)."
