"""From a spec to everything that training needs; shared by `greentune run` and the service's child.

::

    prepared = prepare(spec, training_path=..., validation_path=..., models=..., cache=...)
    result = train(prepared, rho=lambda step: 0.5, checkpoints=folder, hooks=[...], control=...)
    export(prepared, folder, result)

All refusals come from `prepare`, before any energy is spent on training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.batches import BatchPlan, collate
from core.data.tokens import TokenDataset
from core.data.validation import DataLimits, ValidationReport
from core.errors import ModelNotFound, RhoInfeasible
from core.spec import DEFAULT_BATCH_SIZE, JobSpec
from core.training.checkpoint import Checkpoint, newest_checkpoint
from core.training.costs import FlopsProfile
from core.training.export import EmissionsNote, ModelCard, export_model
from core.training.freed_memory import keep_freed_memory
from core.training.hooks import Control, EvaluationRecord, FitResult, Hook
from core.training.horizon import Course, lowest_rho
from core.training.job import FitJob
from core.training.loop import fit
from core.training.methods import Method, method_named
from core.training.models import LoadedModel, load_model
from core.training.numerics import choose_numerics
from core.training.prefix import PrefixReuse, spared_by_reuse
from core.training.pricing import Shape, StepPrices
from core.training.schedule import peak_learning_rate
from core.training.step import Batch, LossStep
from core.training_options import TrainingOptions, auto_epochs
from worker.adapted import adapted
from worker.corpus import Corpus, corpus_of
from worker.currency import Floor, opened_meter
from worker.evaluation import Exam, card_rows, set_exam
from worker.reuse import prefix_reuse
from worker.room import with_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that may be trained. ``training`` has epochs and batch size resolved."""

    spec: JobSpec
    loaded: LoadedModel
    training: TrainingOptions
    train_data: TokenDataset
    validation_data: TokenDataset | None
    training_report: ValidationReport
    validation_report: ValidationReport | None
    prices: StepPrices
    #: about the data, a sentence each, for the caller to know
    remarks: tuple[str, ...]
    #: costs of the mean batch of the training data
    profile: FlopsProfile
    #: of the first epoch's batch that costs most
    largest: Shape
    #: held-out questions before and after training, if asked for
    exam: Exam | None = None
    #: what is stored of the forward pass below the trained tensors; None: nothing
    reuse: PrefixReuse | None = None

    @property
    def rho_min(self) -> float:
        """Lowest share of full fine-tuning's FLOPs that the job's method can spend on this model
        and data, 0..1; of methods that do not follow rho, the share that they will spend. In
        another currency the lowest share is known once its prices are measured, in `train`.
        """
        course = Course(
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            reselects=self.method.reselects,
            interval=self.training.selection_interval,
            # a plan may ask for another share at any selection
            spared=None if self.reuse is None or self.spec.green.is_planned else self.reuse.spared,
        )
        return lowest_rho(course, self.method, self.profile)

    @property
    def method(self) -> Method:
        green = self.spec.green
        return method_named(green.method, green.options, is_efficient=green.rho == "efficient")

    def ask(self) -> EvaluationRecord:
        """Have the model, as it is now, sit the exam."""
        assert self.exam is not None, "there is an exam"
        return self.exam.sit(self.loaded.model, self.loaded.tokenizer, self.prices.forward)

    @property
    def pad_id(self) -> int:
        tokenizer = self.loaded.tokenizer
        found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        return next((i for i in found if isinstance(i, int)), 0)

    @property
    def steps_per_epoch(self) -> int:
        per_step = self._batch_size * self.training.gradient_accumulation
        return -(-len(self.train_data) // per_step)

    @property
    def total_steps(self) -> int:
        assert self.training.n_epochs is not None
        steps = self.training.n_epochs * self.steps_per_epoch
        return min(steps, self.training.max_steps or steps)

    @property
    def passes(self) -> float:
        """Over the training data, a fraction where the run ends within one."""
        return self.total_steps / self.steps_per_epoch

    def peak_learning_rate(self, rho: float) -> float:
        """At the share ``rho`` of full fine-tuning's FLOPs."""
        return peak_learning_rate(
            rho,
            method=self.method.rate_rule,
            passes=self.passes,
            weight_scale=self.loaded.weight_scale,
            learning_rate=self.training.learning_rate,
            multiplier=self.training.learning_rate_multiplier,
        )

    @property
    def _batch_size(self) -> int:
        assert self.training.batch_size is not None
        return self.training.batch_size

    def feed(self) -> PlannedFeed:
        plan = BatchPlan(self.train_data.lengths, self._batch_size, self.spec.seed)
        return PlannedFeed(self.train_data, plan, self.pad_id)

    def validation_batches(self) -> list[Batch]:
        """Every validation sample once, grouped by length."""
        data = self.validation_data
        if data is None:
            return []
        order = sorted(range(len(data)), key=lambda at: -int(data.lengths[at]))
        size = self._batch_size
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        return [collate([data[at] for at in part], self.pad_id) for part in parts]


class PlannedFeed:
    """Training batches by position, from a plan that is a pure function of seed and epoch."""

    def __init__(self, data: TokenDataset, plan: BatchPlan, pad_id: int) -> None:
        self._data = data
        self._plan = plan
        self._pad_id = pad_id
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def batches_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    def batch(self, epoch: int, index: int) -> Batch:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan.epoch(epoch))
        return collate([self._data[at] for at in self._epoch[1][index]], self._pad_id)


