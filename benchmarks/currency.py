"""What a step costs against what `core.training.measuring` predicts, for rho in FLOPs and in time.

    python benchmarks/currency.py [--data FOLDER] [--rounds 5] [--cpu-time] [--out docs/currency.md]

FOLDER holds train.jsonl (default: the demo's docstring pairs, built here). Prices are measured and
importance is taken once, as a job does; then each rho selects once by FLOPs and once by seconds.
Everything is trained in turn, once a round, on that round's batch; shares are of full fine-tuning
in the same round, medians over rounds are shown with the least and the most. ``--cpu-time`` counts
the process's processor time, for machines that others work on too: only with one thread, where it
is what a step would take alone. The section "Measured" of ``--out`` is written anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import cut, docstrings_unless
from benchmarks.measure import machine, synchronise, table
from core.errors import RhoInfeasible
from core.settings import DEMO_MODEL, Settings
from core.spec import Currency, GreenOptions, JobSpec
from core.training.budget import budget_of, sizes_of
from core.training.importance import measure_crossed_importance
from core.training.job import FitJob
from core.training.measuring import measure_rates
from core.training.methods import method_named
from core.training.numerics import choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.rates import Meter, Rates, step_cost
from core.training.selector import select
from core.training.step import Batch, LossStep, first_samples, needs_mask
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare

RHOS = (0.7, 0.5, 0.4)
CURRENCIES: tuple[Currency, ...] = ("flops", "seconds")
#: enough steps for prices to be medians of three batches
EPOCHS = 50
RATE, MAX_NORM = 1e-6, 1.0
MEASURED = "## Measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender; ``rho`` None: full fine-tuning."""

    rho: float | None
    currency: Currency
    names: tuple[str, ...]
    flops_share: float
    #: by round
    predicted_s: list[float] = field(default_factory=list)
    measured_s: list[float] = field(default_factory=list)

    def shares(self, full: Line) -> list[float]:
        return [a / b for a, b in zip(self.measured_s, full.measured_s, strict=True)]


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as scratch:
        source = docstrings_unless(arguments.data, Path(scratch))
        data = cut(source, Path(scratch) / "cut", n_train=arguments.samples)
        prepared = _prepare(data / "train.jsonl", arguments)
    job = _job(prepared, arguments, Meter(currency="seconds", read=clock))
    model = job.model.to(job.numerics.device)
    step = LossStep(model, keeps_mask=needs_mask(model), autocast_dtype=job.numerics.autocast_dtype)
    rates = measure_rates(job, step, dict(model.named_parameters()))
    trainer = _Trainer(job, step)
    lines = _lines(job, rates, trainer.importance())
    _run(job, rates, trainer, lines, n_rounds=arguments.rounds)
    text = _page(prepared, rates, lines, arguments)
    print(text)
    if arguments.out is not None:
        _write(arguments.out, text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path, help="Markdown file whose last section is written")
    found = parser.parse_args()
    if found.cpu_time and torch.get_num_threads() > 1:
        parser.error("--cpu-time needs OMP_NUM_THREADS=1: several threads wait for each other.")
    return found


def _prepare(file: Path, arguments: argparse.Namespace) -> Prepared:
    spec = JobSpec(
        model=arguments.model,
        training_file=file.name,
        training=TrainingOptions(
            n_epochs=EPOCHS,
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            prefix_reuse="off",
        ),
        green=GreenOptions(rho=RHOS[0], currency="seconds"),
    )
    place = arguments.model if Path(arguments.model).is_dir() else None
    return prepare(
        spec,
        training_path=file,
        models={arguments.model: place},
        cache=Settings().home.expanduser() / "models",
        is_offline=True,
    )


def _job(prepared: Prepared, arguments: argparse.Namespace, meter: Meter) -> FitJob:
    return FitJob(
        model=prepared.loaded.model,
        feed=prepared.feed(),
        validation=(),
        method=method_named("green"),
        rho=lambda _step: RHOS[0],
        prices=prepared.prices,
        profile=prepared.profile,
        training=prepared.training,
        seed=0,
        numerics=choose_numerics(None, arguments.precision),
        fingerprint=prepared.loaded.fingerprint,
        meter=meter,
    )


