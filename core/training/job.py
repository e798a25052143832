"""What a run is made from: a model, data by position, a method, prices and options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.spec import ImportanceName
from core.training.costs import FlopsProfile
from core.training.hooks import EvaluationRecord
from core.training.horizon import Course
from core.training.methods import Method
from core.training.numerics import Numerics
from core.training.prefix import PrefixReuse
from core.training.pricing import StepPrices
from core.training.rates import Meter
from core.training.schedule import peak_learning_rates, schedule_factor
from core.training.step import Batch
from core.training_options import TrainingOptions


class Feed(Protocol):
    """Training batches by position: a pure function, so that a run continues from any step."""

    @property
    def batches_per_epoch(self) -> int: ...

    def batch(self, epoch: int, index: int) -> Batch:
        """Collated micro-batch ``index`` (0 up to ``batches_per_epoch``) of ``epoch`` (from 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """All that a run is made from. ``training`` has every None of epochs resolved.

    Attributes:
        validation: collated batches; empty: no validation.
        rho: share of full fine-tuning's cost to spend, asked at each selection with the number of
            steps done.
        meter: of the currency that rho, selections and "efficient" count in; None: FLOPs.
        prices, profile: from `price_steps`, and the mean batch's.
        probe_prices: of steps whose blocks run again: importance is measured in such, for the
            memory; None: in steps like the others.
        fingerprint: of the base model; a checkpoint of another is refused.
        importance: what the method ranks tensors by.
        weight_scale: of the base model, for the rule of rates.
        wants_curve: as `core.training.methods.SelectionPoint`'s: the share may become another.
        selections: further steps at which to select, beside the interval's.
        reuse: what may be stored of the forward pass below the trained tensors; None: nothing is.
        memory_estimate_bytes: what the device must hold; None: was not estimated.
        ask: has ``model`` answer held-out questions, before the first step and after the last.
    """

    model: Any
    feed: Feed
    validation: Sequence[Batch]
    method: Method
    rho: Callable[[int], float]
    prices: StepPrices
    profile: FlopsProfile
    training: TrainingOptions
    seed: int
    numerics: Numerics
    fingerprint: str
    weight_scale: float = 1.0
    importance: ImportanceName = "importance"
    wants_curve: bool = False
    reuse: PrefixReuse | None = None
    probe_prices: StepPrices | None = None
    memory_estimate_bytes: int | None = None
    ask: Callable[[], EvaluationRecord] | None = None
    selections: frozenset[int] = frozenset()
    meter: Meter | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.feed.batches_per_epoch // self.training.gradient_accumulation)

    @property
    def total_steps(self) -> int:
        assert self.training.n_epochs is not None, "epochs are resolved before fit"
        steps = self.training.n_epochs * self.steps_per_epoch
        return min(steps, self.training.max_steps or steps)

    @property
    def passes(self) -> float:
        """Over the data, a fraction where the run ends within one."""
        return self.total_steps / self.steps_per_epoch

    @property
    def patience(self) -> int | None:
        """Early stopping's, in steps."""
        epochs = self.training.early_stopping_patience
        return None if epochs is None else epochs * self.steps_per_epoch

    @property
    def course(self) -> Course:
        return Course(
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            reselects=self.method.reselects,
            interval=self.training.selection_interval,
            selections=self.selections,
            spared=None if self.reuse is None else self.reuse.spared,
        )

    @property
    def always_trained(self) -> tuple[str, ...]:
        """Names of what is known to be trained before anything is selected."""
        return self.profile.trainable if self.method.name == "full" else ()

    @property
    def elements(self) -> dict[str, int]:
        """Of every tensor of the model."""
        return {name: parameter.numel() for name, parameter in self.model.named_parameters()}

    @property
    def ranked_elements(self) -> dict[str, int]:
        """``elements`` where these count in the ranking; empty where importance alone does."""
        return self.elements if self.importance == "importance" else {}

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches of step ``step`` (from 0); the last step of an epoch has fewer."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.training.gradient_accumulation
        last = min((within + 1) * size, self.feed.batches_per_epoch)
        return (self.feed.batch(epoch, index) for index in range(within * size, last))

    def learning_rate(self, rho: float, step: int) -> float:
        """Of step ``step`` (from 0) at the share ``rho`` of full fine-tuning's FLOPs."""
        options = self.training
        factor = schedule_factor(options.schedule, step, self.total_steps, options.warmup_ratio)
        return self.peak_learning_rate(rho) * factor

    def peak_learning_rate(self, rho: float) -> float:
        """At the share ``rho`` of full fine-tuning's FLOPs."""
        return float(self.peak_learning_rates(np.array([rho]))[0])

    def peak_learning_rates(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """At shares of full fine-tuning's FLOPs."""
        options = self.training
        return peak_learning_rates(
            shares,
            method=self.method.rate_rule,
            passes=self.passes,
            weight_scale=self.weight_scale,
            learning_rate=options.learning_rate,
            multiplier=options.learning_rate_multiplier,
        )
