"""What a job is asked to do: frozen, self-validating, and plain JSON at the borders.

A spec is written once, when the job is accepted, and never changes; what is found out later
(resolved batch size, measured rho, energy) lives beside it in the job's row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, Self, TypeVar, get_args

from core.errors import InvalidInput, UnknownParameter, UnsupportedMethod
from core.moments import LONGEST, LONGEST_SAID, as_utc
from core.training_options import (
    MOST_AUTO_EPOCHS,
    WEIGHT_DECAY_MAX,
    TrainingOptions,
    auto_epochs,
    is_number,
    require,
    require_one_of,
    require_whole,
)

Method = Literal["full", "green", "last_k", "lora", "prefix", "green_lora"]
METHODS: tuple[str, ...] = get_args(Method)
#: methods that train tensors added to the model, and leave its own as they are
ADAPTER_METHODS: tuple[str, ...] = ("lora", "prefix", "green_lora")
#: methods that rank what they may train by importance
RANKING_METHODS: tuple[str, ...] = ("green", "green_lora")
#: methods that may leave the first blocks as they are, so that hidden states can be stored
STORING_METHODS: tuple[str, ...] = (*RANKING_METHODS, "last_k")
ImportanceName = Literal["importance", "taylor", "random", "magnitude", "fisher"]
Currency = Literal["flops", "seconds", "joules"]
TargetModules = Literal["default", "all-linear"]
Metric = Literal["rouge1", "rouge2", "rougeL", "exact_match", "f1", "accuracy"]
METRICS: tuple[str, ...] = get_args(Metric)
DecodingName = Literal["greedy", "beam"]
Timing = Literal["now", "green"]
OnBudget = Literal["pause", "stop_and_save", "fail"]

# Backward costs at most twice the forward, so no selection can go below a third of full
# fine-tuning while every forward pass is paid in full (GreenTrainer, section 3).
RHO_FLOOR = 1 / 3
SEED_MAX = 2**31 - 1
MAX_HOLD_S = LONGEST.total_seconds()
#: where a job leaves it open; the learning-rate rule was measured at this batch size
DEFAULT_BATCH_SIZE = 4
#: of a JSONL line per token that is trained on, where nothing was tokenised yet
BYTES_PER_TOKEN = 4.0
_T = TypeVar("_T")
_MOMENTS = ("earliest_start", "deadline")
_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What a method is told beyond rho. Ranks, scales and lengths are the GreenTrainer paper's
    baselines by default; its adapters' dropout of .1 is not: it takes a good part of a step on a
    CPU, and made no difference to what was learnt (docs/learning.md).
    """

    #: last_k: blocks to train, counted from the loss; None: as many as rho pays for
    k: int | None = None
    #: lora, green_lora: rank and scale of the adapters, and the dropout before them
    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    #: lora: the projections that PEFT's table names for the model (queries and values, most often),
    #: or every linear one; green_lora chooses among all of these itself
    target_modules: TargetModules = "default"
    #: prefix: virtual tokens in front of every layer's keys and values
    n_virtual_tokens: int = 20
    #: lora, green_lora: deliver a plain model with the adapters added in, not the adapters alone
    merge: bool = False

    def __post_init__(self) -> None:
        at = "green.options."
        for name, most in (("k", 1000), ("r", 1024), ("n_virtual_tokens", 1024)):
            value = getattr(self, name)
            if value is not None or name != "k":
                require_whole(value, most, at + name)
        is_scale = is_number(self.alpha) and 0 < self.alpha < math.inf
        require(is_scale, at + "alpha", "a number above 0", self.alpha)
        is_share = is_number(self.dropout) and 0 <= self.dropout < 1
        require(is_share, at + "dropout", "in [0, 1)", self.dropout)
        known = " or ".join(get_args(TargetModules))
        is_known = self.target_modules in get_args(TargetModules)
        require(is_known, at + "target_modules", known, self.target_modules)
        require(isinstance(self.merge, bool), at + "merge", "true or false", self.merge)


