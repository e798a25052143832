"""Frozen-prefix reuse against the same runs without it: FLOPs, seconds, and whether bits agree.

    python benchmarks/prefix_reuse.py [--data FOLDER] [--samples 64] [--epochs 3] [--rounds 5]
                                      [--out FILE]

FOLDER holds train.jsonl (default: the demo's docstring pairs, built here). One selection lasts the
whole run; batches are grouped anew each epoch. Each round trains all contenders once from the same
weights, in turn; seconds are of whole steps (forward, backward, clip, update), ratios are to full
fine-tuning in the same round, and the median and the spread over rounds are shown. FLOPs and bits
are the same in every round. Exits with 1 where losses or weights differ in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import cut, docstrings_unless
from benchmarks.measure import publish
from core.settings import DEMO_MODEL, Settings
from core.spec import GreenOptions, JobSpec, Method
from core.training.hooks import FitResult, Hook, StepRecord
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare, train

RHOS = (0.7, 0.5, 0.4)
#: longer than any run here
ONE_SELECTION_EPOCHS = 1e6
RATE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    rho: float
    is_reusing: bool

    @property
    def label(self) -> str:
        if self.rho == 1:
            return "full"
        return f"green {self.rho:g}{', reuse' if self.is_reusing else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    result: FitResult
    losses: tuple[float, ...]
    #: of the steps alone; of those after the first epoch
    step_s: float
    later_s: float
    weights: dict[str, torch.Tensor]


class Watch(Hook):
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    contenders = [Contender(rho=1.0, is_reusing=False)]
    contenders += [Contender(rho=r, is_reusing=reuse) for r in RHOS for reuse in (False, True)]
    with tempfile.TemporaryDirectory() as scratch:
        source = docstrings_unless(arguments.data, Path(scratch))
        data = cut(source, Path(scratch) / "cut", n_train=arguments.samples)
        prepared = _prepare(data / "train.jsonl", arguments)
        base = {n: p.detach().clone() for n, p in prepared.loaded.model.named_parameters()}
        rounds = []
        for number in range(arguments.rounds):
            trained = [_train(prepared, base, each) for each in contenders]
            # bits are compared in the first round, and weights of all would fill the memory
            rounds.append(trained if number == 0 else [replace(t, weights={}) for t in trained])
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    text = _page(prepared, contenders, rounds, arguments)
    publish(text, arguments.out)
    return int(not all(_agrees(rounds[0], at) for at in _reusing(contenders)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


def _prepare(file: Path, arguments: argparse.Namespace) -> Prepared:
    settings = Settings()
    place = arguments.model if Path(arguments.model).is_dir() else None
    spec = JobSpec(
        model=arguments.model,
        training_file=file.name,
        seed=arguments.seed,
        training=TrainingOptions(
            n_epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=RATE,
            selection_interval=ONE_SELECTION_EPOCHS,
            prefix_reuse="on",
        ),
        green=GreenOptions(method="green", rho=RHOS[0]),
    )
    return prepare(
        spec,
        training_path=file,
        models={arguments.model: place},
        cache=settings.home.expanduser() / "models",
        is_offline=True,
    )


@torch.no_grad()
def _restore(prepared: Prepared, base: dict[str, torch.Tensor]) -> None:
    for name, parameter in prepared.loaded.model.named_parameters():
        parameter.copy_(base[name])


def _train(prepared: Prepared, base: dict[str, torch.Tensor], each: Contender) -> Outcome:
    _restore(prepared, base)
    method: Method = "full" if each.rho == 1 else "green"
    spec = replace(
        prepared.spec,
        green=replace(prepared.spec.green, method=method, rho=each.rho),
    )
    assert prepared.reuse is not None, "it was asked for"
    # selections that do not count on stored rows, so that both runs of a rho train the same
    reuse = replace(prepared.reuse, spared=None) if each.is_reusing else None
    job = replace(prepared, spec=spec, reuse=reuse)
    watch = Watch()
    result = train(job, rho=lambda _step: each.rho, hooks=[watch])
    weights = {n: p.detach().cpu().clone() for n, p in prepared.loaded.model.named_parameters()}
    return Outcome(
        result=result,
        losses=tuple(step.loss for step in watch.steps),
        step_s=sum(step.duration_s for step in watch.steps),
        later_s=sum(s.duration_s for s in watch.steps if s.step > prepared.steps_per_epoch),
        weights=weights,
    )


def _reusing(contenders: Sequence[Contender]) -> list[int]:
    return [at for at, each in enumerate(contenders) if each.is_reusing]


def _agrees(outcomes: Sequence[Outcome], at: int) -> bool:
    """Whether the run has the bits of the one before it, which is the same without reuse."""
    one, other = outcomes[at], outcomes[at - 1]
    same = all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    return same and one.losses == other.losses


def _page(
    prepared: Prepared,
    contenders: Sequence[Contender],
    rounds: Sequence[Sequence[Outcome]],
    arguments: argparse.Namespace,
) -> str:
    setting = (
        f"{prepared.spec.model}, {len(prepared.train_data)} samples, {arguments.epochs} epochs, "
        f"batch {arguments.batch_size}, {torch.get_num_threads()} threads, "
        f"{arguments.rounds} rounds. FLOPs and seconds are of the steps, against full."
    )
    lines = [
        setting,
        "",
        "| run | FLOPs | time (least, most) | time after the first epoch | same bits |",
        "|---|---|---|---|---|",
    ]
    for at, each in enumerate(contenders):
        result = rounds[0][at].result
        flops = (result.flops - result.selection_flops) / result.full_flops
        ratios = [outcomes[at].step_s / outcomes[0].step_s for outcomes in rounds]
        later = [outcomes[at].later_s / max(outcomes[0].later_s, 1e-9) for outcomes in rounds]
        bits = "" if not each.is_reusing else "yes" if _agrees(rounds[0], at) else "no"
        lines.append(
            f"| {each.label} | {flops:.3f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f}, {max(ratios):.3f}) | {statistics.median(later):.3f} | {bits} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
