"""Data for a benchmark: a folder that was given or the demo's docstring pairs, cut to size."""

from __future__ import annotations

from pathlib import Path

from core.data.demo import build


def docstrings_unless(given: Path | None, scratch: Path) -> Path:
    """``given``, or a new folder in ``scratch``: train.jsonl of 1,600 pairs, validation.jsonl."""
    if given is not None:
        return given
    folder = scratch / "demo"
    build(folder, n_train=1600)
    return folder


def cut(source: Path, into: Path, *, n_train: int, n_validation: int = 0) -> Path:
    """``into``: a new folder with the first examples of ``source``'s train.jsonl, and of its
    validation.jsonl unless none are wanted.
    """
    into.mkdir()
    for name, count in (("train.jsonl", n_train), ("validation.jsonl", n_validation)):
        if count:
            lines = (source / name).read_text(encoding="utf-8").splitlines()[:count]
            (into / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return into
