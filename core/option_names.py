"""A request's fields by the names of the command line's options: `greentune run` and `submit` take
the API's fields as options, and tell what is wrong with one as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from core.errors import GreentuneError

#: field -> the option that sets it; whatever else a request has is not an option's
_OPTIONS: Final[Mapping[str, str]] = {
    "model": "--model",
    "validation_file": "--validation",
    "suffix": "--suffix",
    "seed": "--seed",
    # as `core.data` calls them, which knows of no request
    "task": "--task",
    "columns": "--columns",
    "hyperparameters.batch_size": "--batch-size",
    "hyperparameters.n_epochs": "--epochs",
    "method.supervised.hyperparameters.batch_size": "--batch-size",
    "method.supervised.hyperparameters.n_epochs": "--epochs",
    "green.carbon_budget_g": "--carbon-budget",
    "green.currency": "--currency",
    "green.deadline": "--deadline",
    "green.earliest_start": "--earliest-start",
    "green.energy_budget_wh": "--energy-budget",
    "green.importance": "--importance",
    "green.max_hold_s": "--max-hold",
    "green.method": "--method",
    "green.on_budget": "--on-budget",
    "green.rho": "--rho",
    "green.schedule": "--schedule",
    "green.zone": "--zone",
    "green.task": "--task",
    "green.task.name": "--task",
    "green.task.columns": "--columns",
    "green.options.k": "--k",
    "green.options.r": "--lora-r",
    "green.options.alpha": "--lora-alpha",
    "green.options.dropout": "--lora-dropout",
    "green.options.target_modules": "--lora-targets",
    "green.options.n_virtual_tokens": "--virtual-tokens",
    "green.options.merge": "--merge",
    "green.eval": "--eval-metrics",
    "green.eval.metrics": "--eval-metrics",
    "green.eval.max_examples": "--eval-examples",
    "green.eval.decoding": "--eval-decoding",
    "green.eval.max_new_tokens": "--eval-new-tokens",
    "green.training.checkpoint_every_s": "--checkpoint-every-s",
    "green.training.compile": "--compile",
    "green.training.early_stopping_patience": "--early-stopping-patience",
    "green.training.gradient_accumulation": "--accumulation",
    "green.training.gradient_checkpointing": "--gradient-checkpointing",
    "green.training.learning_rate": "--learning-rate",
    "green.training.max_input_tokens": "--max-input-tokens",
    "green.training.max_output_tokens": "--max-output-tokens",
    "green.training.max_steps": "--max-steps",
    "green.training.precision": "--precision",
    "green.training.prefix_reuse": "--prefix-reuse",
    "green.training.selection_interval": "--selection-interval",
}
#: names that are no words of a sentence too
_UNMISTAKABLE = re.compile(
    r"(?<![\w./-])(?:(?:green|hyperparameters|method\.supervised)(?:\.\w+)+|validation_file\b)"
)


def option_of(field: str) -> str | None:
    """The option that sets ``field`` or, of an element (``green.eval.metrics.0``), its list."""
    while field and field not in _OPTIONS:
        field = field.rpartition(".")[0]
    return _OPTIONS.get(field)


def by_option_names(text: str) -> str:
    """``text`` with the option in the place of each field that one sets."""
    return _UNMISTAKABLE.sub(lambda found: option_of(found[0]) or found[0], text)


@contextmanager
def in_words_of_options() -> Iterator[None]:
    """What is wrong with a field, said of the option that sets it; ``param`` stays the field."""
    try:
        yield
    except GreentuneError as error:
        error.message = by_option_names(error.message)
        # `seed` and the like are words: here the message begins with what it is about
        field = error.param or ""
        if field in _OPTIONS and re.match(rf"{field}\b", error.message):
            error.message = _OPTIONS[field] + error.message.removeprefix(field)
        error.args = (error.message,)
        raise
