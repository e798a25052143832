"""Predicted against realised loss drop, over shares of FLOPs and methods.

    python benchmarks/predictions.py [--data FOLDER] [--points 0 48] [--interval 12] [--seeds 0 1]
                                     [--out docs/predictions.md]

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import FULL, Contender, Task, prepared_for
from benchmarks.measure import machine, mean_text, table
from core.data.demo import build
from core.errors import RhoInfeasible
from core.settings import DEMO_MODEL
from core.training.evaluate import evaluate
from core.training.importance import measure_crossed_importance
from core.training.methods import Choice, SelectionPoint, method_named
from core.training.numerics import choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.step import LossStep, first_samples, needs_mask
from worker.prepare import Prepared

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
MAX_NORM: Final = 1.0


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


class Lab:
    """A run of full fine-tuning, and what would come of other choices at its points."""

    def __init__(self, prepared: Prepared, *, interval: int, held_out: int) -> None:
        self._prepared, self._interval = prepared, interval
        self._feed = prepared.feed()
        model = prepared.loaded.model.to(choose_numerics(None, "fp32").device)
        self._step = LossStep(model, keeps_mask=needs_mask(model))
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        batches = prepared.validation_batches()
        stride = max(1, len(batches) // held_out)
        self._held_out = [self._step.inputs(batch) for batch in batches[::stride][:held_out]]
        self._run = self._optimiser()
        self._run.select(prepared.profile.trainable)

    def intervals(self, points: Sequence[int], seed: int) -> list[Interval]:
        found: list[Interval] = []
        for step in range(max(points) + 1):
            if step in points:
                found += self._point(step, seed)
            self._train(self._run, step, FULL.rule)
        return found

    def _optimiser(self) -> SelectiveAdamW:
        return SelectiveAdamW(self._parameters, weight_decay=0.0)

    def _train(self, optimiser: SelectiveAdamW, number: int, rate: float) -> None:
        epoch, index = divmod(number, self._feed.batches_per_epoch)
        inputs = self._step.inputs(self._feed.batch(epoch, index))
        torch.autograd.backward(self._step(inputs).loss_sum / inputs.n_labels)
        optimiser.step(learning_rate=rate, max_grad_norm=MAX_NORM)

    def _loss(self) -> float:
        return evaluate(self._step, self._held_out).loss

    def _point(self, step: int, seed: int) -> list[Interval]:
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        loss, importance = self._loss(), self._importance(step)
        names, moments = self._run.names, self._run.state_tensors()
        found = []
        for contender in CONTENDERS:
            try:
                chosen = self._chosen(contender, importance)
            except RhoInfeasible:
                continue
            worth = math.fsum(importance[name] for name in chosen.names)
            for rate in dict.fromkeys((FULL.rule, contender.rule)):
                rates = [rate * min(1.0, (at + 1) / (WARM_UP + 1)) for at in range(self._interval)]
                after, step_s = self._try(chosen, rates, step)
                _put(self._parameters, before)
                found.append(
                    Interval(
                        label=contender.label,
                        seed=seed,
                        point=step,
                        rate=rate,
                        is_rule=rate != FULL.rule,
                        share=chosen.rho_planned,
                        predicted=worth * sum(rates),
                        realised=loss - after,
                        step_s=step_s,
                    )
                )
                print(found[-1], flush=True)
        self._run = self._optimiser()
        self._run.select(names)
        self._run.load_state_tensors(moments)
        return found

    def _importance(self, step: int) -> dict[str, float]:
        """From the probes that a job's selection would take for a long interval, at rate 1."""
        ahead = [step + self._interval * (2 * probe + 1) // 4 for probe in range(2)]
        probes = [self._feed.batch(*divmod(at, self._feed.batches_per_epoch)) for at in ahead]
        return measure_crossed_importance(
            self._step,
            [self._step.inputs(first_samples(probe, 0.5)) for probe in probes],
            {n: self._parameters[n] for n in self._prepared.profile.trainable},
            self._optimiser(),
            learning_rate=1.0,
        )

    def _chosen(self, contender: Contender, importance: Mapping[str, float]) -> Choice:
        """Raises RhoInfeasible."""
        point = SelectionPoint(
            profile=self._prepared.profile,
            rho=contender.rho if isinstance(contender.rho, float) else 1.0,
            measure_importance=lambda: importance,
        )
        return method_named(contender.method).choose(point)

    def _try(self, chosen: Choice, rates: Sequence[float], step: int) -> tuple[float, float]:
        """Loss after training ``chosen`` from ``step`` on, and seconds a step."""
        optimiser = self._optimiser()
        optimiser.select(chosen.names)
        started_s = time.process_time()
        for at, rate in enumerate(rates):
            self._train(optimiser, step + at, rate)
        duration_s = time.process_time() - started_s
        return self._loss(), duration_s / len(rates)


@torch.no_grad()
def _put(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


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
        data = arguments.data
        if data is None:
            data = Path(scratch) / "demo"
            build(data, n_train=1600)
        task = Task(
            model=arguments.model, data=data, batch_size=arguments.batch_size, n_questions=0
        )
        n_steps = max(arguments.points) + arguments.interval
        for seed in arguments.seeds:
            prepared = prepared_for(task, FULL, n_steps=n_steps, rate=None, seed=seed)
            lab = Lab(prepared, interval=arguments.interval, held_out=arguments.held_out)
            found += lab.intervals(arguments.points, seed)
    if arguments.records is not None:
        lines = [json.dumps(asdict(each)) for each in found]
        arguments.records.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = page(found, arguments)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
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
