"""Samples seen several times: what the rules for peak rates and for open epochs rest on.

    python benchmarks/repeated_samples.py [--data FOLDER] [--samples 160] [--passes 3]
        [--seeds 0] [--only METHOD ...] [--parts 1 2 3]

FOLDER holds train.jsonl and validation.jsonl (default: docstring pairs); the first ``--samples``
of the former are seen ``--passes`` times in batches of 4. Every method runs at its own rate for
one pass and at parts of it, with stored hidden states as a job uses them, and is validated as a job
is, on the first 60 held-out examples, after each pass.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.data import cut, docstrings_unless
from benchmarks.measure import machine, table
from core.settings import DEMO_MODEL
from core.training.hooks import Hook, ValidationRecord
from worker.prepare import train

BATCH: Final = 4
#: held-out examples that losses are of
JUDGED: Final = 60
METHODS: Final = {
    "full": FULL,
    "green": Contender(method="green", rho=0.7),
    "green_lora": Contender(method="green_lora", rho=0.7),
    "lora": Contender(method="lora", target_modules="all-linear"),
}
_TITLES: Final = ("trained", "seed", "rate", "after each pass", "CPU s")


class _Losses(Hook):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_validation(self, record: ValidationRecord) -> None:
        self.found.append(record.loss)


def losses(
    task: Task, contender: Contender, *, rate: float, n_steps: int, seed: int
) -> tuple[list[float], float]:
    """Held-out loss after each pass, and the processor's seconds, validation included."""
    prepared = prepared_for(task, contender, n_steps=n_steps, rate=rate, seed=seed)
    seen, rho = _Losses(), contender.rho
    started_s = time.process_time()
    train(prepared, rho=lambda _step: rho if isinstance(rho, float) else 1.0, hooks=[seen])
    return seen.found, time.process_time() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--parts", type=float, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source = docstrings_unless(asked.data, Path(scratch))
        folder = cut(source, Path(scratch) / "cut", n_train=asked.samples, n_validation=JUDGED)
        task = Task(model=DEMO_MODEL, data=folder, batch_size=BATCH, n_questions=0)
        n_steps = -(-asked.samples // BATCH) * asked.passes
        runs = [
            (seed, name, part)
            for seed in asked.seeds
            for name in asked.only
            for part in asked.parts
        ]
        for seed, name, part in runs:
            rate = float(f"{METHODS[name].rule / part:.3g}")
            found, spent_s = losses(task, METHODS[name], rate=rate, n_steps=n_steps, seed=seed)
            shown = ", ".join(f"{loss:.3f}" for loss in found)
            rows.append([METHODS[name].label, str(seed), f"{rate:g}", shown, f"{spent_s:.0f}"])
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{asked.samples} samples, {asked.passes} passes; {machine()}, torch {torch.__version__}")
    print(f"\n{table(_TITLES, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
