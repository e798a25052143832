"""`greentune profile`: what a model costs to train and what a rho buys, from its config alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from rich.console import Console
from rich.table import Table

from core.errors import InvalidInput, ModelUnsupported
from core.settings import Settings
from core.spec import ADAPTER_METHODS, GreenOptions
from core.training.adapters import add_adapters
from core.training.costs import FlopsProfile
from core.training.memory import MemoryEstimate, estimate
from core.training.methods import Choice, SelectionPoint, method_named
from core.training.models import load_config, model_class
from core.training.numerics import Numerics, choose_numerics
from core.training.pricing import Shape, profile_shape
from core.training.step import require_decoder_start
from core.training_options import Precision, TrainingOptions
from core.units import bytes_to_gib, flops_to_tflop

#: lines of the table; parts of a step are there at different times and do not add up to the peak
_MEMORY_ROWS: tuple[tuple[str, Callable[[MemoryEstimate], int]], ...] = (
    ("weights", lambda memory: memory.weights_bytes),
    ("gradients", lambda memory: memory.gradients_bytes),
    ("AdamW's moments", lambda memory: memory.moments_bytes),
    ("activations kept", lambda memory: memory.activations_bytes),
    ("logits and loss", lambda memory: memory.logits_bytes),
    ("peak of training", lambda memory: memory.training_bytes),
    # probes have as many samples as a batch in long jobs, fewer in short ones
    ("peak of selecting, at most", lambda memory: memory.selecting_bytes),
)

#: decoder tokens per input token that summarisation data has, where only inputs are named
_LABEL_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    name: str
    n_parameters: int
    #: of every tensor, the method's adapters included
    sizes: dict[str, int]
    profile: FlopsProfile
    #: what the method would train; None: nothing but full fine-tuning was asked for
    choice: Choice | None
    method: str
    rho: float | None
    precision: Literal["fp32", "bf16"]
    #: of training everything and of the plan; None: cannot be told without weights
    full_memory: MemoryEstimate | None
    plan_memory: MemoryEstimate | None
    #: the plan's where blocks run again while importance is measured; None: nothing is measured
    saving_memory: MemoryEstimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        chosen = self.choice
        return {
            "model": self.name,
            "n_parameters": self.n_parameters,
            "forward_flops": self.profile.forward_flops,
            "full_flops": self.profile.full_flops,
            "rho_min": self.profile.min_rho,
            "rho": self.rho,
            "precision": self.precision,
            "full_memory": _memory_dict(self.full_memory),
            "plan": None
            if chosen is None
            else {
                "method": self.method,
                "importance": "uniform per parameter",
                "names": list(chosen.names),
                "flops_share": chosen.rho_planned,
                "n_parameters": sum(self.sizes[name] for name in chosen.names),
                "memory": _memory_dict(self.plan_memory),
                "selecting_bytes": _selecting_dict(self),
            },
        }


def profile_model(
    name: str,
    *,
    batch: int,
    tokens: int,
    labels: int | None,
    rho: float | None,
    method: str | None,
    precision: Precision,
    settings: Settings,
) -> ModelProfile:
    """Cost and memory of a step of ``batch`` x ``tokens``, and what a method would train if every
    parameter were equally important (real importance needs weights and data).

    Args:
        name: a folder, a config.json, an id of the settings' models or of the hub.
        labels: label tokens in a row; None: all of them, or a quarter for encoder-decoders.
        rho: of methods that follow it.
        method: of `core.spec.METHODS`; None: green where there is a ``rho``, else none.
        precision: that memory is told for; auto: what a job would get on this machine.

    Raises:
        ModelUnavailable, ModelUnsupported: no configuration, or not to be priced or trained.
        InvalidInput: an unknown method or precision, a rho missing or for a method without.
        RhoInfeasible: below this shape's minimum.
    """
    green = _asked(method, rho)
    numerics = choose_numerics(precision=TrainingOptions(precision=precision).precision)
    transformers.utils.logging.set_verbosity_error()
    config = load_config(name, folder=settings.model_folders.get(name))
    model = _shaped(config)
    require_decoder_start(model)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InvalidInput(f"{name} takes at most {limit} tokens; got {tokens}.", param="tokens")
    is_pair = bool(config.is_encoder_decoder)
    per_row = labels or (max(1, tokens // _LABEL_SHARE) if is_pair else tokens)
    shape = (batch, tokens, per_row if is_pair else 0, batch * per_row)
    profile = profile_shape(model, shape)
    n_parameters = sum(p.numel() for p in model.parameters())
    memory = partial(_memory, shape=shape, numerics=numerics)
    full_memory, choice = memory(model, profile.trainable), None
    plan_memory = saving_memory = None
    if green is not None:
        own = profile
        if green.method in ADAPTER_METHODS:
            model = add_adapters(model, green.method, green.options, base_name=name, seed=0)
            names = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
            own = profile_shape(model, shape).limited(names, full_flops=profile.full_flops)
        choice = _choice(green, model, own, rho)
        ranked = () if choice.importance is None else own.trainable
        plan_memory = memory(model, choice.names, candidates=ranked)
        if ranked and plan_memory is not None:
            saving_memory = memory(
                model,
                choice.names,
                candidates=ranked,
                probe_recomputes=True,
                step_of=plan_memory,
            )
    return ModelProfile(
        name=name,
        n_parameters=n_parameters,
        sizes={n: p.numel() for n, p in model.named_parameters()},
        profile=profile,
        choice=choice,
        method="" if green is None else green.method,
        rho=rho,
        precision=numerics.name,
        full_memory=full_memory,
        plan_memory=plan_memory,
        saving_memory=saving_memory,
    )


def _asked(method: str | None, rho: float | None) -> GreenOptions | None:
    """None: nothing but full fine-tuning."""
    if method is None and rho is None:
        return None
    share: Any = "auto" if rho is None else rho
    green = GreenOptions(method=method or "green", rho=share)  # type: ignore[arg-type]  checked there
    if green.follows_rho and rho is None:
        raise InvalidInput(
            f"What {green.method} trains is a question of rho: give --rho.", param="rho"
        )
    if not green.follows_rho and rho is not None:
        raise InvalidInput(f"{green.method} costs what it costs: leave --rho out.", param="rho")
    return green


def _shaped(config: Any) -> Any:
    with torch.device("meta"):
        # float32 whatever the file says: as it will be trained
        return model_class(config).from_config(config).float()


def _choice(green: GreenOptions, model: Any, profile: FlopsProfile, rho: float | None) -> Choice:
    sizes = {n: float(p.numel()) for n, p in model.named_parameters()}
    point = SelectionPoint(
        profile=profile,
        rho=1.0 if rho is None else rho,
        measure_importance=lambda: {n: sizes[n] for n in profile.trainable},
    )
    return method_named(green.method, green.options).choose(point)


def _memory(
    model: Any,
    names: Collection[str],
    *,
    shape: Shape,
    numerics: Numerics,
    candidates: Collection[str] = (),
    probe_recomputes: bool = False,
    step_of: MemoryEstimate | None = None,
) -> MemoryEstimate | None:
    """None: what runs depends on the weights' values (routing among experts)."""
    try:
        return estimate(
            model,
            names,
            shape,
            autocast_dtype=numerics.autocast_dtype,
            probe=shape if candidates else None,
            candidates=candidates,
            lowers_frozen=True,
            probe_recomputes=probe_recomputes,
            step_of=step_of,
        )
    except ModelUnsupported:
        return None


