"""The tables of the GreenTrainer paper, on what is at hand. Writes docs/results.md.

    python benchmarks/paper_tables.py --data FOLDER [--seeds 0 1 2] [--steps 250] [--at-most 4]

- FLOPs: of the paper's models, measured (`paper_flops`), beside the paper's own numbers.
- Quality: every method on a model that is at hand, the same steps on the same data. FOLDER holds
  train.jsonl and validation.jsonl. One process a run, so that peak memory is the run's own; --jobs
  of them at a time, and then seconds are taken from --speeds, what `gpu.py` measured alone.

Every run leaves a JSON file under --runs; what is there is not run again, a run that was stopped
goes on from its checkpoint, and the page is written from whatever is there. The base model answers
once, in a run of its own. So the work can be cut
into pieces (--at-most, --only) and spread over nights. Seconds are the process's own CPU time, so
with OMP_NUM_THREADS=1 they hold on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paper_flops import (  # beside this file
    ABLATION,
    FULL,
    GREEN,
    MAIN,
    Contender,
    measure_paper,
    measure_sizes,
)
from paper_page import ROUGES, page

from benchmarks.measure import machine, peak_bytes, reset_peak, write_page
from benchmarks.processes import run_all
from core.errors import RhoInfeasible
from core.settings import DEMO_MODEL, Settings
from core.spec import EvalOptions, GreenOptions, JobSpec
from core.training.evaluate import evaluate
from core.training.hooks import FitResult, Hook, StepRecord
from core.training.numerics import choose_numerics
from core.training.step import LossStep, needs_mask
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare, train

#: of the base model's loss and answers
BEFORE: Final = "before.json"


def main() -> int:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    folder = arguments.runs / _digest(arguments)
    flops = _cached(arguments.runs / f"flops-{torch.__version__}.json", measure_paper)
    sizes = _cached(arguments.runs / f"sizes-{torch.__version__}.json", measure_sizes)
    failed = [] if arguments.data is None else _run_missing(arguments, folder)
    before = json.loads((folder / BEFORE).read_text()) if (folder / BEFORE).exists() else None
    text = page(arguments, flops, sizes, _found(folder), before)
    write_page(arguments.out, text)
    print(f"wrote {arguments.out}")
    return int(bool(failed))


def parse_arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of data; none: train nothing")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--steps", type=int, default=250, help="optimiser steps of each run")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", type=int, default=200, help="held-out examples, for loss")
    parser.add_argument("--questions", type=int, default=100, help="of them, for ROUGE")
    parser.add_argument("--only", nargs="+", help="contenders by label, as in the tables")
    parser.add_argument("--at-most", type=int, default=1000, help="new runs in this call")
    parser.add_argument("--runs", type=Path, default=Path(".paper-tables"), help="results' cache")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--speeds", type=Path, help="gpu.py's JSON, for seconds of a step")
    return parser.parse_args()


# ---- quality: one process a run


@dataclass(frozen=True, slots=True)
class Run:
    contender: Contender
    seed: int


#: the run that trains nothing
NOBODY: Final = Run(Contender(method="none"), 0)


class StepClock(Hook):
    """What a step takes: the process's CPU seconds where the CPU computes, else wall time."""

    def __init__(self) -> None:
        self._done_s: dict[int, float] = {}

    def on_step(self, record: StepRecord) -> None:
        self._done_s[record.step] = time.process_time()

    def median_s(self, result: FitResult) -> float | None:
        """None: this process took less than two steps, being stopped and continued at their end."""
        if torch.cuda.is_available():
            return result.train_duration_s / result.step
        taken_s = [b - a for a, b in itertools.pairwise(self._done_s.values())]
        return statistics.median(taken_s) if taken_s else None


