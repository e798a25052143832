"""Full fine-tuning and green at several rho, side by side in one run: FLOPs, seconds, quality.

    python benchmarks/methods.py [--data FOLDER] [--steps 64] [--rounds 7] [--out docs/benchmark.md]

FOLDER holds train.jsonl and validation.jsonl (default: the demo's docstring pairs, built here).

- Measured FLOPs: torch's ``FlopCounterMode`` (eager attention, which it can see) around the forward
  and backward pass of real batches of the data, with exactly the method's tensors trainable.
- Predicted FLOPs: what the product's prices say of the same batches; exits with 1 if any is off by
  more than 0.1 %.
- Seconds: whole steps (forward, backward, clip, update), every method once a round on the same
  batch, median of the rounds' ratios to full fine-tuning; the spread is shown.
- Validation loss: after the same number of steps on the same batches in the same order.
- Selection: FLOPs of the importance pass, and seconds of importance and solving together, against
  one epoch of the method's own steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import machine, publish, table
from core.data.demo import build
from core.settings import DEMO_MODEL, Settings
from core.spec import GreenOptions, JobSpec
from core.training.hooks import FitResult, Hook, SelectionRecord, StepRecord
from core.training.numerics import choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.step import LossStep, StepInputs
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare, train

RHOS = (0.7, 0.5, 0.4)
TOLERANCE = 1e-3
#: batches whose FLOPs are measured, and those that rounds of timing take in turn
MEASURED_BATCHES = 4
RATE = 1e-6
MAX_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A method and its rho; full fine-tuning has rho 1."""

    method: str
    rho: float

    @property
    def label(self) -> str:
        return self.method if self.method == "full" else f"{self.method} {self.rho:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    contender: Contender
    result: FitResult
    selection: SelectionRecord
    n_parameters: int
    steps_per_epoch: int
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Over the same batches."""

    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds a step; ``ratios`` to full fine-tuning, one a round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]


class Watch(Hook):
    """Keeps the first selection and the highest rate; says where the run is."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.selection: SelectionRecord | None = None
        self.learning_rate = 0.0

    def on_selection(self, record: SelectionRecord) -> None:
        self.selection = self.selection or record

    def on_step(self, record: StepRecord) -> None:
        self.learning_rate = max(self.learning_rate, record.learning_rate)
        if record.step % 16 == 0 or record.step == record.total_steps:
            print(f"{self._label}: step {record.step}/{record.total_steps}, {record.loss:.3f}")


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _data(arguments.data, Path(scratch), arguments.validation)
        contenders = [
            Contender(method="full", rho=1.0),
            *(Contender(method="green", rho=rho) for rho in RHOS),
        ]
        trained = [_train(_prepare(c, folder, arguments), c) for c in contenders]
        fresh = _prepare(contenders[0], folder, arguments)
    flops = _measure_flops(fresh, trained)
    timings = _measure_seconds(fresh, trained, arguments.rounds)
    text = _page(arguments, fresh, trained, flops, timings)
    publish(text, arguments.out)
    return int(any(found.error > TOLERANCE for found in flops))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--steps", type=int, default=64, help="optimiser steps of each method")
    parser.add_argument("--rounds", type=int, default=7, help="of interleaved timing")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--validation", type=int, default=100, help="held-out examples used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