def prepare(
    spec: JobSpec,
    *,
    training_path: Path,
    validation_path: Path | None = None,
    models: Mapping[str, str | None],
    cache: Path,
    checkpoints: Path | None = None,
    limits: DataLimits | None = None,
    is_offline: bool = False,
) -> Prepared:
    """Validate and tokenise the data, load and price the model, check rho.

    Args:
        models: the ids that may be named -> local folder, or None where the id itself is loaded.
        cache: where the packaged model is unpacked.
        checkpoints: of this job; a checkpoint there pins the base model's weights.

    Raises:
        ModelNotFound: the spec names a model that is not in ``models``.
        DataInvalid: a file's first problem, with its line.
        ModelUnavailable, ModelUnsupported: it cannot be loaded, priced or tuned by this method.
        RhoInfeasible: a rho below what this model and data allow; carries the minimum.
    """
    if spec.model not in models:
        raise ModelNotFound(
            f"The model {spec.model!r} is not offered here; there are: {', '.join(models)}.",
            param="model",
        )
    corpus = corpus_of(spec, training_path, validation_path, limits or DataLimits())
    reports = corpus.validate()
    earlier = newest_checkpoint(checkpoints) if checkpoints is not None else None
    loaded = load_model(
        spec.model,
        folder=models[spec.model],
        cache=cache,
        is_offline=is_offline,
        fingerprint=earlier.state.fingerprint if earlier else None,
    )
    training = _resolved(spec, reports[0].n_examples, earlier)
    loaded, prices = adapted(spec, loaded)
    train_data = corpus.tokens(training_path, loaded, training)
    validation_data = corpus.tokens(validation_path, loaded, training) if validation_path else None
    shapes = _shapes(train_data, loaded, training, spec.seed)
    prepared = Prepared(
        spec=spec,
        loaded=loaded,
        training=training,
        train_data=train_data,
        validation_data=validation_data,
        training_report=reports[0],
        validation_report=reports[1],
        remarks=corpus.remarks(reports, (train_data, validation_data)),
        prices=prices,
        profile=prices.mean_profile(shapes),
        largest=max(shapes, key=prices.forward),
        exam=_exam(spec, corpus, loaded),
    )
    prepared = dataclasses.replace(prepared, reuse=_reuse(prepared, shapes, checkpoints))
    _require_feasible(prepared)
    return prepared


def train(
    prepared: Prepared,
    *,
    rho: Callable[[int], float],
    checkpoints: Path | None = None,
    keep_checkpoints: int = 2,
    hooks: Sequence[Hook] = (),
    control: Callable[[], Control] = lambda: Control.CONTINUE,
    selections: frozenset[int] = frozenset(),
    device: str | None = None,
    memory_rho: float | None = None,
) -> FitResult:
    """`core.training.loop.fit` on a prepared job: resumes from ``checkpoints``, trains in place.

    Args:
        rho: share of full fine-tuning's cost, asked at each selection with the steps done; of
            FLOPs at least ``prepared.rho_min``. In another currency what the spec leaves to "auto"
            is raised to the minimum that is measured.
        memory_rho: share of FLOPs that the start record tells the expected memory for; None, or
            another currency: it tells none.

    Raises:
        RhoInfeasible: in another currency than FLOPs, before any step.
        GreentuneError: as `fit`.
    """
    green, floor = prepared.spec.green, Floor()
    is_raised = green.currency != "flops" and green.rho == "auto"
    numerics = choose_numerics(device, prepared.training.precision)
    if numerics.device.type == "cpu":
        keep_freed_memory()
    job = FitJob(
        model=prepared.loaded.model,
        feed=prepared.feed(),
        validation=prepared.validation_batches(),
        method=prepared.method,
        rho=(lambda step: max(rho(step), floor.rho_min)) if is_raised else rho,
        prices=prepared.prices,
        profile=prepared.profile,
        training=prepared.training,
        seed=prepared.spec.seed,
        numerics=numerics,
        fingerprint=prepared.loaded.fingerprint,
        weight_scale=prepared.loaded.weight_scale,
        importance=green.importance,
        wants_curve=green.is_planned,
        ask=prepared.ask if prepared.exam else None,
        selections=selections,
        reuse=prepared.reuse,
    )
    if memory_rho is not None and green.currency == "flops":
        job = with_memory(job, prepared.largest, max(memory_rho, prepared.rho_min))
    with opened_meter(green.currency, numerics.device) as meter:
        return fit(
            dataclasses.replace(job, meter=meter),
            checkpoints=checkpoints,
            keep_checkpoints=keep_checkpoints,
            hooks=[floor, *hooks],
            control=control,
        )


