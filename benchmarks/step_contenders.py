"""What `benchmarks/step_ladder.py` measures: rungs from a naive step to ours, and methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.hf_trainer import put_back_pefts_layers
from core.spec import MethodOptions
from core.training.adapters import add_adapters
from core.training.costs import FlopsProfile
from core.training.frozen_weights import FrozenWeights
from core.training.importance import measure_importance
from core.training.memory import estimate
from core.training.methods import SelectionPoint, method_named
from core.training.numerics import Numerics, choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.pricing import price_steps
from core.training.step import Batch, LossStep, StepInputs, needs_mask
from worker.prepare import Prepared

RHOS = (0.7, 0.5, 0.4)
RATE, MAX_NORM = 1e-6, 1.0


@dataclass(slots=True, kw_only=True)
class Contender:
    """One line of a table. ``step`` takes a batch through one whole step of it."""

    label: str
    step: Callable[[Batch], None]
    #: of the data's own grouping, or the same samples in batches drawn at random
    is_grouped: bool = True
    precision: str = "fp32"
    #: FLOPs over full fine-tuning's; bytes that `core.training.memory` says
    flops_share: float | None = None
    estimated_bytes: int | None = None
    #: weights, and moments after a step
    held_bytes: Callable[[], int] = lambda: 0
    ms_per_token: list[float] = field(default_factory=list)
    peak_bytes: int = 0


class Naive:
    """Everything as a first script does it; ``pads_to`` None: to the longest of the batch."""

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        model: Any,
        *,
        pads_to: int | None,
        gathers: bool,
        masks: bool,
    ) -> None:
        self._model, self._pads_to, self._gathers = model, pads_to, gathers
        self._loss = LossStep(model, keeps_mask=masks)
        self._adamw = adamw

    def __call__(self, batch: Batch) -> None:
        self._model.requires_grad_(True)
        if self._gathers:
            inputs = self._loss.inputs(batch)
            loss = self._loss(inputs).loss_sum / inputs.n_labels
        else:
            padded = _padded(batch, self._pads_to)
            loss = self._model(**{k: v.to(self._model.device) for k, v in padded.items()}).loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_NORM, foreach=False)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def held_bytes(self) -> int:
        moments = (t for s in self._adamw.state.values() for t in s.values())
        return sum(p.nbytes for p in self._model.parameters()) + sum(t.nbytes for t in moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapters:
    """``rho`` None: all are trained; ``is_pefts``: by PEFT's own layers."""

    label: str
    method: str = "lora"
    options: MethodOptions = field(default_factory=MethodOptions)
    rho: float | None = None
    is_pefts: bool = False


_EVERYWHERE = MethodOptions(target_modules="all-linear")
_ADAPTERS = (
    _Adapters(label="lora"),
    _Adapters(label="lora, PEFT's layers", is_pefts=True),
    _Adapters(
        label="lora, PEFT's layers, dropout .1", options=MethodOptions(dropout=0.1), is_pefts=True
    ),
    _Adapters(label="lora all-linear", options=_EVERYWHERE),
    _Adapters(label="lora all-linear, PEFT's layers", options=_EVERYWHERE, is_pefts=True),
    _Adapters(label="green_lora 0.7", method="green_lora", rho=0.7),
    _Adapters(label="green_lora 0.5", method="green_lora", rho=0.5),
)


