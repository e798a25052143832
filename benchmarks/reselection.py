"""What becomes of a selection when the next one is made: moments, averages, flapping.

    python benchmarks/reselection.py [--data FOLDER] [--rho 0.5] [--samples 96] [--epochs 3]
                                     [--seeds 0 1] [--out FILE]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here); the
first --samples examples are trained on. All contenders share the first epoch (one selection at its
beginning); from then on

- ``once`` keeps that selection;
- ``moments carried`` selects anew at each epoch; Adam's moments stay with the tensors that stay;
- ``moments dropped`` does so too, and every tensor starts like new;
- ``importance averaged`` carries moments, and ranks by the mean of all selections' importance so
  far, each at the same rate, the newest counting half.

Told for each: the share of trained parameters that stayed at each later selection, and the held-out
loss at the end. Peak rate by the rule for rho, linear schedule; float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import Contender
from benchmarks.data import cut, docstrings_unless
from benchmarks.lab import Lab
from benchmarks.measure import machine, mean_text, publish, table
from core.settings import DEMO_MODEL
from core.training.schedule import schedule_factor

ONCE, CARRIED, DROPPED, AVERAGED = (
    "once", "moments carried", "moments dropped", "importance averaged",
)  # fmt: skip
POLICIES: Final = (ONCE, CARRIED, DROPPED, AVERAGED)
NEWEST: Final = 0.5
WARM_UP: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """``kept``: mean over the later selections, share (0..1) of trained parameters that stayed."""

    policy: str
    seed: int
    kept: float
    loss: float


class Run:
    """One seed's runs, which part after the first epoch."""

    def __init__(self, lab: Lab, contender: Contender, seed: int) -> None:
        self._lab, self._contender, self._seed = lab, contender, seed
        self._total = lab.prepared.total_steps
        self._optimiser = lab.optimiser()

    def endings(self) -> list[Ending]:
        lab = self._lab
        first = self._importance(0)
        self._select(first)
        self._train_epoch(0)
        weights, names = lab.weights(), self._optimiser.names
        moments = {k: t.clone() for k, t in self._optimiser.state_tensors().items()}
        found = []
        for policy in POLICIES:
            lab.put(weights)
            self._optimiser = lab.resumed(names, moments)
            found.append(self._end(policy, first))
            print(found[-1], flush=True)
        return found

    def _end(self, policy: str, importance: Mapping[str, float]) -> Ending:
        kept = []
        for start in range(self._lab.epoch_steps, self._total, self._lab.epoch_steps):
            if policy != ONCE:
                before = self._optimiser.names
                newest = self._importance(start)
                importance = _averaged(importance, newest) if policy == AVERAGED else newest
                if policy == DROPPED:
                    self._optimiser = self._lab.optimiser()
                self._select(importance)
                kept.append(self._share(before))
            self._train_epoch(start)
        mean = math.fsum(kept) / len(kept) if kept else 1.0
        return Ending(policy=policy, seed=self._seed, kept=mean, loss=self._lab.loss())

    def _share(self, before: Sequence[str]) -> float:
        """Of the parameters trained now, those that were trained before as well."""
        sizes = {name: self._lab.parameters[name].numel() for name in self._optimiser.names}
        return sum(sizes.get(name, 0) for name in before) / sum(sizes.values())

    def _select(self, importance: Mapping[str, float]) -> None:
        self._optimiser.select(self._lab.choose(self._contender, importance).names)

    def _importance(self, step: int) -> dict[str, float]:
        return self._lab.importance(self._optimiser, step, self._lab.epoch_steps)

    def _train_epoch(self, start: int) -> None:
        for step in range(start, min(start + self._lab.epoch_steps, self._total)):
            factor = schedule_factor("linear", step, self._total, WARM_UP)
            self._lab.train(self._optimiser, step, self._lab.rule(self._contender) * factor)


def _averaged(before: Mapping[str, float], newest: Mapping[str, float]) -> dict[str, float]:
    return {name: (1 - NEWEST) * before[name] + NEWEST * value for name, value in newest.items()}


def page(found: Sequence[Ending], arguments: argparse.Namespace) -> str:
    """A Markdown table with its settings."""
    rows = []
    for policy in POLICIES:
        same = [dataclasses.asdict(each) for each in found if each.policy == policy]
        rows.append([policy, mean_text(same, "kept", ".2f"), mean_text(same, "loss", ".3f")])
    settings = (
        f"`python benchmarks/reselection.py`: {Path(arguments.model).name}, rho {arguments.rho:g}, "
        f"{arguments.samples} examples of "
        f"{arguments.data.name if arguments.data else 'docstrings'}, {arguments.epochs} epochs in "
        f"batches of {arguments.batch_size}, seeds {', '.join(map(str, arguments.seeds))}; "
        f"{machine()}, torch {torch.__version__}, transformers {transformers.__version__}."
    )
    head = ("from the second epoch on", "parameters that stayed", "held-out loss")
    return f"{settings}\n\n{table(head, rows)}\n"


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    found: list[Ending] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = cut(
            docstrings_unless(arguments.data, Path(scratch)),
            Path(scratch) / "cut",
            n_train=arguments.samples,
            n_validation=arguments.validation,
        )
        task = Task(
            model=arguments.model, data=data, batch_size=arguments.batch_size, n_questions=0
        )
        n_steps = arguments.epochs * math.ceil(arguments.samples / arguments.batch_size)
        contender = Contender(method="green", rho=arguments.rho)
        for seed in arguments.seeds:
            prepared = prepared_for(task, contender, n_steps=n_steps, rate=None, seed=seed)
            found += Run(Lab(prepared), contender, seed).endings()
    text = page(found, arguments)
    publish(text, arguments.out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument(
        "--samples", type=int, default=96, help="of train.jsonl, from its beginning"
    )
    parser.add_argument("--validation", type=int, default=100, help="held-out examples")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
