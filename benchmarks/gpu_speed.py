"""Seconds a step, model FLOPs utilisation, peak memory and the price of selecting, by method."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL, Contender
from benchmarks.gpu_checks import restore, weights_of
from benchmarks.measure import Gauge, table
from core.errors import RhoInfeasible
from core.training.hooks import Control, FitResult, Hook, SelectionRecord, StartRecord, StepRecord
from worker.prepare import Prepared, train

#: full first: the others' ratios are to its seconds in the same round
CONTENDERS: Final = (
    FULL,
    *(Contender(method="green", rho=rho) for rho in (0.7, 0.5, 0.4)),
    Contender(method="last_k", k=2),
    *(Contender(method="green_lora", rho=rho) for rho in (0.7, 0.5)),
    Contender(method="lora", target_modules="all-linear"),
    Contender(method="lora"),
    Contender(method="prefix"),
)
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


def prepared_all(task: Task) -> dict[Contender, Prepared]:
    """Each contender's long job, with a model of its own; those whose rho the model and data do not
    allow are left out.
    """
    found = {}
    for contender in CONTENDERS:
        with suppress(RhoInfeasible):
            # of a short job, measuring importance would take a good part of rho
            prepared = prepared_for(task, contender, n_steps=JOBS[-1], rate=None, seed=0)
            # nothing but steps is timed
            found[contender] = dataclasses.replace(prepared, validation_data=None, exam=None)
    return found


def measure_speed(
    prepared: Mapping[Contender, Prepared], *, n_rounds: int, n_steps: int
) -> list[Speed]:
    """Of each job's first ``n_steps`` steps. Full first. The models are as before afterwards, on
    the CPU.
    """
    base = {contender: weights_of(one) for contender, one in prepared.items()}
    rounds: list[list[_Round]] = []
    for _ in range(n_rounds):
        done = []
        for contender, one in prepared.items():
            done.append(_round(one, contender, n_steps))
            # whose turn it is has the card's memory for itself
            one.loaded.model.to("cpu")
            restore(one, base[contender])
        rounds.append(done)
    return [
        _speed(contender, [done[at] for done in rounds], [done[0] for done in rounds])
        for at, contender in enumerate(prepared)
    ]


def _round(prepared: Prepared, contender: Contender, n_steps: int) -> _Round:
    rho = contender.rho if isinstance(contender.rho, float) else 1.0
    with Gauge(sources=()) as gauge:
        watch = _Watch(gauge)

        def control() -> Control:
            return Control.STOP if len(watch.steps) == n_steps else Control.CONTINUE

        train(prepared, rho=lambda _step: rho, hooks=[watch], control=control)
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
