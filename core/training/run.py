"""The phases of a run, and the state between them. `core.training.loop.fit` orders them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from core.errors import NanLoss
from core.training.budget import budget_of, in_flops, rate_share, require_feasible
from core.training.checkpoint import (
    Checkpoint,
    TrainState,
    newest_checkpoint,
    prune_checkpoints,
    random_state,
    require_continuable,
    restore_random_state,
    save_checkpoint,
)
from core.training.compiled import CompiledBlocks
from core.training.early_stopping import EarlyStopping
from core.training.evaluate import evaluate
from core.training.frozen_weights import FrozenWeights
from core.training.hooks import FitResult, Hook, Outcome
from core.training.horizon import choose
from core.training.job import FitJob
from core.training.measuring import measure_rates
from core.training.micro_batches import MicroBatches, StepSums
from core.training.optimiser import SelectiveAdamW
from core.training.prefix import loss_step
from core.training.probing import Probes, draw_probes, measure
from core.training.quality import NO_CURVE
from core.training.ranking import is_drop
from core.training.refill import note_stored, refill
from core.training.step import needs_mask
from core.training.summary import (
    best_record,
    checkpoint_record,
    fit_result,
    selection_record,
    start_record,
    step_record,
    validation_record,
)


class Run:
    def __init__(
        self, job: FitJob, checkpoints: Path | None, keep: int, hooks: Sequence[Hook]
    ) -> None:
        self._job = job
        self._folder = checkpoints
        self._keep = keep
        self._hooks = hooks
        self._model = job.model.train()
        # tied weights appear once, under their first name
        self._parameters: dict[str, torch.nn.Parameter] = {
            name: p for name, p in self._model.named_parameters() if p.requires_grad
        }
        self._step = loss_step(
            self._model,
            keeps_mask=needs_mask(self._model),
            autocast_dtype=job.numerics.autocast_dtype,
            reuse=job.reuse,
            forward=job.prices.forward,
        )
        self.frozen = FrozenWeights(self._model, job.numerics.autocast_dtype, folder=checkpoints)
        self._step.recomputes = job.training.gradient_checkpointing
        self._micro_batches = MicroBatches(job, self._step)
        self._compiled = CompiledBlocks(job, self._step, self._parameters)
        self._optimiser = SelectiveAdamW(self._parameters, weight_decay=job.training.weight_decay)
        self._best = EarlyStopping(self._parameters, job.patience)
        self._price = job.prices.full
        self._budget = budget_of(job, None)
        self._state = TrainState(fingerprint=job.fingerprint, precision=job.numerics.name)
        self._checkpointed_at: int | None = None
        self._checkpointed_s = time.monotonic()
        self._pending: StepSums | None = None

    # ---- where we are

    @property
    def is_done(self) -> bool:
        return self._state.is_over or self._state.step >= self._job.total_steps

    @property
    def epoch(self) -> float:
        return self._state.step / self._job.steps_per_epoch

    @property
    def selection_is_due(self) -> bool:
        state = self._state
        if state.selected_at is None:
            return True
        is_over = state.select_at is None or state.step >= state.select_at
        return self._job.method.reselects and is_over and state.selected_at < state.step

    @property
    def compiling_is_due(self) -> bool:
        return self._compiled.is_due(self._state)

    @property
    def validation_is_due(self) -> bool:
        return bool(self._job.validation) and self._is_milestone

    @property
    def asking_is_due(self) -> bool:
        return (
            self._job.ask is not None and self.is_done and self._state.asked_at != self._state.step
        )

    @property
    def checkpoint_is_due(self) -> bool:
        if self._folder is None:
            return False
        waited_s = time.monotonic() - self._checkpointed_s
        return self._is_milestone or waited_s >= self._job.training.checkpoint_every_s

    @property
    def _is_milestone(self) -> bool:
        return self.is_done or self._state.step % self._job.steps_per_epoch == 0

    @property
    def _learning_rate(self) -> float:
        """Of the next step."""
        return self._job.learning_rate(self._state.rate_share, self._state.step)

    # ---- phases

    def start(self) -> None:
        """Seed, or take up the newest checkpoint; then tell, and validate the base model."""
        torch.manual_seed(self._job.seed)
        # before the model moves: a card may have no room for all of it in float32
        self.frozen.lower_all_but(self._job.always_trained)
        self._step.move(self._job.numerics.device)
        if self._folder is not None and (checkpoint := newest_checkpoint(self._folder)):
            self._restore(checkpoint)
        measuring_s = self._count()
        n_parameters = sum(parameter.numel() for parameter in self._parameters.values())
        record = start_record(self._job, self._state, self._budget, n_parameters, measuring_s)
        self._tell("on_start", record)
        require_feasible(self._job, self._budget, self._state.step)
        if self._job.validation and self._state.validated_at is None:
            self.validate()
        if self._job.ask is not None and self._state.first_scores is None:
            self.ask()

    def select(self) -> None:
        """Ask the method which tensors to train from here on."""
        started_s = time.perf_counter()
        spent_before = self._state.selection_flops
        probes = draw_probes(self._job, self._step, self._state.step)
        found = choose(
            self._budget.course,
            self._job.method,
            self._budget.profile,
            partial(self._measure_importance, probes),
            step=self._state.step,
            rho=self._job.rho(self._state.step),
            measuring_steps=probes.full_steps,
            measuring_share=self._budget.measuring_share,
            elements=self._job.ranked_elements,
            rate=self._job.peak_learning_rates,
            wants_curve=self._job.wants_curve,
        )
        choice, point = found.choice, in_flops(self._job, found, self._state.step)
        measured_rate = self._learning_rate
        self._train_only(choice.names)
        if any(found.point.spared.flops):
            # the price counts on rows of this interval alone, as does a resumed run
            self._step.forget()
        self._state.rho = choice.rho
        self._state.rate_rho = rate_share(self._job, self._budget, choice)
        self._state.selected_at = self._state.step
        self._state.select_at = self._state.step + found.n_steps
        has_drops = is_drop(self._job.importance)
        importance, curve = choice.importance, NO_CURVE
        if has_drops and importance is not None:
            curve = self._job.method.quality(point)
            # measured at the rate of before, spent at that of what is trained now
            importance *= self._learning_rate / measured_rate
        duration_s = time.perf_counter() - started_s
        self._state.train_duration_s += duration_s
        self._tell(
            "on_selection",
            selection_record(
                self._job,
                self._state,
                found,
                point,
                importance=importance,
                quality_curve=curve,
                n_trained_parameters=sum(self._parameters[n].numel() for n in choice.names),
                flops=self._state.selection_flops - spent_before,
                duration_s=duration_s,
            ),
        )

    def compile(self) -> None:
        """Compile the blocks for what is trained from here on, or decide not to."""
        record = self._compiled.renew(self._state)
        self._state.selection_flops += record.flops
        self._state.flops += record.flops
        self._state.train_duration_s += record.duration_s
        self._tell("on_compilation", record)

    def forward_backward(self) -> None:
        """Gradients of the mean loss over all label tokens of the step's micro-batches."""
        self._step.at_step = self._state.step
        with self._compiled.in_use():
            self._pending = self._micro_batches.gradients(self._state.step)

    def update(self) -> None:
        """Clip, step, account, tell. Refuses to move on numbers that are not finite."""
        assert self._pending is not None, "forward_backward comes first"
        done, state, options = self._pending, self._state, self._job.training
        if not math.isfinite(done.loss):
            raise self._not_finite("loss", done.loss)
        learning_rate = self._learning_rate
        norm = self._optimiser.step(
            learning_rate=learning_rate, max_grad_norm=options.max_grad_norm
        )
        if not math.isfinite(norm):
            raise self._not_finite("gradient's norm", norm)
        state.step += 1
        state.clip = min(1.0, options.max_grad_norm / norm) if norm else 1.0
        state.train_loss, state.train_token_accuracy = done.loss, done.token_accuracy
        state.tokens += done.n_tokens
        state.flops += sum(map(self._price, done.shapes)) - done.saved_flops
        state.full_flops += sum(map(self._job.prices.full, done.shapes))
        duration_s = time.perf_counter() - done.started_s
        state.train_duration_s += duration_s
        self._pending = None
        record = step_record(
            self._job,
            state,
            loss=done.loss,
            token_accuracy=done.token_accuracy,
            learning_rate=learning_rate,
            grad_norm=norm,
            duration_s=duration_s,
        )
        self._tell("on_step", record)

    def validate(self) -> None:
        started_s = time.perf_counter()
        self._step.at_step = self._state.step
        batches = [self._step.inputs(batch) for batch in self._job.validation]
        found = evaluate(self._step, batches)
        flops = sum(self._job.prices.forward(i.shape) for i in batches) - found.saved_flops
        state = self._state
        state.evaluation_flops += flops
        state.validation_loss = found.loss
        state.validation_token_accuracy = found.token_accuracy
        state.validated_at = state.step
        if state.first_validation_loss is None:
            state.first_validation_loss = found.loss
        self._best.note(state, found)
        duration_s = time.perf_counter() - started_s
        record = validation_record(self._job, state, found, flops=flops, duration_s=duration_s)
        self._tell("on_validation", record)

    def keep_best(self) -> None:
        """With early stopping: give the model the weights of its best step back."""
        if self._best.put_back(self._state):
            self._tell("on_best_kept", best_record(self._job, self._state))

    def ask(self) -> None:
        """Have the model answer the held-out questions. Draws no random number; FLOPs are apart."""
        assert self._job.ask is not None, "there is something to ask"
        state = self._state
        with self._step.autocast():
            record = replace(self._job.ask(), step=state.step, epoch=self.epoch)
        state.evaluation_flops += record.flops
        state.scores = dict(record.scores)
        state.first_scores = state.first_scores or state.scores
        state.asked_at = state.step
        self._tell("on_evaluation", record)

    def checkpoint(self) -> None:
        """Save the state between two steps, tell, then delete what is too old."""
        if self._folder is None or self._checkpointed_at == self._state.step:
            return
        note_stored(self._step, self._state)
        weights = {name: self._parameters[name] for name in self._state.ever_trained}
        moments = self._optimiser.state_tensors() if self._state.names else {}
        folder = save_checkpoint(
            self._folder,
            Checkpoint(
                state=self._state,
                weights=weights,
                optimizer=moments,
                random=random_state(),
                best=self._best.tensors(self._state),
            ),
        )
        self._checkpointed_at = self._state.step
        self._checkpointed_s = time.monotonic()
        record = checkpoint_record(self._job, self._state, folder, is_milestone=self._is_milestone)
        self._tell("on_checkpoint", record)
        prune_checkpoints(self._folder, self._keep)

    def finish(self, outcome: Outcome) -> FitResult:
        """Give all flags back, tell, and sum up."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        result = fit_result(self._job, self._state, outcome, epoch=self.epoch)
        self._tell("on_end", result)
        return result

    # ---- parts of the phases

    def _count(self) -> float:
        """In the job's currency from here on; seconds that measuring its prices took, if it did."""
        state, meter, measuring_s = self._state, self._job.meter, 0.0
        if meter is None:
            state.rates = None
        elif state.rates is None or state.rates.currency != meter.currency:
            state.rates = measure_rates(self._job, self._step, self._parameters)
            state.selection_flops += state.rates.flops
            state.flops += state.rates.flops
            measuring_s = state.rates.duration_s
            state.train_duration_s += measuring_s
        self._budget = budget_of(self._job, state.rates)
        return measuring_s

    def _restore(self, checkpoint: Checkpoint) -> None:
        precision = self._job.numerics.name
        require_continuable(checkpoint.state, self._job.fingerprint, precision)
        self._state = replace(checkpoint.state, precision=precision)
        self.frozen.lower_all_but(self._state.ever_trained)
        with torch.no_grad():
            for name, weight in checkpoint.weights.items():
                self._parameters[name].copy_(weight)
        self._best.restore(self._state, checkpoint.best)
        if self._state.names:
            self._train_only(self._state.names)
            self._optimiser.load_state_tensors(checkpoint.optimizer)
            refill(self._job, self._step, self._state, is_done=self.is_done)
        restore_random_state(checkpoint.random)
        self._checkpointed_at = self._state.step

    def _train_only(self, names: tuple[str, ...]) -> None:
        self.frozen.lower_all_but({*self._state.ever_trained, *names})
        self._best.cover(names)
        self._optimiser.select(names)
        self._price = self._job.prices.of(names)
        self._state.names = self._optimiser.names
        ever = {*self._state.ever_trained, *names}
        self._state.ever_trained = tuple(name for name in self._parameters if name in ever)

    def _measure_importance(self, probes: Probes) -> dict[str, float]:
        self._state.selection_flops += probes.flops
        self._state.flops += probes.flops
        return measure(
            self._job,
            self._step,
            probes,
            self._parameters,
            self._optimiser,
            step=self._state.step,
            learning_rate=self._learning_rate,
            clip=self._state.clip,
        )

    def _not_finite(self, what: str, value: float) -> NanLoss:
        return NanLoss(
            f"The {what} became {value} at step {self._state.step + 1} of "
            f"{self._job.total_steps}; a lower learning rate usually helps.",
            param="hyperparameters.learning_rate_multiplier",
        )

    def _tell(self, phase: str, record: object) -> None:
        for hook in self._hooks:
            getattr(hook, phase)(record)
