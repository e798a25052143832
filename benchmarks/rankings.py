"""What tensors may be ranked by, at one share: losses that runs end with, and the sets they train.

    python benchmarks/rankings.py [--data FOLDER] [--rho 0.5] [--steps 96] [--seeds 0 1]
                                  [--by default 0 0.5 random equal] [--lowest 16 18 20] [--out FILE]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here).
Every run starts from the same weights, trains on the same batches in the same order, selects once
at its beginning, and ends with the held-out loss. Its steps cost at most --rho of full
fine-tuning's; measuring importance is not charged, so that rankings alone differ. Peak rate by the
rule for rho, linear schedule, precision as training chooses it.

- ``--by X``: the expected drop over the elements to the power of X (0: the paper's criterion), of
  all tensors; ``default``: what a job does, which leaves out those too far away; ``random``:
  chances by seed and name; ``equal``: every tensor is worth the same.
- ``--lowest N``: by the drop, with block N (counted from the input) as the lowest.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import Contender
from benchmarks.data import docstrings_unless
from benchmarks.lab import Lab
from benchmarks.measure import machine, mean_text, publish, table
from core.settings import DEMO_MODEL
from core.training import ranking
from core.training.blocks import blocks_from_the_loss
from core.training.schedule import schedule_factor
from core.training.selector import select

WARM_UP: Final = 0.1
_DEFAULT, _RANDOM, _EQUAL = "default", "random", "equal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """``lowest``: block with a trained tensor, from the input; ``drop``: predicted, of the set."""

    label: str
    seed: int
    lowest: int
    n_parameters: int
    drop: float
    loss: float


def rank(
    by: str, drops: Mapping[str, float], elements: Mapping[str, int], seed: int
) -> dict[str, float]:
    """What each tensor is worth; ``by`` as in the command line.

    Raises ValueError for an unknown word.
    """
    if by == _RANDOM:
        return {name: Random(f"{seed} {name}").random() for name in drops}
    if by == _EQUAL:
        return dict.fromkeys(drops, 1.0)
    return {name: drop / elements[name] ** float(by) for name, drop in drops.items()}


def reach_down_to(
    block: int, drops: Mapping[str, float], blocks: Sequence[Sequence[str]]
) -> dict[str, float]:
    """``drops``, with ``block`` (from the input; ``blocks``: from the loss) as the lowest."""
    lowest = len(blocks) - 1 - block
    below = {name for names in blocks[lowest + 1 :] for name in names}
    cheapest = min(blocks[lowest], key=lambda name: abs(drops.get(name, math.inf)))
    return {n: d for n, d in drops.items() if n not in below} | {cheapest: 1e9}


def run(
    lab: Lab,
    contender: Contender,
    worth: Mapping[str, float],
    drops: Mapping[str, float],
    *,
    label: str,
    seed: int,
) -> Ending:
    """Train what ``worth`` chooses, from the weights as they are, which are changed."""
    optimiser, n_steps = lab.optimiser(), lab.prepared.total_steps
    profile = lab.prepared.profile
    assert isinstance(contender.rho, float)
    names = select(profile, worth, contender.rho * profile.full_flops).names
    optimiser.select(names)
    for step in range(n_steps):
        factor = schedule_factor("linear", step, n_steps, WARM_UP)
        lab.train(optimiser, step, lab.rule(contender) * factor)
    blocks = blocks_from_the_loss(profile)
    trained = [at for at, block in enumerate(blocks) if set(block) & set(names)]
    return Ending(
        label=label,
        seed=seed,
        lowest=len(blocks) - 1 - max(trained, default=-1),
        n_parameters=sum(lab.parameters[name].numel() for name in names),
        drop=math.fsum(drops[name] for name in names),
        loss=lab.loss(),
    )


def endings(task: Task, arguments: argparse.Namespace, seed: int) -> list[Ending]:
    """One seed's runs."""
    contender = Contender(method="green", rho=arguments.rho)
    prepared = prepared_for(task, contender, n_steps=arguments.steps, rate=None, seed=seed)
    lab = Lab(prepared, held_out=arguments.held_out, precision="auto")
    base = lab.weights()
    drops = lab.importance(lab.optimiser(), 0, arguments.steps)
    blocks = blocks_from_the_loss(prepared.profile)
    budget_flops = arguments.rho * prepared.profile.full_flops
    worths: dict[str, Mapping[str, float]] = {}
    for by in arguments.by:
        if by == _DEFAULT:
            worths[by] = ranking.rank(prepared.profile, drops, lab.elements, budget_flops)
        else:
            label = by if by in (_RANDOM, _EQUAL) else f"drop / elements^{by}"
            worths[label] = rank(by, drops, lab.elements, seed)
    for block in arguments.lowest:
        worths[f"drop, lowest block {block}"] = reach_down_to(block, drops, blocks)
    found = []
    for label, worth in worths.items():
        lab.put(base)
        found.append(run(lab, contender, worth, drops, label=label, seed=seed))
        print(json.dumps(asdict(found[-1])), flush=True)
    return found


def page(found: Sequence[Ending], arguments: argparse.Namespace) -> str:
    """A Markdown table with its settings."""
    best = {seed: max(e.drop for e in found if e.seed == seed) for seed in {e.seed for e in found}}
    rows = []
    for label in dict.fromkeys(each.label for each in found):
        same = [
            {
                **asdict(each),
                "millions": each.n_parameters / 1e6,
                "share": each.drop / best[each.seed],
            }
            for each in found
            if each.label == label
        ]
        lowest = ", ".join(str(each["lowest"]) for each in same)
        figures = [("millions", ".1f"), ("share", ".2f"), ("loss", ".3f")]
        rows.append([label, lowest, *(mean_text(same, name, form) for name, form in figures)])
    settings = (
        f"`python benchmarks/rankings.py`: {Path(arguments.model).name}, rho {arguments.rho:g}, "
        f"{arguments.data.name if arguments.data else 'docstrings'}, {arguments.steps} steps of "
        f"{arguments.batch_size}, seeds {', '.join(map(str, arguments.seeds))}; {machine()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}."
    )
    head = (
        "ranked by",
        "lowest block",
        "parameters (M)",
        "predicted drop, to the best",
        "held-out loss",
    )
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
            found += endings(task, arguments, seed)
    text = page(found, arguments)
    publish(text, arguments.out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=25, help="batches")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--by", nargs="+", default=[_DEFAULT, "0", "0.5", _RANDOM, _EQUAL])
    parser.add_argument("--lowest", type=int, nargs="+", default=[], help="blocks from the input")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