def _run_missing(arguments: argparse.Namespace, folder: Path) -> list[Run]:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    lines = (arguments.data / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = "\n".join(lines[: arguments.validation]) + "\n"
    (folder / "data" / "validation.jsonl").write_text(held_out, encoding="utf-8")
    wanted = [
        Run(contender, seed)
        for seed in arguments.seeds
        for contender in dict.fromkeys((*MAIN, *GREEN, *ABLATION))
        if arguments.only is None or contender.label in arguments.only
    ]
    missing = [run for run in wanted if not _file(folder, run.contender, run.seed).exists()]
    if not (folder / BEFORE).exists():
        missing.insert(0, NOBODY)
    return run_all(
        lambda: missing,
        functools.partial(run_one, arguments),
        n_jobs=arguments.jobs,
        at_most=arguments.at_most,
    )


def run_one(arguments: argparse.Namespace, run: Run) -> None:
    transformers.utils.logging.set_verbosity_error()
    folder = arguments.runs / _digest(arguments)
    if run == NOBODY:
        base = _prepared(arguments, FULL, seed=0)
        (folder / BEFORE).write_text(json.dumps(_judged(base), indent=1))
        return
    contender, seed = run.contender, run.seed
    target = _file(folder, contender, seed)
    checkpoints = target.with_suffix("")
    try:
        prepared = _prepared(arguments, contender, seed=seed, checkpoints=checkpoints)
    except RhoInfeasible as error:
        target.write_text(json.dumps({"rho_min": error.rho_min}))
        return
    rho = contender.rho or prepared.rho_min
    clock = StepClock()
    reset_peak()
    result = train(
        # judged afterwards, which is outside its clock
        dataclasses.replace(prepared, validation_data=None, exam=None),
        rho=lambda _step: rho,
        checkpoints=checkpoints,
        keep_checkpoints=1,
        hooks=[clock],
    )
    trained_peak_bytes = peak_bytes()
    found = {
        **_judged(prepared),
        "flops": result.flops,
        "flops_share": result.flops_share,
        "selection_share": result.selection_flops / result.flops,
        "step_s": clock.median_s(result),
        "jobs": arguments.jobs,
        "peak_bytes": trained_peak_bytes,
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    target.write_text(json.dumps(found, indent=1))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _prepared(
    arguments: argparse.Namespace,
    contender: Contender,
    *,
    seed: int,
    checkpoints: Path | None = None,
) -> Prepared:
    """Raises RhoInfeasible where the contender's rho is not feasible for the data."""
    place = arguments.model if Path(arguments.model).is_dir() else None
    return prepare(
        _spec(arguments, contender, seed),
        training_path=arguments.data / "train.jsonl",
        validation_path=arguments.runs / _digest(arguments) / "data" / "validation.jsonl",
        models={arguments.model: place},
        cache=Settings().home.expanduser() / "models",
        checkpoints=checkpoints,
    )


def _judged(prepared: Prepared) -> dict[str, float]:
    """Loss on all held-out examples and ROUGE of answers, of the model as it is now."""
    # training gives it back on the CPU
    model = prepared.loaded.model.to(choose_numerics().device)
    step = LossStep(model, keeps_mask=needs_mask(model))
    batches = [step.inputs(batch) for batch in prepared.validation_batches()]
    return {"validation_loss": evaluate(step, batches).loss, **prepared.ask().scores}


def _spec(arguments: argparse.Namespace, contender: Contender, seed: int) -> JobSpec:
    return JobSpec(
        model=arguments.model,
        training_file="train.jsonl",
        validation_file="validation.jsonl",
        seed=seed,
        training=TrainingOptions(
            n_epochs=50, max_steps=arguments.steps, batch_size=arguments.batch_size
        ),
        green=GreenOptions(
            method=contender.method,  # type: ignore[arg-type]  checked by GreenOptions
            options=contender.options,
            importance=contender.importance,  # type: ignore[arg-type]  checked by GreenOptions
            rho=contender.rho or "auto",
        ),
        eval=EvalOptions(metrics=ROUGES, max_examples=arguments.questions, max_new_tokens=32),
    )


def _digest(arguments: argparse.Namespace) -> str:
    """Runs of other settings lie apart; what is trained counts, not where it lies."""
    data = arguments.data
    hashed = "" if data is None else hashlib.sha256((data / "train.jsonl").read_bytes()).hexdigest()
    settings = (arguments.model, arguments.steps, arguments.batch_size)
    settings += (arguments.validation, arguments.questions, hashed)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def _file(folder: Path, contender: Contender, seed: int) -> Path:
    return folder / f"{contender.label.replace(' ', '-').replace('.', '_')}-seed{seed}.json"


def _cached(path: Path, measure: Callable[[], Any]) -> Any:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(), indent=1))
    return json.loads(path.read_text())


def _found(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Contender's label -> what its runs gave, one a seed."""
    return {
        contender.label: [
            json.loads(path.read_text())
            for path in sorted(folder.glob(_file(folder, contender, 0).stem[:-1] + "*.json"))
        ]
        for contender in (*MAIN, *GREEN, *ABLATION)
    }


if __name__ == "__main__":
    sys.exit(main())