def _data(given: Path | None, scratch: Path, n_validation: int) -> Path:
    """A folder with the training file and the first ``n_validation`` held-out examples."""
    if given is None:
        given = scratch / "demo"
        build(given, n_train=1600, n_validation=n_validation)
    lines = (given / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:n_validation]
    (scratch / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (scratch / "train.jsonl").symlink_to((given / "train.jsonl").absolute())
    return scratch


def _prepare(contender: Contender, folder: Path, arguments: argparse.Namespace) -> Prepared:
    settings = Settings()
    place = arguments.model if Path(arguments.model).is_dir() else None
    spec = JobSpec(
        model=arguments.model,
        training_file="train.jsonl",
        validation_file="validation.jsonl",
        seed=arguments.seed,
        training=TrainingOptions(
            n_epochs=50, max_steps=arguments.steps, batch_size=arguments.batch_size
        ),
        green=GreenOptions(
            method=contender.method,  # type: ignore[arg-type]  one of two words
            rho=contender.rho,
        ),
    )
    return prepare(
        spec,
        training_path=folder / "train.jsonl",
        validation_path=folder / "validation.jsonl",
        models={arguments.model: place},
        cache=settings.home.expanduser() / "models",
    )


def _train(prepared: Prepared, contender: Contender) -> Trained:
    watch = Watch(contender.label)
    result = train(prepared, rho=lambda _step: contender.rho, hooks=[watch])
    assert watch.selection is not None
    return Trained(
        contender=contender,
        result=result,
        selection=watch.selection,
        n_parameters=sum(p.numel() for p in prepared.loaded.model.parameters()),
        steps_per_epoch=prepared.steps_per_epoch,
        learning_rate=watch.learning_rate,
    )


def _measure_flops(prepared: Prepared, trained: Sequence[Trained]) -> list[Flops]:
    model = prepared.loaded.model
    model.set_attn_implementation("eager")
    step = LossStep(model)
    batches = _batches(prepared, step)
    found = []
    for each in trained:
        names = set(each.selection.names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        measured = 0
        for inputs in batches:
            with FlopCounterMode(display=False) as counter:
                torch.autograd.backward(step(inputs).loss_sum)
            measured += counter.get_total_flops()
            model.zero_grad(set_to_none=True)
        price = prepared.prices.of(each.selection.names)
        predicted = sum(price(inputs.shape) for inputs in batches)
        found.append(Flops(measured=measured, predicted=predicted))
    model.set_attn_implementation("sdpa")
    return found


def _measure_seconds(prepared: Prepared, trained: Sequence[Trained], rounds: int) -> list[Timing]:
    """Each method with an optimiser of its own over the same weights; one round to warm up."""
    numerics = choose_numerics()
    model = prepared.loaded.model.to(numerics.device)
    step = LossStep(model, autocast_dtype=numerics.autocast_dtype)
    batches = _batches(prepared, step)
    parameters = dict(model.named_parameters())
    optimisers = [SelectiveAdamW(parameters, weight_decay=0.0) for _ in trained]
    seconds: list[list[float]] = [[] for _ in trained]
    for at in range(rounds + 1):
        for each, optimiser, spent in zip(trained, optimisers, seconds, strict=True):
            optimiser.select(each.selection.names)
            spent.append(_timed_step(step, batches[at % len(batches)], optimiser))
    full = seconds[0][1:]
    return [
        Timing(
            seconds=tuple(spent[1:]),
            ratios=tuple(s / f for s, f in zip(spent[1:], full, strict=True)),
        )
        for spent in seconds
    ]


def _timed_step(step: LossStep, inputs: StepInputs, optimiser: SelectiveAdamW) -> float:
    _wait(step)
    started_s = time.perf_counter()
    torch.autograd.backward(step(inputs).loss_sum / inputs.n_labels)
    optimiser.step(learning_rate=RATE, max_grad_norm=MAX_NORM)
    _wait(step)
    return time.perf_counter() - started_s


def _wait(step: LossStep) -> None:
    if step.model.device.type == "cuda":
        torch.cuda.synchronize()


def _batches(prepared: Prepared, step: LossStep) -> list[StepInputs]:
    """Evenly over the first epoch."""
    feed = prepared.feed()
    count = min(MEASURED_BATCHES, feed.batches_per_epoch)
    stride = feed.batches_per_epoch // count
    return [step.inputs(feed.batch(0, stride // 2 + at * stride)) for at in range(count)]


def _page(
    arguments: argparse.Namespace,
    prepared: Prepared,
    trained: Sequence[Trained],
    flops: Sequence[Flops],
    timings: Sequence[Timing],
) -> str:
    data = "the demo's docstring pairs" if arguments.data is None else arguments.data.name
    first = trained[0].result.first_validation_loss
    lines = [
        "# Methods side by side",
        "",
        (
            f"`python benchmarks/methods.py`: {Path(arguments.model).name}, {data} "
            f"({len(prepared.train_data)} training examples), batch {arguments.batch_size}, "
            f"{arguments.steps} steps each, seed {arguments.seed}; {choose_numerics().precision}, "
            f"{machine()}, torch {torch.__version__}, transformers {transformers.__version__}. "
            f"Ratios are to full fine-tuning of the same run; validation loss before training "
            f"{first:.3f}; s/step: median of {arguments.rounds} interleaved rounds "
            "(lowest to highest)."
        ),
        "",
    ]
    head = (
        "method", "peak lr", "trained parameters", "FLOPs measured", "FLOPs predicted", "off by",
        "s/step", "validation loss", "selection: FLOPs, time of an epoch",
    )  # fmt: skip
    rows = itertools.starmap(
        lambda each, found, timing: _row(each, found, timing, flops[0], timings[0]),
        zip(trained, flops, timings, strict=True),
    )
    return "\n".join([*lines, table(head, rows), ""])


def _row(
    each: Trained, found: Flops, timing: Timing, full: Flops, full_timing: Timing
) -> tuple[str, ...]:
    ratio = statistics.median(timing.ratios)
    step_s = ratio * statistics.median(full_timing.seconds)
    selection, result = each.selection, each.result
    selection_text = "none"
    if selection.flops:
        step_flops = (result.flops - result.selection_flops) / result.step
        by_flops = selection.flops / (step_flops * each.steps_per_epoch)
        by_time = selection.duration_s / (step_s * each.steps_per_epoch)
        selection_text = f"{by_flops:.2%}, {by_time:.2%}"
    return (
        each.contender.label,
        f"{each.learning_rate:.1e}",
        f"{selection.n_trained_parameters / each.n_parameters:.0%}",
        f"{found.measured / full.measured:.4f}",
        f"{found.predicted / full.predicted:.4f}",
        f"{found.error:.1e}",
        f"{ratio:.3f} ({min(timing.ratios):.2f} to {max(timing.ratios):.2f}); {step_s:.2f} s",
        f"{result.validation_loss:.3f}",
        selection_text,
    )


if __name__ == "__main__":
    sys.exit(main())
