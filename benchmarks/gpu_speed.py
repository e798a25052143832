"""Seconds a step, model FLOPs utilisation, peak memory and the price of selecting, by rho."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.budget_run import FULL, Contender
from benchmarks.gpu_checks import restore, weights_of
from benchmarks.measure import Gauge, table
from core.settings import Settings
from core.spec import GreenOptions, JobSpec
from core.training.hooks import FitResult, Hook, SelectionRecord, StartRecord, StepRecord
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare, train

RHOS: Final = (0.7, 0.5, 0.4)
JOBS: Final = (200, 1000)
#: steps of a round that are not timed: caches and kernels are found in them
_WARM_UP: Final = 2
#: part of the device's name -> dense bfloat16 FLOPs a second, from the makers' data sheets
_DATA_SHEETS: Final = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}
_PRODUCT_SIZES: Final = {"cuda": 8192, "cpu": 512}
_PRODUCTS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one contender: seconds of the timed steps of each round and their ratio to full's."""

    label: str
    #: tensors of the first selection
    names: tuple[str, ...]
    flops_share: float
    step_s: tuple[float, ...]
    ratios: tuple[float, ...]
    #: FLOPs of a step, mean of the timed ones
    step_flops: float
    selection_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    names: tuple[str, ...]
    step_s: float
    step_flops: float
    full_step_flops: float
    selection_s: float
    peak_bytes: int


class _Watch(Hook):
    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self.steps: list[StepRecord] = []
        self.selections: list[SelectionRecord] = []

    def on_start(self, record: StartRecord) -> None:  # noqa: ARG002  the phase's signature
        self._gauge.resume()

    def on_selection(self, record: SelectionRecord) -> None:
        self.selections.append(record)

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_end(self, result: FitResult) -> None:  # noqa: ARG002  the phase's signature
        self._gauge.pause()


def prepared_green(data: Path, model: str, *, n_steps: int, batch_size: int) -> Prepared:
    """A job whose method and rho `measure_speed` changes."""
    spec = JobSpec(
        model=model,
        training_file="train.jsonl",
        training=TrainingOptions(n_epochs=50, max_steps=n_steps, batch_size=batch_size),
        green=GreenOptions(method="green", rho=RHOS[0]),
    )
    return prepare(
        spec,
        training_path=data / "train.jsonl",
        models={model: model if Path(model).is_dir() else None},
        cache=Settings().home.expanduser() / "models",
    )


def measure_speed(prepared: Prepared, *, n_rounds: int) -> list[Speed]:
    """Full first; rhos that the model and data do not allow are left out. The model is as before
    afterwards.
    """
    contenders = [FULL, *(Contender(method="green", rho=rho) for rho in RHOS)]
    contenders = [c for c in contenders if c == FULL or float(c.rho or 0) >= prepared.rho_min]
    base = weights_of(prepared)
    rounds: list[list[_Round]] = []
    for _ in range(n_rounds):
        done = []
        for contender in contenders:
            done.append(_round(prepared, contender))
            restore(prepared, base)
        rounds.append(done)
    return [
        _speed(contender, [done[at] for done in rounds], [done[0] for done in rounds])
        for at, contender in enumerate(contenders)
    ]


def _round(prepared: Prepared, contender: Contender) -> _Round:
    rho = contender.rho if isinstance(contender.rho, float) else 1.0
    green = dataclasses.replace(prepared.spec.green, method=contender.method, rho=rho)
    job = dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, green=green))
    with Gauge(sources=()) as gauge:
        watch = _Watch(gauge)
        train(job, rho=lambda _step: rho, hooks=[watch])
    first, last = watch.steps[_WARM_UP - 1], watch.steps[-1]
    timed = watch.steps[_WARM_UP:]
    selection_flops = last.selection_flops - first.selection_flops
    return _Round(
        names=watch.selections[0].names,
        step_s=statistics.mean(step.duration_s for step in timed),
        step_flops=(last.flops - first.flops - selection_flops) / len(timed),
        full_step_flops=(last.full_flops - first.full_flops) / len(timed),
        selection_s=watch.selections[0].duration_s,
        peak_bytes=gauge.peak_bytes,
    )


def _speed(contender: Contender, rounds: Sequence[_Round], full: Sequence[_Round]) -> Speed:
    return Speed(
        label=contender.label,
        names=rounds[0].names,
        flops_share=rounds[0].step_flops / rounds[0].full_step_flops,
        step_s=tuple(one.step_s for one in rounds),
        ratios=tuple(one.step_s / of.step_s for one, of in zip(rounds, full, strict=True)),
        step_flops=rounds[0].step_flops,
        # the first one of a process also loads kernels: the median of the rounds
        selection_s=statistics.median(one.selection_s for one in rounds),
        peak_bytes=max(one.peak_bytes for one in rounds),
    )


def peak_flops(device: torch.device) -> dict[str, float]:
    """FLOPs a second: "measured" on a large product of bfloat16 matrices, "data sheet" where the
    device is known.
    """
    size = _PRODUCT_SIZES[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    spent_s = []
    for _ in range(_PRODUCTS):
        _wait(device)
        started_s = time.perf_counter()
        left @ right
        _wait(device)
        spent_s.append(time.perf_counter() - started_s)
    peaks = {"measured": 2 * size**3 / min(spent_s)}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = (flops for part, flops in _DATA_SHEETS.items() if part in name)
        if flops := next(known, None):
            peaks["data sheet"] = flops
    return peaks


def speed_table(speeds: Sequence[Speed], peaks: Mapping[str, float]) -> str:
    head = ["method", "FLOPs share", "s/step", "time ratio"]
    head += [f"MFU ({name})" for name in peaks]
    head += ["peak GB", "s/selection", *(f"of {n} steps" for n in JOBS)]
    rows = []
    for speed in speeds:
        step_s, ratio = statistics.median(speed.step_s), statistics.median(speed.ratios)
        rows.append(
            [
                speed.label,
                f"{speed.flops_share:.3f}",
                f"{step_s:.4f}",
                f"{ratio:.3f} ({min(speed.ratios):.3f} to {max(speed.ratios):.3f})",
                *(f"{speed.step_flops / step_s / peak:.3f}" for peak in peaks.values()),
                f"{speed.peak_bytes / 1e9:.2f}",
                f"{speed.selection_s:.3f}",
                *(f"{speed.selection_s / (speed.selection_s + n * step_s):.2%}" for n in JOBS),
            ]
        )
    return table(head, rows)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