def _memory_dict(found: MemoryEstimate | None) -> dict[str, int] | None:
    return None if found is None else {**asdict(found), "peak_bytes": found.peak_bytes}


def _selecting_dict(found: ModelProfile) -> dict[str, int] | None:
    if found.plan_memory is None or found.saving_memory is None:
        return None
    return {
        "at_most": found.plan_memory.selecting_bytes,
        "blocks_run_again": found.saving_memory.selecting_bytes,
    }


def print_profile(found: ModelProfile, console: Console) -> None:
    full = found.profile.full_flops
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("parameters", f"{found.n_parameters:,}")
    table.add_row("forward", f"{flops_to_tflop(found.profile.forward_flops):.4g} TFLOP a step")
    table.add_row("full fine-tuning", f"{flops_to_tflop(full):.4g} TFLOP a step")
    table.add_row("feasible rho", f"{found.profile.min_rho:.4f} to 1")
    console.print(Path(found.name).name or found.name, style="bold", markup=False, highlight=False)
    console.print(table)
    _print_memory(found, console)
    if found.choice is None:
        return
    names = found.choice.names
    trained = sum(found.sizes[name] for name in names)
    console.print(
        f"Plan for {_plan(found)}, as if every parameter were equally important: "
        f"{found.choice.rho_planned:.2%} of full fine-tuning, {len(names)} of "
        f"{len(found.sizes)} tensors, {trained / found.n_parameters:.1%} of the parameters",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(_plan_table(found, names))


def _print_memory(found: ModelProfile, console: Console) -> None:
    columns = {"full fine-tuning": found.full_memory, _plan(found): found.plan_memory}
    told = [(title, memory) for title, memory in columns.items() if memory is not None]
    if not told:
        console.print("Memory cannot be told: what runs depends on the weights.")
        return
    precision = "float32" if found.precision == "fp32" else "bfloat16 autocast"
    table = Table(f"GiB in {precision}", box=None, pad_edge=False)
    for title, _ in told:
        table.add_column(title, justify="right")
    for label, size_of in _MEMORY_ROWS:
        sizes = [size_of(memory) for _, memory in told]
        if any(sizes):
            table.add_row(label, *map(_gib, sizes))
    if found.saving_memory is not None:
        # as a job does where that would take more than half of its device
        least = _gib(found.saving_memory.selecting_bytes)
        table.add_row("the same, blocks run again", *[""] * (len(told) - 1), least)
    console.print(table)


def _gib(n_bytes: int) -> str:
    return f"{bytes_to_gib(n_bytes):.2f}" if n_bytes else ""


def _plan(found: ModelProfile) -> str:
    return found.method if found.rho is None else f"{found.method} at rho {found.rho:g}"


def _plan_table(found: ModelProfile, names: tuple[str, ...]) -> Table:
    """Whole groups (a block, an embedding) on a line each, in the model's order."""
    table = Table("part", "tensors", "parameters", box=None, pad_edge=False)
    totals = Counter(_group(name) for name in found.sizes)
    taken = Counter(_group(name) for name in names)
    for group, total in totals.items():
        if taken[group]:
            size = sum(found.sizes[name] for name in names if _group(name) == group)
            table.add_row(group, f"{taken[group]} of {total}", f"{size:,}")
    return table


def _group(name: str) -> str:
    """Up to and including the first number in the name: ``model.layers.7``."""
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered[1] if numbered else name
