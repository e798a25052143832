"""Runs in processes of their own."""

from functools import partial
from pathlib import Path

from benchmarks.processes import run_all


def _leave_a_file(folder: Path, name: str) -> None:
    if name == "bad":
        raise ValueError("this one cannot be done")
    (folder / name).write_text("")


def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path, capsys):
    def startable():
        # "last" becomes known by "first"
        names = ["bad", "first", *(["last"] if (tmp_path / "first").exists() else [])]
        return [name for name in names if not (tmp_path / name).exists()]

    failed = run_all(startable, partial(_leave_a_file, tmp_path), n_jobs=2, at_most=10)
    assert failed == ["bad"]
    assert "this one cannot be done" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"first", "last"}


def test_no_more_is_begun_than_asked_for(tmp_path):
    do = partial(_leave_a_file, tmp_path)
    assert run_all(lambda: ["a", "b", "c"], do, n_jobs=1, at_most=2) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
