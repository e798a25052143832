"""What compiled blocks gain and cost: what `green.training.compile` of "auto" finds, by method.

    python benchmarks/compiled.py [--data FOLDER] [--model NAME_OR_FOLDER] [--rounds 3]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here).
Each method's job is as long as its data and 50 epochs allow, stops once it has decided, and is
tried once a round in a process's turn; code that an earlier round made is found in torch's cache,
so seconds of compiling are the first round's. Ratios are medians of five pairs of passes, forward
and backward, without and with compiled code on the same batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.data import docstrings_unless
from benchmarks.measure import machine, table
from core.settings import DEMO_MODEL
from core.training.hooks import CompilationRecord, Control, Hook
from core.training.numerics import choose_numerics
from worker.prepare import train

CONTENDERS: Final = (
    FULL,
    Contender(method="lora", target_modules="all-linear"),
    Contender(method="last_k", k=8),
    Contender(method="green", rho=0.7),
)
#: more than 50 epochs of most data sets
_STEPS: Final = 1_000_000


class _Decision(Hook):
    found: CompilationRecord | None = None

    def on_compilation(self, record: CompilationRecord) -> None:
        self.found = record


def decide(task: Task, contender: Contender) -> CompilationRecord:
    """What a long job of ``contender`` finds."""
    prepared = prepared_for(task, contender, n_steps=_STEPS, rate=None, seed=0)
    training = dataclasses.replace(prepared.training, compile="auto")
    job = dataclasses.replace(prepared, training=training, validation_data=None, exam=None)
    decision = _Decision()
    rho = contender.rho if isinstance(contender.rho, float) else 1.0

    def control() -> Control:
        return Control.CONTINUE if decision.found is None else Control.STOP

    train(job, rho=lambda _step: rho, hooks=[decision], control=control)
    assert decision.found is not None, "the first step comes after the decision"
    return decision.found


def row(label: str, found: Sequence[CompilationRecord]) -> list[str]:
    first, ratios = found[0], [each.ratio for each in found if each.ratio is not None]
    if not ratios:
        return [label, str(first.n_kinds), "", "", first.text]
    shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return [label, str(first.n_kinds), f"{first.build_s:.0f}", shown, first.text]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = docstrings_unless(arguments.data, Path(scratch))
        task = Task(model=arguments.model, data=data, batch_size=4, n_questions=0)
        found: dict[str, list[CompilationRecord]] = {each.label: [] for each in CONTENDERS}
        for _ in range(arguments.rounds):
            for contender in CONTENDERS:
                found[contender.label].append(decide(task, contender))
                print(contender.label, found[contender.label][-1].text, flush=True)
    print(f"\n{machine()}; {choose_numerics().precision}\n")
    head = ["method", "kinds of blocks", "s compiling", "time of a pass to plain", "decision"]
    print(table(head, [row(label, each) for label, each in found.items()]))


if __name__ == "__main__":
    main()
