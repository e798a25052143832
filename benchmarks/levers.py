"""Other levers at equal FLOPs: a share that changes over the run, and skipping samples.

    python benchmarks/levers.py [--data FOLDER] [--steps 64] [--seeds 0 1] [--only LABEL ...]
                                [--out FILE]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here). The
budget is what --steps of full fine-tuning cost; everybody spends it whole, importance included, on
the same batches in the same order, and ends with the held-out loss.

- A share that changes: parts of the budget, each with a selection of its own at its beginning and
  the rate that the rule gives its share; Adam's moments of what stays trained are carried on.
- Selective backpropagation: a forward pass of the whole batch, then full fine-tuning on the half of
  its samples with the highest loss (their forward pass counts a second time: batches are small).
- Half batches: full fine-tuning on the first half of each batch, which is what skipping must beat.

Rates fall linearly with the budget that is left, after a warm-up. Precision as training chooses it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.data import docstrings_unless
from benchmarks.lab import Lab
from benchmarks.measure import machine, mean_text, publish, table
from core.settings import DEMO_MODEL
from core.training.optimiser import SelectiveAdamW
from core.training.schedule import peak_learning_rate

WARM_UP: Final = 0.1
Samples = Literal["all", "hardest half", "first half"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """``parts``: (share of the budget at which it begins, rho), the first at 0."""

    label: str
    parts: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    samples: Samples = "all"


LEVERS: Final = (
    Lever(label="full"),
    Lever(label="green .7", parts=((0.0, 0.7),)),
    Lever(label="green .5", parts=((0.0, 0.5),)),
    Lever(label=".5, from a quarter on .7", parts=((0.0, 0.5), (0.25, 0.7))),
    Lever(label=".5, from a quarter on full", parts=((0.0, 0.5), (0.25, 1.0))),
    Lever(label="full, from a half on .7", parts=((0.0, 1.0), (0.5, 0.7))),
    Lever(label="selective backpropagation", samples="hardest half"),
    Lever(label="half batches", samples="first half"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """``n_steps``: that the budget paid for; ``loss``: held-out, nats a label token."""

    label: str
    seed: int
    n_steps: int
    loss: float


class LeverRun:
    """One lever pulled from the model as it is, which is changed."""

    def __init__(self, lab: Lab, lever: Lever, budget_flops: float) -> None:
        self._lab, self._lever, self._budget = lab, lever, budget_flops
        self._prices = lab.prepared.prices
        self._price = self._prices.full
        self._optimiser: SelectiveAdamW = lab.optimiser()
        self.spent_flops = 0.0
        self._peak = 0.0

    def end(self, seed: int) -> Ending:
        coming, step = list(self._lever.parts), 0
        while self.spent_flops < self._budget:
            if coming and self.spent_flops >= coming[0][0] * self._budget:
                self._select(coming.pop(0)[1], step)
            self._train(step)
            step += 1
        return Ending(label=self._lever.label, seed=seed, n_steps=step, loss=self._lab.loss())

    def _select(self, rho: float, step: int) -> None:
        lab, names = self._lab, self._lab.prepared.profile.trainable
        if rho < 1:
            left = self._budget - self.spent_flops
            ahead = max(4, int(left / (rho * lab.prepared.profile.full_flops)))
            probes = lab.probes(step, ahead)
            self.spent_flops += sum(self._prices.full(inputs.shape) for inputs in probes)
            contender = Contender(method="green", rho=rho)
            names = lab.choose(contender, lab.importance_of(self._optimiser, probes)).names
        self._optimiser.select(names)
        self._price = self._prices.of(names)
        self._peak = peak_learning_rate(rho, weight_scale=lab.prepared.loaded.weight_scale)

    def _train(self, step: int) -> None:
        batch = self._lab.batch(step)
        half = len(batch["labels"]) // 2
        if self._lever.samples == "hardest half":
            self.spent_flops += self._prices.forward(self._lab.inputs(batch).shape)
            batch = self._lab.hardest(batch, half)
        elif self._lever.samples == "first half":
            batch = {name: tensor[:half] for name, tensor in batch.items()}
        inputs = self._lab.inputs(batch)
        done = self.spent_flops / self._budget
        factor = min((done + 1e-2) / WARM_UP, (1 - done) / (1 - WARM_UP), 1.0)
        self._lab.learn(self._optimiser, inputs, self._peak * max(factor, 0.0))
        self.spent_flops += self._price(inputs.shape)


def page(found: Sequence[Ending], arguments: argparse.Namespace) -> str:
    """A Markdown table with its settings."""
    labels = dict.fromkeys(each.label for each in found)
    full = {each.seed: each.loss for each in found if each.label == LEVERS[0].label}
    rows = []
    for label in labels:
        same = [
            {**asdict(each), "gap": each.loss - full.get(each.seed, float("nan"))}
            for each in found
            if each.label == label
        ]
        rows.append(
            [
                label,
                str(len(same)),
                mean_text(same, "n_steps", ".0f"),
                mean_text(same, "loss", ".3f"),
                mean_text(same, "gap", "+.3f"),
            ]
        )
    settings = (
        f"`python benchmarks/levers.py`: {Path(arguments.model).name}, "
        f"{arguments.data.name if arguments.data else 'docstrings'}, batches of "
        f"{arguments.batch_size}, FLOPs of {arguments.steps} steps of full fine-tuning, held-out "
        f"loss; {machine()}, torch {torch.__version__}, transformers {transformers.__version__}."
    )
    head = ("trained", "seeds", "steps", "held-out loss", "to full of the same seed")
    return f"{settings}\n\n{table(head, rows)}\n"


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    found: list[Ending] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = docstrings_unless(arguments.data, Path(scratch))
        task = Task(
            model=arguments.model, data=data, batch_size=arguments.batch_size, n_questions=0
        )
        for seed in arguments.seeds:
            found += _endings(task, arguments, seed)
    text = page(found, arguments)
    publish(text, arguments.out)
    return 0


def _endings(task: Task, arguments: argparse.Namespace, seed: int) -> list[Ending]:
    prepared = prepared_for(task, FULL, n_steps=arguments.steps, rate=None, seed=seed)
    lab = Lab(prepared, held_out=arguments.held_out, precision="auto")
    base, full = lab.weights(), prepared.prices.full
    budget = sum(full(lab.inputs(lab.batch(step)).shape) for step in range(arguments.steps))
    found = []
    for lever in LEVERS:
        if arguments.only is None or lever.label in arguments.only:
            lab.put(base)
            found.append(LeverRun(lab, lever, budget).end(seed))
            print(json.dumps(asdict(found[-1])), flush=True)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--steps", type=int, default=64, help="of full fine-tuning: the budget")
    parser.add_argument("--held-out", type=int, default=25, help="batches")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=[lever.label for lever in LEVERS])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
