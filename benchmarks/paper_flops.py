"""Who is compared in the GreenTrainer paper's tables, and the FLOPs of its models, measured.

Configurations on the meta device, torch's ``FlopCounterMode``, eager attention. There are no
weights there, so green selects by seeded random importance: what is measured is what a selection
costs, not what it is worth.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from costs import ARCHITECTURES, batch_for, measured_flops  # beside this file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.spec import MethodOptions, TargetModules
from core.training.adapters import add_adapters
from core.training.flops import profile
from core.training.methods import SelectionPoint, method_named

#: SciTLDR, batch 4, 5 epochs: 1,992 examples; all padded to 512 tokens, as its numbers show
PAPER_STEPS: Final = 5 * 1992 // 4
PAPER_TOKENS: Final = 512
#: of an answer of FLAN-T5; the paper does not say
PAPER_ANSWER_TOKENS: Final = 64
PAPER_K: Final = 2
ABLATION_RHOS: Final = (0.5, 0.7)
SWEEP: Final = (0.36, 0.4, 0.5, 0.6, 0.7, 0.8)
SIZES: Final = (
    "SmolLM2-135M", "OPT-125M", "OPT-350M", "OPT-2.7B", "BLOOMZ-560M", "BLOOMZ-3B",
    "FLAN-T5-small", "FLAN-T5-XL",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """``rho`` None: the method costs what it costs."""

    method: str
    rho: float | None = None
    importance: str = "importance"
    k: int | None = None
    #: of lora
    target_modules: TargetModules = "default"

    @property
    def label(self) -> str:
        parts = [self.method if self.k is None else f"last {self.k} blocks"]
        if self.target_modules != "default":
            parts.append(self.target_modules)
        if self.rho is not None:
            parts.append(f"{self.rho:g}")
        if self.importance != "importance":
            parts.append(f"by {self.importance}")
        return " ".join(parts)

    @property
    def options(self) -> MethodOptions:
        return MethodOptions(k=self.k, target_modules=self.target_modules)


FULL: Final = Contender(method="full")
BASELINES: Final = (
    FULL, Contender(method="last_k", k=PAPER_K), Contender(method="prefix"),
    Contender(method="lora"),
)  # fmt: skip
GREEN: Final = tuple(Contender(method="green", rho=rho) for rho in SWEEP)
GREEN_LORA: Final = tuple(Contender(method="green_lora", rho=rho) for rho in (0.5, 0.6, 0.7))
MAIN: Final = (
    *BASELINES,
    Contender(method="lora", target_modules="all-linear"),
    *(c for c in GREEN if c.rho in {0.5, 0.7}),
    *GREEN_LORA,
)
ABLATION: Final = tuple(
    Contender(method="green", rho=rho, importance=importance)
    for rho in ABLATION_RHOS
    for importance in ("importance", "taylor", "fisher", "magnitude", "random")
)
#: the paper's PFLOPs are multiply-adds; here doubled. SciTLDR, its table 2
PAPER: Final[Mapping[str, Mapping[Contender, float]]] = {
    name: {
        **{c: 2 * pflops for c, pflops in zip(BASELINES, baselines, strict=True)},
        **{Contender(method="green", rho=rho): 2 * pflops for rho, pflops in green},
    }
    for name, baselines, green in (
        ("OPT-2.7B", (41.8, 29.0, 27.9, 27.9), ((0.5, 20.8), (0.7, 29.2))),
        ("BLOOMZ-3B", (47.2, 36.5, 31.5, 31.5), ((0.5, 23.4), (0.7, 32.3))),
        ("FLAN-T5-XL", (21.7, 7.3, 8.0, 14.4), ((0.34, 7.5), (0.4, 10.0))),
    )
}


def measure_paper() -> dict[str, dict[str, float]]:
    """Model -> contender -> FLOPs of the paper's whole training."""
    return {
        name: {c.label: PAPER_STEPS * _step_flops(name, c) for c in contenders}
        for name, contenders in PAPER.items()
    }


def _step_flops(name: str, contender: Contender) -> float:
    """Measured, of one padded batch."""
    model = _on_meta(name)
    batch = batch_for(model, 4, PAPER_TOKENS, PAPER_ANSWER_TOKENS)
    if contender.method in {"lora", "prefix"}:
        with torch.device("meta"):
            model = add_adapters(model, contender.method, contender.options, base_name=name, seed=0)
        names = {n for n, p in model.named_parameters() if p.requires_grad}
    else:
        costs = profile(model, batch)
        rng = Random(f"0 {name}")
        point = SelectionPoint(
            profile=costs,
            rho=contender.rho or 1.0,
            measure_importance=lambda: {n: rng.random() for n in costs.trainable},
        )
        names = set(method_named(contender.method, contender.options).choose(point).names)
    spent = sum(measured_flops(model, batch, names))
    print(f"{name}, {contender.label}: {spent:.4g} FLOPs a step", flush=True)
    return float(spent)


def measure_sizes() -> dict[str, dict[str, float]]:
    found = {}
    for name in SIZES:
        model = _on_meta(name)
        batch = batch_for(model, 4, PAPER_TOKENS, PAPER_ANSWER_TOKENS)
        costs = profile(model, batch)
        full = sum(measured_flops(model, batch, set(costs.names)))
        found[name] = {
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "full": float(full),
            "forward_share": costs.forward_flops / full,
            "rho_min": costs.min_rho,
            "green_share": _step_flops(name, GREEN[2]) / full,
        }
    return found


def _on_meta(name: str) -> Any:
    with torch.device("meta"):
        return ARCHITECTURES[name].build(ARCHITECTURES[name].published)
