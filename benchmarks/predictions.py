"""Predicted against realised loss drop, over shares of FLOPs and methods.

    python benchmarks/predictions.py [--data FOLDER] [--points 0 48] [--interval 12] [--seeds 0 1]
                                     [--out FILE.md]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here).

A run of full fine-tuning is stopped at each point. There importance is measured once, as a job's
selection would, and every contender starts from the same weights and fresh moments: it trains its
set for an interval on the same batches, and the held-out loss is taken before and after. Each
contender runs at one common rate, full fine-tuning's, and again at the rate that the rule gives its
share. The prediction is first order: importance of the set, times the steps, at the rate it runs
at. What decides is the last columns: drop per FLOP over full fine-tuning's, predicted and realised.
Float32 on the CPU, whose seconds are the process's own, so that they hold beside other work; the
first steps of every interval warm up.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.data import docstrings_unless
from benchmarks.lab import Lab
from benchmarks.measure import machine, mean_text, publish, table
from core.errors import RhoInfeasible
from core.settings import DEMO_MODEL
from core.training.methods import Choice

CONTENDERS: Final = (
    FULL,
    Contender(method="green", rho=0.85),
    Contender(method="green", rho=0.7),
    Contender(method="green", rho=0.5),
    Contender(method="green", rho=0.4),
    Contender(method="last_k", rho=0.7),
    Contender(method="last_k", rho=0.5),
)
#: steps of an interval in which the rate rises
WARM_UP: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One contender's training from one point. Drops in nats a label token."""

    label: str
    seed: int
    point: int
    rate: float
    is_rule: bool
    share: float
    predicted: float
    realised: float
    step_s: float


def intervals(lab: Lab, points: Sequence[int], n_steps: int, seed: int) -> list[Interval]:
    """Full fine-tuning up to the last of ``points``, and at each what every contender makes of it.

    Args:
        n_steps: of an interval.
    """
    run = lab.optimiser()
    run.select(lab.prepared.profile.trainable)
    found: list[Interval] = []
    for step in range(max(points) + 1):
        if step in points:
            names, moments = run.names, run.state_tensors()
            found += _at(lab, step, n_steps, seed)
            run = lab.resumed(names, moments)
        lab.train(run, step, lab.rule(FULL))
    return found


def _at(lab: Lab, step: int, n_steps: int, seed: int) -> list[Interval]:
    before, loss = lab.weights(), lab.loss()
    importance = lab.importance(lab.optimiser(), step, n_steps)
    found = []
    for contender in CONTENDERS:
        try:
            chosen = lab.choose(contender, importance)
        except RhoInfeasible:
            continue
        worth = math.fsum(importance[name] for name in chosen.names)
        for rate in dict.fromkeys((lab.rule(FULL), lab.rule(contender))):
            rates = [rate * min(1.0, (at + 1) / (WARM_UP + 1)) for at in range(n_steps)]
            step_s = _train(lab, chosen, rates, step)
            found.append(
                Interval(
                    label=contender.label,
                    seed=seed,
                    point=step,
                    rate=rate,
                    is_rule=rate != lab.rule(FULL),
                    share=chosen.rho_planned,
                    predicted=worth * sum(rates),
                    realised=loss - lab.loss(),
                    step_s=step_s,
                )
            )
            print(found[-1], flush=True)
            lab.put(before)
    return found


def _train(lab: Lab, chosen: Choice, rates: Sequence[float], step: int) -> float:
    """Seconds a step."""
    optimiser = lab.optimiser()
    optimiser.select(chosen.names)
    started_s = time.process_time()
    for at, rate in enumerate(rates):
        lab.train(optimiser, step + at, rate)
    return (time.process_time() - started_s) / len(rates)


def page(found: Sequence[Interval], arguments: argparse.Namespace) -> str:
    """Markdown: one table a point."""
    parts = [
        "# Predicted and realised loss drops",
        (
            f"`python benchmarks/predictions.py`: {Path(arguments.model).name} on "
            f"{arguments.data.name if arguments.data else 'docstrings'}, batches of "
            f"{arguments.batch_size}, intervals of {arguments.interval} steps, "
            f"{arguments.held_out} held-out batches, seeds "
            f"{', '.join(map(str, arguments.seeds))}; {machine()}, torch "
            f"{torch.__version__}, transformers {transformers.__version__}. Drops in nats; mean "
            "± standard deviation over the seeds."
        ),
    ]
    for point in sorted({each.point for each in found}):
        parts += [f"## After {point} steps of full fine-tuning", _point_table(found, point)]
    return "\n\n".join(parts) + "\n"


def _point_table(found: Sequence[Interval], point: int) -> str:
    here = [each for each in found if each.point == point]
    full = {each.seed: each for each in here if each.label == FULL.label}
    head = ("trained", "rate", "FLOPs", "seconds a step", "predicted", "realised")
    head += ("realised / predicted", "per FLOP: predicted", "realised", "per second: realised")
    rows = []
    for label, is_rule in dict.fromkeys((each.label, each.is_rule) for each in here):
        same = [each for each in here if (each.label, each.is_rule) == (label, is_rule)]
        values = [_compared(each, full[each.seed]) for each in same]
        texts = [mean_text(values, key, form) for key, form in _COLUMNS.items()]
        rows.append([label, f"{same[0].rate:.1e}", *texts])
    return table(head, rows)


_COLUMNS: Final = {
    "share": ".3f",
    "time": ".2f",
    "predicted": ".3f",
    "realised": ".3f",
    "ratio": ".2f",
    "predicted_rate": ".2f",
    "realised_rate": ".2f",
    "realised_per_second": ".2f",
}


def _compared(one: Interval, full: Interval) -> dict[str, Any]:
    time_share = one.step_s / full.step_s
    return {
        "share": one.share / full.share,
        "time": time_share,
        "predicted": one.predicted,
        "realised": one.realised,
        "ratio": one.realised / one.predicted,
        "predicted_rate": one.predicted / full.predicted / (one.share / full.share),
        "realised_rate": one.realised / full.realised / (one.share / full.share),
        "realised_per_second": one.realised / full.realised / time_share,
    }


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    found: list[Interval] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = docstrings_unless(arguments.data, Path(scratch))
        task = Task(
            model=arguments.model, data=data, batch_size=arguments.batch_size, n_questions=0
        )
        n_steps = max(arguments.points) + arguments.interval
        for seed in arguments.seeds:
            prepared = prepared_for(task, FULL, n_steps=n_steps, rate=None, seed=seed)
            lab = Lab(prepared, held_out=arguments.held_out)
            found += intervals(lab, arguments.points, arguments.interval, seed)
    if arguments.records is not None:
        lines = [json.dumps(asdict(each)) for each in found]
        arguments.records.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = page(found, arguments)
    publish(text, arguments.out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--points", type=int, nargs="+", default=[0, 48])
    parser.add_argument("--interval", type=int, default=12, help="steps")
    parser.add_argument("--held-out", type=int, default=12, help="batches")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--records", type=Path, help="file for every interval, JSON lines")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