def rho_unasked(zone: str | None) -> float | Literal["auto"]:
    """``rho`` where nobody says: set by the grid of ``zone``. None: there is none to follow, and at
    0.7 the paper's summaries score as full fine-tuning's do (arXiv 2309.13192).
    """
    return 0.7 if zone is None else "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class GreenOptions:
    """The share of full fine-tuning's cost to spend, and the grid it is spent on."""

    method: Method = "green"
    options: MethodOptions = field(default_factory=MethodOptions)
    #: what green and green_lora rank tensors by; all but the first are there for comparison
    importance: ImportanceName = "importance"
    #: share of full fine-tuning's FLOPs (or time, or energy), (0, 1]; "auto": set from the grid's
    #: intensity; "efficient": wherever a FLOP (second, joule) is predicted to lower the loss most,
    #: measured at each selection
    rho: float | Literal["auto", "efficient"] = "auto"
    #: what rho is a share of; seconds and joules are measured on the machine before training
    currency: Currency = "flops"
    #: grid zone such as "FR" or "US-CAL-CISO"; None: world average, reported as such
    zone: str | None = None
    #: start at once, or wait for (and pause between) the zone's greener hours
    schedule: Timing = "now"
    #: aware UTC
    earliest_start: datetime | None = None
    deadline: datetime | None = None
    #: so long after submission (or ``earliest_start``) the job is not held back any more; at most
    #: `MAX_HOLD_S`
    max_hold_s: float | None = None
    #: of the whole job, all attempts, with the building's share (PUE)
    energy_budget_wh: float | None = None
    carbon_budget_g: float | None = None
    #: once a budget is spent: wait for the caller, keep the model as it is, or fail
    on_budget: OnBudget = "pause"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnsupportedMethod(
                f"green.method must be one of {', '.join(METHODS)}; got {self.method!r}.",
                param="green.method",
            )
        require_one_of(self.importance, ImportanceName, "green.importance")
        if self.options.merge and self.method == "prefix":
            raise InvalidInput(
                "A prefix is no change of weights and cannot be merged into them; leave "
                "green.options.merge out.",
                param="green.options.merge",
            )
        if self.rho == "efficient":
            self._check_efficient()
        elif self.rho != "auto":
            require(
                is_number(self.rho) and 0 < float(self.rho) <= 1,
                "green.rho",
                'a number above 0 and at most 1, "auto" or "efficient"',
                self.rho,
            )
        for name, known in (("schedule", Timing), ("on_budget", OnBudget), ("currency", Currency)):
            require_one_of(getattr(self, name), known, f"green.{name}")
        for name in ("energy_budget_wh", "carbon_budget_g"):
            value = getattr(self, name)
            ok = value is None or (is_number(value) and 0 < value < math.inf)
            require(ok, f"green.{name}", "a number above 0", value)
        hold_s = self.max_hold_s
        require(
            hold_s is None or (is_number(hold_s) and 0 < hold_s <= MAX_HOLD_S),
            "green.max_hold_s",
            f"a number of seconds above 0 and at most {MAX_HOLD_S:.0f} ({LONGEST_SAID})",
            hold_s,
        )
        self._check_moments()
        if self.currency != "flops":
            self._check_currency()

    def _check_efficient(self) -> None:
        if self.method not in RANKING_METHODS:
            raise InvalidInput(
                'green.rho "efficient" weighs what is worth training; green.method '
                f'{self.method} does not: ask for "green" or "green_lora", or give a number.',
                param="green.rho",
            )
        if self.importance != "importance":
            raise InvalidInput(
                'green.rho "efficient" needs predicted loss drops, which green.importance '
                f"{self.importance} does not give; leave it out.",
                param="green.importance",
            )

    def _check_currency(self) -> None:
        if not self.follows_rho or self.method == "green_lora":
            raise InvalidInput(
                f"green.currency {self.currency} says what rho is a share of; with green.method "
                f'{self.method} that is FLOPs: leave it out, or ask for "green", or for "last_k" '
                "without k.",
                param="green.currency",
            )
        if self.is_planned:
            raise InvalidInput(
                f"A carbon plan counts rho in FLOPs: leave out green.currency {self.currency}, or "
                "green.schedule, green.earliest_start, green.deadline and budgets.",
                param="green.currency",
            )

    def _check_moments(self) -> None:
        for name in _MOMENTS:
            moment = getattr(self, name)
            if moment is not None:
                aware = isinstance(moment, datetime) and moment.tzinfo is not None
                require(aware, f"green.{name}", "a moment with its time zone", moment)
                object.__setattr__(self, name, as_utc(moment, param=f"green.{name}"))
        if self.earliest_start is not None and self.deadline is not None:
            require(
                self.deadline > self.earliest_start,
                "green.deadline",
                f"after green.earliest_start, {self.earliest_start.isoformat()}",
                self.deadline.isoformat(),
            )

    @property
    def follows_rho(self) -> bool:
        """Whether ``rho`` decides what is trained; the cost of the others is what it is."""
        is_open = self.method == "last_k" and self.options.k is None
        return is_open or self.method in RANKING_METHODS

    @property
    def fixed_rho(self) -> float | None:
        """The most to spend, as asked for; None: set from the grid's intensity."""
        if self.rho == "auto":
            return None
        return 1.0 if self.rho == "efficient" else float(self.rho)

    @property
    def has_budget(self) -> bool:
        return self.energy_budget_wh is not None or self.carbon_budget_g is not None

    @property
    def is_planned(self) -> bool:
        """Whether anything but "start now, at this rho" was asked for."""
        bounds = (self.earliest_start, self.deadline)
        return self.schedule == "green" or self.has_budget or bounds != (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Held-out questions that the model answers before and after training."""

    #: what the answers are scored by; empty: the task's own metrics, or rougeL
    metrics: tuple[str, ...] = ()
    #: of the validation file, from its beginning
    max_examples: int = 100
    #: greedy, or beam: the GreenTrainer paper's beam search with its repetition penalty
    decoding: DecodingName = "greedy"
    #: of an answer; None: as the task says, or 64
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        at = "green.eval."
        listed = isinstance(self.metrics, (list, tuple))
        require(listed, at + "metrics", "a list of metrics", self.metrics)
        for name in self.metrics:
            require(name in METRICS, at + "metrics", f"of {', '.join(METRICS)}", name)
        # JSON has lists only; each metric counts once
        object.__setattr__(self, "metrics", tuple(dict.fromkeys(self.metrics)))
        for name, most in (("max_examples", 100_000), ("max_new_tokens", 4096)):
            value = getattr(self, name)
            if value is not None or name != "max_new_tokens":
                require_whole(value, most, at + name)
        require_one_of(self.decoding, DecodingName, at + "decoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The files are tables whose rows a task's template turns into prompts and answers."""

    #: of `core.data.tasks.TASKS`
    name: str
    #: field of the template -> column of the files, where it differs from the task's own
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = [self.name, *self.columns, *self.columns.values()]
        require(
            all(isinstance(text, str) and text for text in texts), "task", "made of names", texts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One fine-tuning job.

    ``training_file`` and ``validation_file`` are file ids (service) or paths (``greentune run``).
    """

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = 0
    training: TrainingOptions = field(default_factory=TrainingOptions)
    green: GreenOptions = field(default_factory=GreenOptions)
    #: None: the files are chat or prompt/completion JSONL
    task: TaskOptions | None = None
    #: None: nothing is asked; needs a validation file
    eval: EvalOptions | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed <= SEED_MAX, "seed", f"0..{SEED_MAX}", self.seed)
        require(
            self.suffix is None or _SUFFIX.fullmatch(self.suffix) is not None,
            "suffix",
            "1 to 64 letters, digits, '.', '_' or '-'",
            self.suffix,
        )
        if self.training.gradient_checkpointing and self.green.method == "prefix":
            raise InvalidInput(
                "A prefix is keys and values that blocks add theirs to, so they cannot run twice; "
                "leave green.training.gradient_checkpointing out, or choose another method.",
                param="green.training.gradient_checkpointing",
            )
        if self.training.early_stopping_patience and self.validation_file is None:
            raise InvalidInput(
                "Early stopping goes by the loss on a validation file; give validation_file, or "
                "leave green.training.early_stopping_patience out.",
                param="green.training.early_stopping_patience",
            )
        if self.eval is not None and self.validation_file is None:
            raise InvalidInput(
                "green.eval asks about the examples of a validation file; give validation_file.",
                param="green.eval",
            )

    def passes_per_selection(self, n_examples: int | None) -> float:
        """Most passes over the data between two selections whose hidden states may be stored, so
        that the forward pass below what is trained is paid once; 1: each is paid in full.

        A job that follows a plan may be given another share at each epoch, and counts on none.

        Args:
            n_examples: of the training file; None: not known.
        """
        training = self.training
        if training.prefix_reuse == "off" or self.green.is_planned:
            return 1.0
        auto = MOST_AUTO_EPOCHS if n_examples is None else auto_epochs(n_examples)
        epochs = float(training.n_epochs or auto)
        return max(1.0, min(epochs, training.selection_interval or epochs))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only; the inverse of `from_dict`."""
        values = asdict(self)
        for name in _MOMENTS:
            moment = values["green"][name]
            values["green"][name] = None if moment is None else moment.isoformat()
        if self.eval is not None:
            values["eval"]["metrics"] = list(self.eval.metrics)
        return values

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        values = dict(raw)
        training = _capped(values.get("training") or {}, "weight_decay", WEIGHT_DECAY_MAX)
        values["training"] = _build(TrainingOptions, training)
        green = _capped(values.get("green") or {}, "max_hold_s", MAX_HOLD_S)
        for name in _MOMENTS:
            if isinstance(green.get(name), str):
                green[name] = datetime.fromisoformat(green[name])
        if isinstance(green.get("options"), dict):
            green["options"] = _build(MethodOptions, green["options"])
        values["green"] = _build(GreenOptions, green)
        if values.get("task") is not None:
            values["task"] = _build(TaskOptions, values["task"])
        if values.get("eval") is not None:
            values["eval"] = _build(EvalOptions, values["eval"])
        return _build(cls, values)


def _build(kind: type[_T], values: dict[str, Any]) -> _T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise UnknownParameter(
            f"Unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}.", param=unknown[0]
        )
    return kind(**values)


def _capped(values: Mapping[str, Any], name: str, most: float) -> dict[str, Any]:
    """With ``name`` at most ``most``: a job stored before there was that bound is still read."""
    value = values.get(name) or 0.0
    return {**values, name: most} if is_number(value) and value > most else dict(values)
