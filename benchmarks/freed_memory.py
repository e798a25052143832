"""What a step takes where the allocator keeps what is freed, and where it does not.

    python benchmarks/freed_memory.py [--data FOLDER] [--rounds 5] [--steps 12]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here). An
allocator's setting is a process's, so every line of a round is a process of its own: the same steps
of full fine-tuning and of rho .4, with what `core.training.freed_memory` sets and without. Seconds
are the processor's, the kernel's apart; ratios are within a round. Peak: resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.data import docstrings_unless
from benchmarks.measure import machine, table
from core.settings import DEMO_MODEL
from core.training.freed_memory import keep_freed_memory
from core.training.hooks import Hook, StepRecord
from worker import prepare

_CONTENDERS = (FULL, Contender(method="green", rho=0.4))


class _Clock(Hook):
    """The processor's seconds from the first step's end on."""

    def __init__(self) -> None:
        self.first: resource.struct_rusage | None = None

    def on_step(self, record: StepRecord) -> None:
        if record.step == 1:
            self.first = resource.getrusage(resource.RUSAGE_SELF)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--keeps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--line", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.line is not None:
        print(json.dumps(_measured(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = docstrings_unless(arguments.data, Path(scratch))
        rounds = [_round(folder, arguments.steps) for _ in range(arguments.rounds)]
    print(_section(rounds, arguments.steps))
    return 0


def _round(folder: Path, n_steps: int) -> list[dict[str, float]]:
    """Each contender without and with."""
    found = []
    for line in range(len(_CONTENDERS)):
        for keeps in (0, 1):
            words = f"--data {folder} --steps {n_steps} --line {line} --keeps {keeps}"
            command = [sys.executable, __file__, *words.split()]
            out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    # the product's own call would set it for both
    prepare.keep_freed_memory = keep_freed_memory if arguments.keeps else lambda: False
    task = Task(model=DEMO_MODEL, data=arguments.data, batch_size=4, n_questions=0)
    contender = _CONTENDERS[arguments.line]
    prepared = prepared_for(task, contender, n_steps=arguments.steps, rate=None, seed=0)
    clock = _Clock()
    rho = contender.rho if isinstance(contender.rho, float) else 1.0
    prepare.train(prepared, rho=lambda _step: rho, hooks=[clock])
    last, first = resource.getrusage(resource.RUSAGE_SELF), clock.first
    assert first is not None, "there was a step"
    kernel_s = last.ru_stime - first.ru_stime
    return {
        "step_s": (last.ru_utime - first.ru_utime + kernel_s) / (arguments.steps - 1),
        "kernel_s": kernel_s / (arguments.steps - 1),
        "faults": (last.ru_minflt - first.ru_minflt) / (arguments.steps - 1),
        "peak_mib": last.ru_maxrss / 1024,
    }


def _section(rounds: list[list[dict[str, float]]], n_steps: int) -> str:
    rows = []
    for at, contender in enumerate(_CONTENDERS):
        for keeps in (0, 1):
            lines = [each[2 * at + keeps] for each in rounds]
            ratios = [each[2 * at + keeps]["step_s"] / each[2 * at]["step_s"] for each in rounds]
            middle = {name: statistics.median(line[name] for line in lines) for name in lines[0]}
            rows.append(
                [
                    contender.label,
                    "kept" if keeps else "given back",
                    f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                    f"{middle['step_s']:.3f}",
                    f"{middle['kernel_s']:.3f}",
                    f"{middle['faults']:.0f}",
                    f"{middle['peak_mib']:.0f}",
                ]
            )
    head = f"{len(rounds)} rounds of {n_steps} steps, medians; {machine()}."
    titles = ["method", "freed memory", "time", "CPU s/step", "of it kernel", "faults", "peak MiB"]
    return f"{head}\n\n{table(titles, rows)}"


if __name__ == "__main__":
    sys.exit(main())
