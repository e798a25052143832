"""Quality against FLOPs, seconds, joules and memory, every method at the same budgets.

    python benchmarks/frontier.py [--data FOLDER] [--seeds 0 1 2] [--grid all] [--plan]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here). A
budget is a share of the seconds that full fine-tuning takes for --reference-steps steps. A
contender gets as many steps as its own measured pace allows, its learning-rate schedule ends with
the budget, and its peak rate is the best of a sweep at the last --sweep-budgets not beyond it.
--grid main: full, green .7, green_lora, LoRA, last_k; all: further rhos, prefix, Hugging Face's
Trainer.

One process a run (--jobs: so many at a time), one JSON file a run under --runs; what is there is
not run again, so the work can be cut into pieces (--at-most, --only). --plan prints the runs that
are missing and what they will take. The page is written from whatever is there, of every data set
under --runs; what an earlier page says from its heading "Reading" on stays.

--paces FOLDER: calibrations of another machine, a data set's folder in its --runs. Budgets are then
seconds of that machine, which a card with time for many runs can train for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import EFFICIENT, MAIN, SIDE, Contender
from benchmarks.frontier_jobs import do, open_cache
from benchmarks.frontier_page import write_frontier
from benchmarks.frontier_plan import Cache, Job, missing
from benchmarks.processes import run_all
from core.settings import DEMO_MODEL

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SWEEP_BUDGETS = (0.3, 0.7)


def main(words: Sequence[str]) -> int:
    arguments = _arguments(words)
    transformers.utils.logging.set_verbosity_error()
    cache = open_cache(
        arguments.runs,
        arguments.data,
        model=arguments.model,
        reference_steps=arguments.reference_steps,
        batch_size=arguments.batch_size,
        n_validation=arguments.validation,
        n_questions=arguments.questions,
        paces=arguments.paces,
    )
    contenders = _contenders(arguments)
    if arguments.plan:
        _print_plan(cache, _missing(arguments, cache, contenders))
        return 0
    failed = _run_missing(arguments, cache, contenders)
    write_frontier(arguments.runs, arguments.out, sweep_budgets=arguments.sweep_budgets)
    print(f"wrote {arguments.out}")
    if failed:
        print(f"failed: {'; '.join(job.text for job in failed)}", file=sys.stderr)
    return int(bool(failed))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of data; none: docstring pairs")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--reference-steps", type=int, default=60, help="of full: budget 1")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--validation", type=int, default=40, help="held-out examples, for loss")
    parser.add_argument("--questions", type=int, default=16, help="of them, for ROUGE-L; 0: none")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares")
    parser.add_argument(
        "--sweep-budgets", type=float, nargs="+", default=SWEEP_BUDGETS, help="of the rates"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--grid", choices=("main", "all"), default="main")
    parser.add_argument("--only", nargs="+", help="contenders by label; overrules --grid")
    parser.add_argument("--at-most", type=int, default=10_000, help="new runs in this call")
    parser.add_argument("--plan", action="store_true", help="print the missing runs and stop")
    parser.add_argument("--runs", type=Path, default=Path(".frontier"), help="results' cache")
    parser.add_argument("--out", type=Path, default=Path("docs/frontier.md"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--paces", type=Path, help="folder of another machine's calibrations")
    found = parser.parse_args(words)
    known = {c.label for c in (*MAIN, EFFICIENT, *SIDE)}
    if unknown := sorted(set(found.only or ()) - known):
        parser.error(f"--only: no contender {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    return found


def _contenders(arguments: argparse.Namespace) -> list[Contender]:
    everybody = [*MAIN, EFFICIENT, *SIDE]
    if arguments.only is not None:
        return [c for c in everybody if c.label in arguments.only]
    return everybody if arguments.grid == "all" else [*MAIN, EFFICIENT]


def _missing(
    arguments: argparse.Namespace, cache: Cache, contenders: Sequence[Contender]
) -> list[Job]:
    return missing(
        cache,
        contenders,
        budgets=arguments.budgets,
        sweep_budgets=arguments.sweep_budgets,
        seeds=arguments.seeds,
    )


def _print_plan(cache: Cache, jobs: Sequence[Job]) -> None:
    for job in jobs:
        print(f"{cache.estimate_s(job) / 60:5.1f} min  {job.text}")
    print(f"{len(jobs)} runs, about {sum(map(cache.estimate_s, jobs)) / 60:.0f} minutes")


def _run_missing(
    arguments: argparse.Namespace, cache: Cache, contenders: Sequence[Contender]
) -> list[Job]:
    """A run may make others known: calibrations what is feasible, sweeps the best rate. Those that
    failed.
    """

    def startable() -> list[Job]:
        jobs = _missing(arguments, cache, contenders)
        minutes = sum(map(cache.estimate_s, jobs)) / 60 / arguments.jobs
        print(f"{len(jobs)} left, about {minutes:.0f} min", flush=True)
        return [job for job in jobs if not job.is_open]

    return run_all(
        startable,
        partial(do, cache, model=arguments.model),
        n_jobs=arguments.jobs,
        at_most=arguments.at_most,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
