"""A trained model as a folder that anybody can load: Hugging Face layout plus a model card.

``AutoModelForCausalLM.from_pretrained(folder)`` (or ``AutoModelForSeq2SeqLM``) works offline; the
card's front matter carries ``co2_eq_emissions`` in grams, where emissions were accounted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StorageUnavailable
from core.spec import Currency
from core.training.adapters import is_adapted, merged
from core.training.rates import NOUNS
from core.units import joules_to_wh


@dataclass(frozen=True, slots=True, kw_only=True)
class EmissionsNote:
    """What the card says of the run's footprint."""

    emissions_g: float
    energy_j: float
    #: such as "codecarbon (estimated) x static yearly average"
    source: str
    zone: str | None
    hardware: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    name: str
    base_model: str
    method: str
    n_training_examples: int
    n_training_tokens: int
    n_steps: int
    n_epochs: float
    #: share of full fine-tuning's cost asked for; None: several in one run
    rho: float | None
    #: spent, selection included, and its share of full fine-tuning's
    flops: float
    flops_share: float
    first_validation_loss: float | None
    validation_loss: float | None
    emissions: EmissionsNote | None = None
    #: what rho is a share of
    currency: Currency = "flops"
    #: with early stopping: the step whose weights these are; None: the last
    kept_step: int | None = None
    #: further lines of the results table: label -> value
    metrics: Mapping[str, str] | None = None


def export_model(
    folder: Path, model: Any, tokenizer: Any, card: ModelCard, *, merge: bool = False
) -> Path:
    """Write model, tokenizer, chat template, generation config and README.md into ``folder``; of
    an adapted model the adapter alone, for ``peft.PeftModel.from_pretrained(base, folder)``.

    The folder appears whole or not at all; one that was there is replaced.

    Args:
        merge: adapters are added into the weights first, in place.

    Raises:
        StorageUnavailable: the disk is full or refuses.
        InvalidInput: an adapter that cannot be merged.
    """
    layout = "model"
    if is_adapted(model):
        layout = "adapter merged into the model" if merge else "adapter (PEFT), without the model"
        model = merged(model) if merge else model
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
            fresh = Path(scratch) / "model"
            save_model(model, fresh)
            tokenizer.save_pretrained(fresh)
            (fresh / "README.md").write_text(render_card(card, layout), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            fresh.rename(folder)
    except OSError as error:
        raise StorageUnavailable(f"The model cannot be written to {folder}: {error}.") from error
    return folder


def save_model(model: Any, folder: Path) -> None:
    """A plain model as a whole; of an adapted one the adapter."""
    if is_adapted(model):
        # embeddings are never trained by an adapter, and PEFT would ask the hub about them
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def render_card(card: ModelCard, layout: str = "model") -> str:
    """The model card: YAML front matter as the hub reads it, then a short page.

    Args:
        layout: what the folder holds, in words; an adapter's begin with "adapter (PEFT)".
    """
    return "\n".join([*_front_matter(card, layout), "", *_page(card, layout), ""])


def _front_matter(card: ModelCard, layout: str) -> list[str]:
    library = "peft" if layout.startswith("adapter (PEFT)") else "transformers"
    lines = [
        "---",
        f"base_model: {json.dumps(_base_name(card))}",
        f"library_name: {library}",
        "tags: [greentune, greentrainer]",
    ]
    if card.emissions is not None:
        note = card.emissions
        # JSON strings are YAML strings: no value can break out of its line
        lines += [
            "co2_eq_emissions:",
            f"  emissions: {note.emissions_g:.6g}",
            f"  source: {json.dumps(note.source)}",
            "  training_type: fine-tuning",
            f"  geographical_location: {json.dumps(note.zone or 'unknown')}",
            f"  hardware_used: {json.dumps(note.hardware)}",
        ]
    return [*lines, "---"]


def _page(card: ModelCard, layout: str) -> list[str]:
    rows = {
        "Method": card.method,
        "This folder holds": layout,
        "Training data": f"{card.n_training_examples:,} examples, "
        f"{card.n_training_tokens:,} tokens an epoch",
        "Steps": f"{card.n_steps:,} ({card.n_epochs:.3g} epochs)",
        f"Share of full fine-tuning's {NOUNS[card.currency]} asked for (rho)": _rho_text(card.rho),
        "FLOPs spent, selection included": f"{card.flops:.4g} "
        f"({100 * card.flops_share:.1f} % of full fine-tuning)",
    }
    if card.kept_step is not None:
        rows["Weights"] = f"of step {card.kept_step:,}, where validation loss was lowest"
    if card.first_validation_loss is not None and card.validation_loss is not None:
        rows["Validation loss before and after"] = (
            f"{card.first_validation_loss:.4f} and {card.validation_loss:.4f}"
        )
    if card.emissions is not None:
        note = card.emissions
        rows["Energy"] = f"{joules_to_wh(note.energy_j):.4g} Wh"
        rows["Emissions"] = f"{note.emissions_g:.4g} gCO2e ({note.source})"
    rows |= card.metrics or {}
    return [
        f"# {card.name}",
        "",
        f"{_base_link(card)} fine-tuned with greentune.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {label} | {value} |" for label, value in rows.items()),
    ]


def _base_name(card: ModelCard) -> str:
    """A hub id as it is; of a local folder only its name, for the path is nobody's business."""
    return card.base_model if _is_hub_id(card.base_model) else Path(card.base_model).name


def _base_link(card: ModelCard) -> str:
    name = _base_name(card)
    return f"[{name}](https://huggingface.co/{name})" if _is_hub_id(card.base_model) else name


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _rho_text(rho: float | None) -> str:
    return "changed during the run" if rho is None else f"{rho:.3g}"
