"""A model under experiment: single training steps, held-out loss, and the way back.

For benchmarks that look into a run (`predictions`, `reselection`, `levers`). Whole runs go through
the product's own loop (`budget_run`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from benchmarks.contenders import Contender
from core.training.evaluate import evaluate
from core.training.importance import measure_crossed_importance
from core.training.methods import Choice, SelectionPoint, method_named
from core.training.numerics import choose_numerics
from core.training.optimiser import SelectiveAdamW
from core.training.step import Batch, LossStep, StepInputs, first_samples, needs_mask
from core.training_options import Precision
from worker.prepare import Prepared

MAX_NORM: Final = 1.0


class Lab:
    """
    Args:
        held_out: batches to judge by, evenly over the validation data; None: all.
        precision: float32 unless a benchmark says otherwise, so that small differences count.
    """

    def __init__(
        self, prepared: Prepared, *, held_out: int | None = None, precision: Precision = "fp32"
    ) -> None:
        self.prepared = prepared
        self._feed = prepared.feed()
        numerics = choose_numerics(None, precision)
        model = prepared.loaded.model.to(numerics.device)
        self._step = LossStep(
            model, keeps_mask=needs_mask(model), autocast_dtype=numerics.autocast_dtype
        )
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        batches = prepared.validation_batches()
        stride = max(1, len(batches) // (held_out or len(batches)))
        self._held_out = [self._step.inputs(batch) for batch in batches[::stride][:held_out]]

    @property
    def epoch_steps(self) -> int:
        return self._feed.batches_per_epoch

    @property
    def elements(self) -> dict[str, int]:
        """Of every tensor."""
        return {name: parameter.numel() for name, parameter in self.parameters.items()}

    def rule(self, contender: Contender) -> float:
        """Its peak learning rate on this model, samples seen once."""
        return contender.rule * self.prepared.loaded.weight_scale

    def optimiser(self) -> SelectiveAdamW:
        """A fresh one; nothing is selected."""
        weight_decay = self.prepared.training.weight_decay
        return SelectiveAdamW(self.parameters, weight_decay=weight_decay)

    def batch(self, step: int) -> Batch:
        """Of step ``step`` (from 0)."""
        return self._feed.batch(*divmod(step, self._feed.batches_per_epoch))

    def inputs(self, batch: Batch) -> StepInputs:
        return self._step.inputs(batch)

    def train(self, optimiser: SelectiveAdamW, step: int, rate: float) -> None:
        """One step on the batch of step ``step``."""
        self.learn(optimiser, self.inputs(self.batch(step)), rate)

    def learn(self, optimiser: SelectiveAdamW, inputs: StepInputs, rate: float) -> None:
        """One step."""
        torch.autograd.backward(self._step(inputs).loss_sum / inputs.n_labels)
        optimiser.step(learning_rate=rate, max_grad_norm=MAX_NORM)

    @torch.no_grad()
    def loss_of(self, batch: Batch) -> float:
        """Nats a label token."""
        inputs = self.inputs(batch)
        return float(self._step(inputs).loss_sum) / inputs.n_labels

    def hardest(self, batch: Batch, n_samples: int) -> Batch:
        """The samples with the highest loss a label token, in their order."""
        n_all = len(batch["labels"])
        losses = [
            self.loss_of({n: t[at : at + 1] for n, t in batch.items()}) for at in range(n_all)
        ]
        rows = sorted(sorted(range(n_all), key=lambda at: losses[at])[-n_samples:])
        return {name: tensor[rows] for name, tensor in batch.items()}

    def loss(self) -> float:
        """Nats a label token, of the held-out batches."""
        return evaluate(self._step, self._held_out).loss

    def probes(self, step: int, n_steps: int) -> list[StepInputs]:
        """A pair out of the ``n_steps`` steps after ``step``, two samples of each, as a job of so
        few steps takes them.
        """
        drawn = [self.batch(step + n_steps * part // 4) for part in (1, 3)]
        return [self.inputs(first_samples(batch, 0.5)) for batch in drawn]

    def importance(self, optimiser: SelectiveAdamW, step: int, n_steps: int) -> dict[str, float]:
        """At rate 1, from `probes`."""
        return self.importance_of(optimiser, self.probes(step, n_steps))

    def importance_of(
        self, optimiser: SelectiveAdamW, probes: Sequence[StepInputs]
    ) -> dict[str, float]:
        """At rate 1, from pairs of probes."""
        return measure_crossed_importance(
            self._step,
            probes,
            {name: self.parameters[name] for name in self.prepared.profile.trainable},
            optimiser,
            learning_rate=1.0,
        )

    def choose(self, contender: Contender, importance: Mapping[str, float]) -> Choice:
        """What a job would train, from expected loss drops. Raises RhoInfeasible."""
        point = SelectionPoint(
            profile=self.prepared.profile,
            rho=contender.rho if isinstance(contender.rho, float) else 1.0,
            measure_importance=lambda: importance,
            elements=self.elements,
        )
        return method_named(contender.method).choose(point)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies, for `put`."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def resumed(self, names: Sequence[str], moments: Mapping[str, torch.Tensor]) -> SelectiveAdamW:
        """An optimiser that trains ``names`` and goes on from ``moments``."""
        optimiser = self.optimiser()
        optimiser.select(names)
        optimiser.load_state_tensors(moments)
        return optimiser
