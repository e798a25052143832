"""How a job is to be trained, checked where it is written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from core.errors import InvalidInput

LossOn = Literal["assistant", "all"]
Schedule = Literal["linear", "cosine", "constant"]
PrefixReuseChoice = Literal["auto", "on", "off"]
Precision = Literal["auto", "fp32", "bf16"]
CompileChoice = Literal["off", "auto", "on"]

#: from so many examples on an open ``n_epochs`` is one pass, below it the most that it may be
#: (docs/learning.md, "Samples seen again")
_ENOUGH_EXAMPLES = 200
MOST_AUTO_EPOCHS = 2
#: far above what trains anything; beyond float32's range training would be an overflow
_RATE_LIMIT = 1e6
#: of rates and their multipliers that are asked for: below it no float32 weight moves, and the
#: rate of a step becomes 0, by which a selection would divide. Not a rule of `TrainingOptions`:
#: stored jobs that broke it must still be read
RATE_MIN = 1e-12
WEIGHT_DECAY_MAX = 1e6


def require(ok: bool, param: str, rule: str, got: object) -> None:
    """Raises InvalidInput that says which ``param`` must be what."""
    if not ok:
        raise InvalidInput(f"{param} must be {rule}; got {got!r}.", param=param)


def require_one_of(value: object, choices: Any, param: str) -> None:
    """``choices``: a Literal. Raises as `require`."""
    words = get_args(choices)
    require(value in words, param, f"one of {', '.join(words)}", value)


def require_whole(value: object, most: int, param: str, rule: str | None = None) -> None:
    """1..``most``. Raises as `require`, by this ``rule`` or that range."""
    is_within = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    require(is_within, param, rule or f"1..{most}", value)


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no bool or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def auto_epochs(n_examples: int) -> int:
    """Passes over so many examples where nobody says how many."""
    return 1 if n_examples >= _ENOUGH_EXAMPLES else MOST_AUTO_EPOCHS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train. ``None`` means: resolved from the data, the method and the model."""

    #: None: `auto_epochs` of the training data
    n_epochs: int | None = None
    #: samples per optimiser step are ``batch_size * gradient_accumulation``
    batch_size: int | None = None
    gradient_accumulation: int = 1
    #: peak rate; None: the method's own rule
    learning_rate: float | None = None
    #: scales the rule's rate (OpenAI's hyperparameter)
    learning_rate_multiplier: float | None = None
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.03
    #: 0..`WEIGHT_DECAY_MAX`
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    #: tokens of prompt kept (the oldest are cut) and of answer kept; None: the model's context
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    loss_on: LossOn = "assistant"
    #: stop after so many optimiser steps, whatever the epochs say
    max_steps: int | None = None
    #: epochs between two selections (may be a fraction); None: chosen with the selection where
    #: hidden states are stored, else one
    selection_interval: float | None = None
    checkpoint_every_s: float = 600.0
    #: store hidden states below what is trained; auto: where data passes twice between selections
    prefix_reuse: PrefixReuseChoice = "auto"
    #: bf16: autocast over float32 weights; auto: bf16 where the processor computes in it
    precision: Precision = "auto"
    #: blocks keep their input alone and run again in the backward pass: less memory, more FLOPs
    gradient_checkpointing: bool = False
    #: run blocks as compiled code; auto: where the job is long enough to earn that back, measured
    compile: CompileChoice = "off"
    #: end after so many epochs without a lower validation loss, and deliver the weights of the
    #: lowest, also of a run that reaches its end; None: all epochs, and the last weights
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        at = "green.training."
        hyper = "hyperparameters."
        if self.n_epochs is not None:
            require(1 <= self.n_epochs <= 50, hyper + "n_epochs", "1..50", self.n_epochs)
        if self.batch_size is not None:
            require(1 <= self.batch_size <= 256, hyper + "batch_size", "1..256", self.batch_size)
        require(
            1 <= self.gradient_accumulation <= 1024,
            at + "gradient_accumulation",
            "1..1024",
            self.gradient_accumulation,
        )
        for name in ("learning_rate", "learning_rate_multiplier"):
            value = getattr(self, name)
            where = (at if name == "learning_rate" else hyper) + name
            require(
                value is None or (is_number(value) and 0 < value < _RATE_LIMIT),
                where,
                f"a number above 0 and below {_RATE_LIMIT:.0f}",
                value,
            )
        require_one_of(self.schedule, Schedule, at + "schedule")
        require(0 <= self.warmup_ratio < 1, at + "warmup_ratio", "in [0, 1)", self.warmup_ratio)
        require(
            is_number(self.weight_decay) and 0 <= self.weight_decay <= WEIGHT_DECAY_MAX,
            at + "weight_decay",
            f"a number from 0 to {WEIGHT_DECAY_MAX:.0f}",
            self.weight_decay,
        )
        require(self.max_grad_norm > 0, at + "max_grad_norm", "above 0", self.max_grad_norm)
        for name in ("max_input_tokens", "max_output_tokens", "max_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, at + name, "1 or more", value)
        if (patience := self.early_stopping_patience) is not None:
            rule = "a whole number of epochs, 1..50"
            require_whole(patience, 50, at + "early_stopping_patience", rule)
        require(self.loss_on in get_args(LossOn), at + "loss_on", "assistant or all", self.loss_on)
        require(
            self.selection_interval is None or self.selection_interval > 0,
            at + "selection_interval",
            "above 0",
            self.selection_interval,
        )
        require(
            self.checkpoint_every_s > 0,
            at + "checkpoint_every_s",
            "above 0",
            self.checkpoint_every_s,
        )
        require_one_of(self.prefix_reuse, PrefixReuseChoice, at + "prefix_reuse")
        require_one_of(self.precision, Precision, at + "precision")
        require_one_of(self.compile, CompileChoice, at + "compile")
        require(
            isinstance(self.gradient_checkpointing, bool),
            at + "gradient_checkpointing",
            "true or false",
            self.gradient_checkpointing,
        )
