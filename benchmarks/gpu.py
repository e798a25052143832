"""Speed, memory, exactness and quality on one CUDA device, in one command under eight minutes.

    python benchmarks/gpu.py [--data FOLDER] [--model ID] [--minutes 7.5] [--out docs/gpu.md]

- Speed: full, green at several rho, the last blocks, LoRA and prefix in turn, the same batches from
  the same weights; seconds a step, model FLOPs utilisation (MFU: FLOPs of the steps by greentune's
  prices, per second, to the device's dense bfloat16 peak, from a table and as measured on a large
  product), peak memory, and what selecting takes of a job of 200 and of 1,000 steps.
- Checks: predicted FLOPs against torch's counter; a resumed run against one that was not stopped.
  Exits with 1 where FLOPs are off by more than 0.1 %, or where bits differ on the CPU.
- Quality: `frontier`'s jobs in this process, as many as fit into what is left of the minutes.

Seconds of a step by method are left beside the page, for `paper_tables.py --speeds`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_checks
from benchmarks.budget_run import Task
from benchmarks.contenders import EFFICIENT, FULL, SIDE, Contender
from benchmarks.frontier_jobs import do, open_cache
from benchmarks.frontier_page import data_set, method
from benchmarks.frontier_plan import Cache, missing
from benchmarks.gpu_speed import measure_speed, peak_flops, prepared_all, speed_table
from benchmarks.measure import machine, write_page
from core.settings import DEMO_MODEL
from core.spec import ADAPTER_METHODS
from core.training.numerics import choose_numerics

TOLERANCE = 1e-3
BUDGETS = (0.2, 0.5, 1.0)
SWEEP_BUDGETS = (0.2,)
#: not all of MAIN: the whole command should take no more than 8 minutes
CONTENDERS = (
    FULL,
    Contender(method="green", rho=0.7),
    Contender(method="green_lora", rho=0.7),
    Contender(method="lora", target_modules="all-linear"),
    EFFICIENT,
    *(c for c in SIDE if c.engine == "trainer"),
)
#: whose model the checks are made with
CHECKED = Contender(method="green", rho=0.7)


def main(words: Sequence[str]) -> int:
    started_s = time.monotonic()
    arguments = _arguments(words)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print(
            "There is no CUDA device here (torch sees none): this benchmark needs one; "
            "--device cpu --model FOLDER tries it out on a small model.",
            file=sys.stderr,
        )
        return 2
    transformers.utils.logging.set_verbosity_error()
    deadline_s = started_s + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as scratch:
        cache = open_cache(
            Path(scratch),
            arguments.data,
            model=arguments.model,
            reference_steps=arguments.reference_steps,
            batch_size=arguments.batch_size,
            n_validation=arguments.validation,
            n_questions=arguments.questions,
        )
        parts, is_right = _measured(arguments, cache)
        _run_until(deadline_s, cache, arguments.model)
        if quality := data_set(cache, arguments.out, sweep_budgets=SWEEP_BUDGETS):
            parts += ["## Quality", method(SWEEP_BUDGETS), *quality]
    write_page(arguments.out, "\n\n".join(parts))
    print(f"wrote {arguments.out} after {(time.monotonic() - started_s) / 60:.1f} minutes")
    return int(not is_right)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of data; none: docstring pairs")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="no new run starts too late")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="of interleaved timing")
    parser.add_argument("--steps", type=int, default=12, help="of each contender in a round")
    parser.add_argument("--reference-steps", type=int, default=150, help="of full: budget 1")
    parser.add_argument("--validation", type=int, default=200, help="held-out examples, for loss")
    parser.add_argument("--questions", type=int, default=0, help="of them, for ROUGE-L; 0: none")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"))
    return parser.parse_args(words)


def _measured(arguments: argparse.Namespace, cache: Cache) -> tuple[list[str], bool]:
    """The page as far as quality, and whether the checks hold."""
    task = Task(
        model=arguments.model,
        data=cache.folder / "data",
        batch_size=arguments.batch_size,
        n_questions=0,
    )
    prepared = prepared_all(task)
    speeds = measure_speed(prepared, n_rounds=arguments.rounds, n_steps=arguments.steps)
    numerics = choose_numerics()
    peaks = peak_flops(numerics.device)
    green = prepared[CHECKED]
    errors = [
        gpu_checks.flops_error(green, speed.names)
        for contender, speed in zip(prepared, speeds, strict=True)
        if contender.method not in ADAPTER_METHODS
    ]
    resume = gpu_checks.resume_difference(green)
    is_right = max(errors) <= TOLERANCE and (resume.is_same or numerics.device.type == "cuda")
    shown = ", ".join(f"{name} {flops / 1e12:.3g} TFLOPS" for name, flops in peaks.items())
    intro = (
        f"`python benchmarks/gpu.py`: {cache.settings.model}, {cache.settings.data}, batch "
        f"{arguments.batch_size}, {machine()}, {numerics.precision}, torch {torch.__version__}. "
        f"Peak in bfloat16: {shown}. Median of {arguments.rounds} interleaved rounds of "
        f"{arguments.steps} steps (lowest to highest)."
    )
    checks = (
        f"FLOPs predicted against counted: off by at most {max(errors):.1e}. Resumed after a "
        f"checkpoint against not stopped: {resume.text}."
    )
    seconds = {speed.label: statistics.median(speed.step_s) for speed in speeds}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(seconds, indent=1))
    parts = ["# On one device", intro, speed_table(speeds, peaks)]
    return [*parts, "## Checks", checks], is_right


def _run_until(deadline_s: float, cache: Cache, model: str) -> None:
    """As many jobs as fit, judged by the longest so far; the page shows the rest as missing."""
    longest_s = 0.0
    while time.monotonic() + longest_s < deadline_s:
        jobs = missing(cache, CONTENDERS, budgets=BUDGETS, sweep_budgets=SWEEP_BUDGETS, seeds=[0])
        if not jobs:
            return
        started_s = time.monotonic()
        do(cache, jobs[0], model=model)
        longest_s = max(longest_s, time.monotonic() - started_s)
        print(f"{jobs[0].text}: {time.monotonic() - started_s:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