class _Trainer:
    """The product's step for any set, with moments of every tensor kept from set to set."""

    def __init__(self, job: FitJob, step: LossStep) -> None:
        self._job, self._step = job, step
        self._parameters = dict(job.model.named_parameters())
        self._optimiser = SelectiveAdamW(self._parameters, weight_decay=0.0)
        self._optimiser.select(tuple(self._parameters))

    def importance(self) -> dict[str, float]:
        """From one pair of probes, before any update."""
        halves = [first_samples(next(self._job.batches(at)), 1.0) for at in (0, 1)]
        inputs = [self._step.inputs(half) for half in halves]
        return measure_crossed_importance(
            self._step, inputs, self._parameters, self._optimiser, learning_rate=RATE
        )

    def __call__(self, batch: Batch, names: Sequence[str]) -> None:
        """A tensor without a gradient is passed over by the optimiser."""
        chosen = set(names)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in chosen)
        inputs = self._step.inputs(batch)
        torch.autograd.backward(self._step(inputs).loss_sum / inputs.n_labels)
        self._optimiser.step(learning_rate=RATE, max_grad_norm=MAX_NORM)


def _lines(job: FitJob, rates: Rates, importance: dict[str, float]) -> list[Line]:
    """Full fine-tuning first."""
    everything = job.profile.trainable
    lines = [Line(rho=None, currency="flops", names=everything, flops_share=1.0)]
    for rho in RHOS:
        for currency in CURRENCIES:
            costs = budget_of(job, None if currency == "flops" else rates).profile
            try:
                names = select(costs, importance, rho * costs.full_flops).names
            except RhoInfeasible as error:
                print(f"{rho:g} of {currency} is left out: {error}", file=sys.stderr)
                continue
            share = job.profile.step_flops(names) / job.profile.full_flops
            lines.append(Line(rho=rho, currency=currency, names=names, flops_share=share))
    return lines


def _run(
    job: FitJob, rates: Rates, trainer: _Trainer, lines: Sequence[Line], *, n_rounds: int
) -> None:
    assert job.meter is not None, "this job's currency is time"
    clock = job.meter.read
    sizes, step = sizes_of(job), LossStep(job.model)
    trainer(next(job.batches(0)), lines[0].names)  # makes every tensor's moments
    for number in range(n_rounds):
        batch = next(job.batches(number + 1))
        profile = job.prices.mean_profile([step.inputs(batch).shape])
        for line in lines:
            synchronise()
            started_s = clock()
            trainer(batch, line.names)
            synchronise()
            line.measured_s.append(clock() - started_s)
            line.predicted_s.append(step_cost(profile, rates, sizes, line.names))
        print(f"round {number + 1} of {n_rounds}", file=sys.stderr)


def _page(
    prepared: Prepared, rates: Rates, lines: Sequence[Line], arguments: argparse.Namespace
) -> str:
    full = lines[0]
    unit = "processor seconds" if arguments.cpu_time else "seconds"
    rows = []
    for line in lines:
        shares = line.shares(full)
        planned = [a / b for a, b in zip(line.predicted_s, full.predicted_s, strict=True)]
        ratios = [p / m for p, m in zip(line.predicted_s, line.measured_s, strict=True)]
        rows.append(
            (
                "full" if line.rho is None else f"{line.rho:g} of {line.currency}",
                str(len(line.names)),
                f"{line.flops_share:.3f}",
                f"{statistics.median(planned):.3f}",
                f"{statistics.median(shares):.3f} ({min(shares):.3f}, {max(shares):.3f})",
                f"{statistics.median(line.measured_s):.2f}",
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})",
            )
        )
    head = (
        "rho",
        "tensors",
        "FLOPs share",
        "predicted share of time",
        "measured share of time",
        f"step, {unit}",
        "predicted / measured",
    )
    speeds = ", ".join(
        f"{name} {1e-9 / price:.1f}"
        for name, price in (
            ("forward", rates.forward),
            ("activation gradients", rates.activation),
            ("weight gradients", rates.weight),
        )
        if price
    )
    setting = (
        f"{prepared.spec.model}, batch {arguments.batch_size}, {machine()}, "
        f"{prepared.training.precision}, {arguments.rounds} rounds, {unit}. Medians, with the "
        f"least and the most of a round. Load of the machine: {os.getloadavg()[0]:.1f}."
    )
    prices = (
        f"Prices: GFLOP/s of {speeds}; clipping and AdamW {1e9 * rates.parameter:.2f} ns a "
        f"parameter. Measuring them took {rates.flops / prepared.profile.full_flops:.1f} full "
        f"steps' FLOPs ({rates.duration_s:.0f} s by the wall clock)."
    )
    return "\n".join([setting, "", prices, "", table(head, rows)])


def _write(file: Path, text: str) -> None:
    before = file.read_text(encoding="utf-8").partition(MEASURED)[0] if file.exists() else ""
    file.write_text(f"{before}{MEASURED}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