def export(
    prepared: Prepared,
    folder: Path,
    result: FitResult,
    *,
    name: str | None = None,
    emissions: EmissionsNote | None = None,
    metrics: Mapping[str, str] | None = None,
) -> Path:
    """The model as it is now, with a card, in ``folder``: in Hugging Face layout, or its adapter in
    PEFT's. A job that asks for its adapters merged ends here: ``prepared`` is of no use afterwards.
    """
    green = prepared.spec.green
    rho = green.rho if green.follows_rho else prepared.rho_min
    card = ModelCard(
        name=name or prepared.spec.suffix or folder.name,
        base_model=prepared.spec.model,
        method=green.method,
        n_training_examples=len(prepared.train_data),
        n_training_tokens=prepared.train_data.report.n_tokens,
        n_steps=result.step,
        n_epochs=result.epoch,
        kept_step=result.kept_step,
        rho=None if isinstance(rho, str) else rho,
        currency=green.currency,
        flops=result.flops,
        flops_share=result.flops_share or 0.0,
        first_validation_loss=result.first_validation_loss,
        validation_loss=result.validation_loss,
        emissions=emissions,
        metrics={**card_rows(result), **(metrics or {})},
    )
    loaded = prepared.loaded
    return export_model(folder, loaded.model, loaded.tokenizer, card, merge=green.options.merge)


def _reuse(
    prepared: Prepared, shapes: Sequence[Shape], checkpoints: Path | None
) -> PrefixReuse | None:
    model, prices = prepared.loaded.model, prepared.prices
    found = (prepared.train_data, prepared.validation_data)
    return prefix_reuse(
        prepared.training,
        prepared.method,
        model,
        data=[data for data in found if data is not None],
        n_epochs=prepared.passes,
        folder=checkpoints,
        spared=lambda: spared_by_reuse(model, shapes, prices.forward),
    )


def _resolved(spec: JobSpec, n_examples: int, earlier: Checkpoint | None) -> TrainingOptions:
    """With what the spec leaves open, as far as data and an earlier attempt decide it."""
    asked, precision = spec.training, spec.training.precision
    if earlier is not None and precision == "auto":
        # on another machine perhaps: what was chosen for the job is kept
        precision = earlier.state.precision
    # a plan looks at every selection whether another share is better
    interval = 1.0 if spec.green.is_planned else None
    return dataclasses.replace(
        asked,
        n_epochs=asked.n_epochs or auto_epochs(n_examples),
        batch_size=asked.batch_size or DEFAULT_BATCH_SIZE,
        precision=precision,
        selection_interval=asked.selection_interval or interval,
    )


def _exam(spec: JobSpec, corpus: Corpus, loaded: LoadedModel) -> Exam | None:
    if spec.eval is None or corpus.validation is None:
        return None
    with corpus.named(corpus.validation):
        return set_exam(
            spec.eval,
            corpus.examples(corpus.validation, loaded),
            loaded,
            task=corpus.task,
            max_input_tokens=spec.training.max_input_tokens,
        )


def _shapes(
    data: TokenDataset, loaded: LoadedModel, training: TrainingOptions, seed: int
) -> list[Shape]:
    """Of every batch of the first epoch."""
    assert training.batch_size is not None
    step = LossStep(loaded.model)
    plan = BatchPlan(data.lengths, training.batch_size, seed)
    batches = (collate([data[at] for at in part], 0) for part in plan.epoch(0))
    return [step.inputs(batch).shape for batch in batches]


def _require_feasible(prepared: Prepared) -> None:
    green = prepared.spec.green
    rho = green.fixed_rho
    if not green.follows_rho or green.currency != "flops":
        return  # what it costs in seconds or joules is not known yet
    if rho is None or rho >= prepared.rho_min:
        return
    # rounded up: the number that the message offers must itself be accepted
    offered = -(-prepared.rho_min * 1000 // 1) / 1000
    raise RhoInfeasible(
        f"rho {rho:g} is not feasible for {prepared.spec.model} on this data: a step that "
        f"trains anything at all costs {prepared.rho_min:.1%} of full fine-tuning's FLOPs, so rho "
        f"must be at least {offered:.3f}.",
        rho_min=prepared.rho_min,
    )
