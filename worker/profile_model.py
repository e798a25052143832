"""`greentune profile`: what a model costs to train and what a rho buys, from its config alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from core.errors import InvalidInput, ModelUnsupported
from core.settings import Settings
from core.training.costs import FlopsProfile
from core.training.memory import MemoryEstimate, estimate
from core.training.models import load_config, model_class
from core.training.pricing import Shape, profile_shape
from core.training.selector import Selection, select
from core.training.step import require_decoder_start
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
    sizes: dict[str, int]
    profile: FlopsProfile
    #: the plan for the rho asked for; None: none was
    selection: Selection | None
    rho: float | None
    #: of training everything and of the plan, in float32; None: cannot be told without weights
    full_memory: MemoryEstimate | None
    plan_memory: MemoryEstimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        full = self.profile.full_flops
        chosen = self.selection
        return {
            "model": self.name,
            "n_parameters": self.n_parameters,
            "forward_flops": self.profile.forward_flops,
            "full_flops": full,
            "rho_min": self.profile.min_rho,
            "rho": self.rho,
            "full_memory": _memory_dict(self.full_memory),
            "plan": None
            if chosen is None
            else {
                "importance": "uniform per parameter",
                "names": list(chosen.names),
                "flops_share": chosen.flops / full,
                "n_parameters": sum(self.sizes[name] for name in chosen.names),
                "memory": _memory_dict(self.plan_memory),
            },
        }


def profile_model(
    name: str, *, batch: int, tokens: int, labels: int | None, rho: float | None, settings: Settings
) -> ModelProfile:
    """Cost and memory of a step of ``batch`` x ``tokens``, and the selection for ``rho`` if every
    parameter were equally important (real importance needs weights and data).

    Args:
        name: a folder, a config.json, an id of the settings' models or of the hub.
        labels: label tokens in a row; None: all of them, or a quarter for encoder-decoders.

    Raises:
        ModelUnavailable, ModelUnsupported: no configuration, or not to be priced or trained.
        RhoInfeasible: below this shape's minimum.
    """
    transformers.utils.logging.set_verbosity_error()
    config = load_config(name, folder=settings.model_folders.get(name))
    with torch.device("meta"):
        # float32 whatever the file says: as it will be trained
        model = model_class(config).from_config(config).float()
    require_decoder_start(model)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InvalidInput(f"{name} takes at most {limit} tokens; got {tokens}.", param="tokens")
    is_pair = bool(config.is_encoder_decoder)
    per_row = labels or (max(1, tokens // _LABEL_SHARE) if is_pair else tokens)
    shape = (batch, tokens, per_row if is_pair else 0, batch * per_row)
    profile = profile_shape(model, shape)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    selection = None
    if rho is not None:
        uniform = {n: float(sizes[n]) for n in profile.trainable}
        selection = select(profile, uniform, rho * profile.full_flops)
    return ModelProfile(
        name=name,
        n_parameters=sum(sizes.values()),
        sizes=sizes,
        profile=profile,
        selection=selection,
        rho=rho,
        full_memory=_memory(model, profile.trainable, shape),
        plan_memory=None
        if selection is None
        else _memory(model, selection.names, shape, candidates=profile.trainable),
    )


def _memory(
    model: Any, names: Collection[str], shape: Shape, *, candidates: Collection[str] = ()
) -> MemoryEstimate | None:
    """None: what runs depends on the weights' values (routing among experts)."""
    probe = shape if candidates else None
    try:
        return estimate(model, names, shape, probe=probe, candidates=candidates)
    except ModelUnsupported:
        return None


def _memory_dict(found: MemoryEstimate | None) -> dict[str, int] | None:
    return None if found is None else {**asdict(found), "peak_bytes": found.peak_bytes}


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
    if found.selection is None:
        return
    names = found.selection.names
    trained = sum(found.sizes[name] for name in names)
    console.print(
        f"Plan for rho {found.rho:g}, as if every parameter were equally important: "
        f"{found.selection.flops / full:.2%} of full fine-tuning, {len(names)} of "
        f"{len(found.sizes)} tensors, {trained / found.n_parameters:.1%} of the parameters",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(_plan_table(found, names))


def _print_memory(found: ModelProfile, console: Console) -> None:
    columns = {"full fine-tuning": found.full_memory, f"rho {found.rho}": found.plan_memory}
    told = [(title, memory) for title, memory in columns.items() if memory is not None]
    if not told:
        console.print("Memory cannot be told: what runs depends on the weights.")
        return
    table = Table("GiB in float32", box=None, pad_edge=False)
    for title, _ in told:
        table.add_column(title, justify="right")
    for label, size_of in _MEMORY_ROWS:
        sizes = [size_of(memory) for _, memory in told]
        if any(sizes):
            table.add_row(label, *(f"{bytes_to_gib(size):.2f}" if size else "" for size in sizes))
    console.print(table)


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
