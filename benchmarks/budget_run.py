"""One contender trained for one budget: what `frontier` and `gpu` compare.

The same for everybody: the model, the batches' size, the linear schedule ending where the budget
ends, float32 validation on the same examples at the same shares of the run, the best of these kept
(early stopping), seconds, joules and peak memory of training alone, by one `Gauge`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from benchmarks.contenders import FULL, Contender
from benchmarks.hf_trainer import train_with_trainer
from benchmarks.measure import Gauge, load, machine, synchronise
from core.settings import Settings
from core.spec import EvalOptions, GreenOptions, JobSpec
from core.training.evaluate import evaluate
from core.training.hooks import Control, FitResult, Hook, SelectionRecord, StartRecord, StepRecord
from core.training.numerics import choose_numerics
from core.training.step import LossStep, needs_mask
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare, train

#: shares of a run at which it is validated; the best is kept
CHECKPOINTS: Final = (0.75, 1.0)
#: steps taken to learn what a step takes, and of them those that warm up; a card is quick, and
#: finds its kernels in the first
CALIBRATION_STEPS: Final = 30 if torch.cuda.is_available() else 12
_WARM_UP: Final = CALIBRATION_STEPS // 5
_LONG_JOB: Final = 1000
_NEW_TOKENS: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained and judged; ``data`` holds train.jsonl and validation.jsonl."""

    model: str
    data: Path
    batch_size: int
    #: of the held-out examples, those asked for ROUGE-L; 0: none
    n_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a contender's step takes on this machine with this data."""

    step_s: float
    #: of one selection, beyond the steps that it stands in for: it is paid out of rho
    selection_s: float

    def steps_within(self, budget_s: float) -> int:
        """Of a run that selects once; at least one."""
        return max(1, math.floor((budget_s - self.selection_s) / self.step_s))


def prepared_for(
    task: Task, contender: Contender, *, n_steps: int, rate: float | None, seed: int
) -> Prepared:
    """``rate``: peak; None: by rule. A contender that finds its own rho compares shares at their
    own rates: all of these are scaled alike.

    Raises RhoInfeasible where the contender's rho is not feasible for the task.
    """
    finds_rho = contender.rho == "efficient" and rate is not None
    place = task.model if Path(task.model).is_dir() else None
    rho: Any = "auto" if contender.rho is None else contender.rho
    spec = JobSpec(
        model=task.model,
        training_file="train.jsonl",
        validation_file="validation.jsonl",
        seed=seed,
        training=TrainingOptions(
            n_epochs=50,
            max_steps=n_steps,
            batch_size=task.batch_size,
            learning_rate=None if finds_rho else rate,
        ),
        green=GreenOptions(
            method=contender.method,  # type: ignore[arg-type]  checked there
            rho=rho,
            options=contender.options,
        ),
        eval=_exam(task.n_questions),
    )
    prepared = prepare(
        spec,
        training_path=task.data / "train.jsonl",
        validation_path=task.data / "validation.jsonl",
        models={task.model: place},
        cache=Settings().home.expanduser() / "models",
    )
    if not finds_rho:
        return prepared
    multiplier = rate / (contender.rule * prepared.loaded.weight_scale)
    scaled = dataclasses.replace(prepared.training, learning_rate_multiplier=multiplier)
    return dataclasses.replace(prepared, training=scaled)


def _exam(n_questions: int) -> EvalOptions | None:
    if not n_questions:
        return None
    return EvalOptions(metrics=("rougeL",), max_examples=n_questions, max_new_tokens=_NEW_TOKENS)


class Judge:
    """Validates at fixed points of a run, outside its gauge, and keeps the best weights on disk.

    Args:
        model: whose parameters are trained; its own forward pass may be another engine's by then,
            so it is one that shares them.
    """

    def __init__(
        self, model: Any, prepared: Prepared, gauge: Gauge, *, n_steps: int, folder: Path
    ) -> None:
        # its buffers are its own: they stay behind when an engine moves the parameters
        numerics = choose_numerics()
        self._model = model.to(numerics.device)
        self._step = LossStep(
            model, keeps_mask=needs_mask(model), autocast_dtype=numerics.autocast_dtype
        )
        self._batches = prepared.validation_batches()
        self._gauge = gauge
        self._points = {max(1, round(share * n_steps)) for share in CHECKPOINTS}
        self._file = folder / "best.pt"
        self._last = n_steps
        self.marks: list[dict[str, float]] = []
        self.best_step = 0

    def loss(self) -> float:
        """Nats a label token, of all validation examples."""
        return evaluate(self._step, (self._step.inputs(batch) for batch in self._batches)).loss

    def after_step(self, step: int) -> None:
        if step not in self._points:
            return
        self._gauge.pause()
        loss = self.loss()
        is_best = all(loss < mark["loss"] for mark in self.marks)
        self.marks.append(
            {
                "step": step,
                "loss": loss,
                "seconds": self._gauge.wall_s,
                "joules": self._gauge.energy_j,
            }
        )
        if is_best:
            self.best_step = step
            if step < self._last:
                torch.save(self._changed(), self._file)
        if step < self._last:
            self._gauge.resume()

    def _changed(self) -> dict[str, torch.nn.Parameter]:
        """What training may have changed: frozen matrices lie there in bfloat16."""
        named = self._model.named_parameters()
        return {name: each for name, each in named if each.dtype is torch.float32}

    @torch.no_grad()
    def restore_best(self) -> float:
        """Put the best weights back; their validation loss."""
        if self.best_step != self.marks[-1]["step"]:
            best = torch.load(self._file, weights_only=True, map_location=self._model.device)
            parameters = dict(self._model.named_parameters())
            for name, weight in best.items():
                parameters[name].copy_(weight)
        return min(mark["loss"] for mark in self.marks)


