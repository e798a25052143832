"""`greentune profile`: what a model costs to train and what a rho buys, from its config alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from core.errors import InvalidInput
from core.settings import Settings
from core.training.costs import FlopsProfile
from core.training.models import load_config, model_class
from core.training.pricing import profile_shape
from core.training.selector import Selection, select
from core.units import flops_to_tflop

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
            "plan": None
            if chosen is None
            else {
                "importance": "uniform per parameter",
                "names": list(chosen.names),
                "flops_share": chosen.flops / full,
                "n_parameters": sum(self.sizes[name] for name in chosen.names),
            },
        }


def profile_model(
    name: str, *, batch: int, tokens: int, labels: int | None, rho: float | None, settings: Settings
) -> ModelProfile:
    """Cost of a step of ``batch`` x ``tokens``, and the selection for ``rho`` if every parameter
    were equally important (real importance needs weights and data).

    Args:
        name: a folder, a config.json, an id of the settings' models or of the hub.
        labels: label tokens in a row; None: all of them, or a quarter for encoder-decoders.

    Raises:
        ModelUnavailable, ModelUnsupported: no configuration, or not to be priced.
        RhoInfeasible: below this shape's minimum.
    """
    transformers.utils.logging.set_verbosity_error()
    config = load_config(name, folder=settings.model_folders.get(name))
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InvalidInput(f"{name} takes at most {limit} tokens; got {tokens}.", param="tokens")
    is_pair = bool(config.is_encoder_decoder)
    per_row = labels or (max(1, tokens // _LABEL_SHARE) if is_pair else tokens)
    profile = profile_shape(model, (batch, tokens, per_row if is_pair else 0, batch * per_row))
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
    )


def print_profile(found: ModelProfile, console: Console) -> None:
    full = found.profile.full_flops
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("parameters", f"{found.n_parameters:,}")
    table.add_row("forward", f"{flops_to_tflop(found.profile.forward_flops):.4g} TFLOP a step")
    table.add_row("full fine-tuning", f"{flops_to_tflop(full):.4g} TFLOP a step")
    table.add_row("feasible rho", f"{found.profile.min_rho:.4f} to 1")
    console.print(Path(found.name).name or found.name, style="bold", markup=False, highlight=False)
    console.print(table)
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