class Ours:
    """The product's step, training ``names``; in any precision with the same optimiser state."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self._keeps_mask = needs_mask(model)
        self._loss = LossStep(model, keeps_mask=self._keeps_mask)
        self._optimiser = SelectiveAdamW(dict(model.named_parameters()), weight_decay=0.0)
        self._optimiser.select(names)

    def lowered(self, dtype: torch.dtype | None) -> Ours:
        """The same on a copy, its frozen matrices as in a run under this autocast; None: itself."""
        if dtype is None:
            return self
        other = Ours(copy.deepcopy(self.model), self.names)
        FrozenWeights(other.model, dtype).lower_all_but(self.names)
        return other

    def among(
        self, numerics: Numerics, *, has_cpu_attention: bool = True
    ) -> Callable[[Batch], None]:
        """A step of it in this precision, with `core.training.cpu_attention` or without."""
        loss = LossStep(
            self.model,
            keeps_mask=self._keeps_mask,
            autocast_dtype=numerics.autocast_dtype,
        )
        loss.runs_on_cpu &= has_cpu_attention
        return lambda batch: self._step(loss, batch)

    def inputs(self, batch: Batch) -> StepInputs:
        return self._loss.inputs(batch)

    def _step(self, loss: LossStep, batch: Batch) -> None:
        chosen = set(self.names)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in chosen)
        inputs = loss.inputs(batch)
        torch.autograd.backward(loss(inputs).loss_sum / inputs.n_labels)
        self._optimiser.step(learning_rate=RATE, max_grad_norm=MAX_NORM)

    def held_bytes(self) -> int:
        moments = self._optimiser.state_tensors().values()
        return sum(p.nbytes for p in self.model.parameters()) + sum(t.nbytes for t in moments)


def _padded(batch: Batch, length: int | None) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    missing = max(0, (length or 0) - batch["input_ids"].shape[1])
    return {
        name: torch.nn.functional.pad(batch[name], (0, missing), value=value)
        for name, value in fill.items()
    }


def contenders(
    prepared: Prepared, batches: Sequence[Batch], max_length: int
) -> tuple[list[Contender], list[Contender]]:
    """The rungs below ours, and methods in both precisions."""
    plain = choose_numerics(precision="fp32")
    model = prepared.loaded.model.to(plain.device)
    full = Ours(model, prepared.profile.trainable)
    ladder = _naive_rungs(model, max_length)
    onednn = "bf16" if "oneDNN" in plain.precision else "ieee"
    for label, route, is_grouped in (
        ("fused AdamW that clips", "ieee", False),
        ("oneDNN float32", onednn, False),
        ("grouped by length", onednn, True),
    ):
        step = _routed(route, full.among(plain))
        ladder.append(
            Contender(label=label, step=step, is_grouped=is_grouped, held_bytes=full.held_bytes)
        )
    autocast = choose_numerics(precision="bf16")
    if autocast.device.type == "cpu":
        step = full.among(autocast, has_cpu_attention=False)
        ladder.append(Contender(label="bf16 autocast", step=step, held_bytes=full.held_bytes))
    return ladder, _methods(prepared, batches, full)


def _naive_rungs(model: Any, max_length: int) -> list[Contender]:
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, foreach=False, fused=False)
    found = []
    for label, pads_to, gathers, masks in (
        (f"naive: padded to {max_length}, all logits, for-loop AdamW", max_length, False, True),
        ("padded to the batch", None, False, True),
        ("logits where labels are", None, True, True),
        ("no needless mask", None, True, False),
    ):
        naive = Naive(adamw, model, pads_to=pads_to, gathers=gathers, masks=masks)
        step = _routed("ieee", naive)
        found.append(
            Contender(label=label, step=step, is_grouped=False, held_bytes=naive.held_bytes)
        )
    return found


def _routed(route: str, step: Callable[[Batch], None]) -> Callable[[Batch], None]:
    """``step`` with torch's float32 products by this route; what was set before comes back."""
    matmul: Any = torch.backends.mkldnn.matmul

    def routed(batch: Batch) -> None:
        before = matmul.fp32_precision
        matmul.fp32_precision = route
        try:
            step(batch)
        finally:
            matmul.fp32_precision = before

    return routed


def _methods(prepared: Prepared, batches: Sequence[Batch], full: Ours) -> list[Contender]:
    """Full fine-tuning, green at several rho and adapters; shares are of the rounds' batches."""
    model, prices = prepared.loaded.model, prepared.prices
    shapes = [full.inputs(batch).shape for batch in batches]
    lines = {"full": (full, prices)}
    for rho in RHOS:
        names = _selected("green", model, prepared.profile, batches[0], rho)
        lines[f"green {rho:g}"] = Ours(model, names), prices
    for adapters in _ADAPTERS:
        adapted = add_adapters(
            copy.deepcopy(model),
            adapters.method,
            adapters.options,
            base_name="base",
            seed=prepared.spec.seed,
        )
        if adapters.is_pefts:
            put_back_pefts_layers(adapted)
        names = tuple(n for n, parameter in adapted.named_parameters() if parameter.requires_grad)
        own = price_steps(adapted).against(prices, names)
        if adapters.rho is not None:
            profile = own.mean_profile(shapes)
            names = _selected(adapters.method, adapted, profile, batches[0], adapters.rho)
        lines[adapters.label] = Ours(adapted, names), own
    full_flops = sum(map(prices.full, shapes))
    found = []
    for numerics in (choose_numerics(precision="fp32"), choose_numerics(precision="bf16")):
        for label, (plain, own) in lines.items():
            ours = plain.lowered(numerics.autocast_dtype) if label != "full" else plain
            line = Contender(label=label, step=ours.among(numerics), precision=numerics.name)
            line.flops_share = sum(map(own.of(ours.names), shapes)) / full_flops
            line.estimated_bytes = estimate(
                plain.model,
                plain.names,
                shapes[-1],
                autocast_dtype=numerics.autocast_dtype,
                lowers_frozen=True,
            ).peak_bytes
            line.held_bytes = ours.held_bytes
            found.append(line)
    return found


def _selected(
    method: str, model: Any, profile: FlopsProfile, probe: Batch, rho: float
) -> tuple[str, ...]:
    step, parameters = LossStep(model), dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    connected = {name: parameters[name] for name in profile.trainable}
    choice = method_named(method).choose(
        SelectionPoint(
            profile=profile,
            rho=rho,
            measure_importance=lambda: measure_importance(
                step, [step.inputs(probe)], connected, optimiser, learning_rate=1e-4
            ),
            elements={name: parameter.numel() for name, parameter in parameters.items()},
        )
    )
    return choice.names