class Watch(Hook):
    """Greentune's training under the gauge and the judge."""

    def __init__(self, gauge: Gauge, after_step: Callable[[int], None]) -> None:
        self._gauge = gauge
        self._after_step = after_step
        self.selection_s = 0.0

    def on_start(self, record: StartRecord) -> None:  # noqa: ARG002  the phase's signature
        self._gauge.resume()

    def on_selection(self, record: SelectionRecord) -> None:
        self.selection_s += record.duration_s

    def on_step(self, record: StepRecord) -> None:
        self._after_step(record.step)

    def on_end(self, result: FitResult) -> None:  # noqa: ARG002  the phase's signature
        self._gauge.pause()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    flops: float
    full_flops: float
    selection_flops: float
    selection_s: float
    precision: str


def _spend(
    prepared: Prepared,
    contender: Contender,
    gauge: Gauge,
    after_step: Callable[[int], None],
    control: Callable[[], Control] = lambda: Control.CONTINUE,
) -> Spent:
    """Train by the contender's engine, without the product's own validation and questions: the
    judge's are the same for all. ``control``: of greentune's.
    """
    bare = dataclasses.replace(prepared, validation_data=None, exam=None)
    if contender.engine == "trainer":
        rate = prepared.training.learning_rate or contender.rule * prepared.loaded.weight_scale
        done = train_with_trainer(bare, gauge, after_step, rate=rate)
        return Spent(
            flops=done.flops,
            full_flops=done.full_flops,
            selection_flops=0.0,
            selection_s=0.0,
            precision=done.precision,
        )
    watch = Watch(gauge, after_step)
    rho = contender.rho if isinstance(contender.rho, float) else 1.0
    result = train(bare, rho=lambda _step: rho, hooks=[watch], control=control)
    return Spent(
        flops=result.flops,
        full_flops=result.full_flops,
        selection_flops=result.selection_flops,
        selection_s=watch.selection_s,
        precision=choose_numerics().precision,
    )


def calibrate(task: Task, contender: Contender) -> dict[str, Any]:
    """`Pace`'s values. A step's seconds are those of the timed steps by their share of FLOPs: an
    epoch begins with its longest batch.

    Greentune's steps are the first of a long job: of a short one, measuring importance would take a
    good part of rho.
    """
    is_ours = contender.engine == "greentune"
    n_steps = _LONG_JOB if is_ours else CALIBRATION_STEPS
    prepared = prepared_for(task, contender, n_steps=n_steps, rate=None, seed=0)
    load_before = load()
    ends_s: list[float] = []

    def after_step(_step: int) -> None:
        synchronise()
        ends_s.append(time.perf_counter())

    def control() -> Control:
        return Control.STOP if len(ends_s) == CALIBRATION_STEPS else Control.CONTINUE

    with Gauge() as gauge:
        spent = _spend(prepared, contender, gauge, after_step, control)
    feed, full, step = prepared.feed(), prepared.prices.full, LossStep(prepared.loaded.model)
    places = [divmod(at, feed.batches_per_epoch) for at in range(_WARM_UP, CALIBRATION_STEPS)]
    timed = [full(step.inputs(feed.batch(*place)).shape) for place in places]
    mean_share = len(timed) * prepared.profile.full_flops / sum(timed)
    step_s = (ends_s[-1] - ends_s[_WARM_UP - 1]) / len(timed) * mean_share
    share = (spent.flops - spent.selection_flops) / spent.full_flops
    selection_steps = spent.selection_flops / (share * prepared.profile.full_flops)
    return {
        "step_s": step_s,
        "selection_s": max(0.0, spent.selection_s - selection_steps * step_s),
        "weight_scale": prepared.loaded.weight_scale,
        "load": [load_before, load()],
        "machine": machine(),
    }


def run(
    task: Task, contender: Contender, *, n_steps: int, budget_s: float, rate: float, seed: int
) -> dict[str, Any]:
    """One row of the page, as plain JSON."""
    prepared = prepared_for(task, contender, n_steps=n_steps, rate=rate, seed=seed)
    load_before = load()
    with tempfile.TemporaryDirectory() as folder, Gauge() as gauge:
        model = _sharing(prepared.loaded.model)
        judge = Judge(model, prepared, gauge, n_steps=n_steps, folder=Path(folder))
        first_loss = judge.loss() if contender == FULL else None
        spent = _spend(prepared, contender, gauge, judge.after_step)
        best_loss = judge.restore_best()
        load_after = load()
    # training gives it back on the CPU
    prepared.loaded.model.to(choose_numerics().device)
    scores = prepared.ask().scores if prepared.exam else {}
    return {
        "label": contender.label,
        "seed": seed,
        "rate": rate,
        "budget_s": budget_s,
        "n_steps": n_steps,
        "n_train": len(prepared.train_data),
        "validation_loss": best_loss,
        "best_step": judge.best_step,
        "first_validation_loss": first_loss,
        **scores,
        "marks": judge.marks,
        "seconds": gauge.wall_s,
        "cpu_s": gauge.cpu_s,
        "energy_j": gauge.energy_j,
        "joules": gauge.joules,
        "meter_warnings": gauge.warnings,
        "peak_bytes": gauge.peak_bytes,
        **dataclasses.asdict(spent),
        "load": [load_before, load_after],
        "wanted_cores": torch.get_num_threads(),
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _sharing(model: Any) -> Any:
    """A module of the same parameters whose forward pass nobody wraps (Trainer wraps its own)."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
