"""Whole runs of what was tried and not taken, as a table: what `gradient_rows` and
`gradient_projections` share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch

from benchmarks.budget_run import Task
from benchmarks.data import cut
from benchmarks.measure import machine, table
from core.settings import DEMO_MODEL

#: held-out examples that losses are of
JUDGED: Final = 200
_TITLES: Final = ("trained", "seed", "rate", "FLOPs", "held-out loss", "CPU s")


class Labelled(Protocol):
    @property
    def label(self) -> str: ...

    @property
    def rate(self) -> float: ...


L = TypeVar("L", bound=Labelled)

#: of a task, a line, the steps and the seed: share of full fine-tuning's FLOPs, held-out loss,
#: processor's seconds
Measure = Callable[[Task, L, int, int], tuple[float, float, float]]


def print_runs(description: str, lines: Sequence[L], measure: Measure[L]) -> int:
    """The command: asks for data, steps, seeds and labels, and prints a row for each run."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[line.label for line in lines])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        n_train = len((asked.data / "train.jsonl").read_bytes().splitlines())
        folder = cut(asked.data, Path(scratch) / "data", n_train=n_train, n_validation=JUDGED)
        task = Task(model=DEMO_MODEL, data=folder, batch_size=4, n_questions=0)
        rows = []
        for seed in asked.seeds:
            for line in lines:
                if line.label in asked.only:
                    share, loss, spent_s = measure(task, line, asked.steps, seed)
                    found = f"{share:.2f}", f"{loss:.3f}", f"{spent_s:.0f}"
                    rows.append([line.label, str(seed), f"{line.rate:g}", *found])
                    print(rows[-1], file=sys.stderr, flush=True)
    print(f"{asked.steps} steps; {machine()}, torch {torch.__version__}\n\n{table(_TITLES, rows)}")
    return 0
