"""A job's files as checked examples and as token samples: JSONL of a format, or a task's tables.

Every bad line is found before anything is spent; what a row of a table becomes depends on the model
at hand (its end token, whether it has an encoder), so examples are read once the model is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.formats import Example, read_examples
from core.data.hub import download
from core.data.oddities import overlap_warning
from core.data.tables import refuse_tables
from core.data.tasks import Task, TaskData, task_named
from core.data.tokens import TokenDataset, tokenize, tokenize_pairs
from core.data.validation import DataLimits, ValidationReport, contents, validate
from core.errors import DataInvalid, ModelUnsupported
from core.spec import JobSpec
from core.training.models import LoadedModel, hub_answers
from core.training_options import TrainingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """``task`` None: the files speak for themselves."""

    training: Path
    validation: Path | None
    limits: DataLimits
    task: Task | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    def validate(self) -> tuple[ValidationReport, ValidationReport | None]:
        """The reports of both files, which are sound.

        Raises:
            DataInvalid: a file's first problem, with its line; ``param`` says which file.
            InvalidInput: the task has no such field, or reads no such file.
        """
        first = self._report(self.training, self.limits, "Training file")
        first.raise_if_invalid(param="training_file")
        if self.validation is None:
            return first, None
        # a handful of held-out examples is allowed, unlike a handful to learn from
        few = dataclasses.replace(self.limits, min_examples=1)
        second = self._report(self.validation, few, "Validation file")
        second.raise_if_invalid(param="validation_file")
        return first, second

    def examples(self, path: Path, loaded: LoadedModel) -> Iterator[Example]:
        """Those of ``path``, one of the two files, as ``loaded`` is to read them.

        Raises:
            DataInvalid, ModelUnsupported: as `read_examples` and `TaskData.examples`.
        """
        if self.task is None:
            return read_examples(path, limits=self.limits)
        return self._table(path, self.limits).examples(
            eos=loaded.tokenizer.eos_token, is_pair=loaded.is_encoder_decoder
        )

    def tokens(self, path: Path, loaded: LoadedModel, training: TrainingOptions) -> TokenDataset:
        """
        Raises:
            DataInvalid: as `examples`, `tokenize` and `tokenize_pairs`; ``param`` says which file.
            ModelUnsupported: as these, or the tokenizer knows tokens that the model does not.
        """
        with self.named(path):
            found = self._tokens(path, loaded, training)
        _require_known(found, loaded)
        return found

    def _tokens(self, path: Path, loaded: LoadedModel, training: TrainingOptions) -> TokenDataset:
        examples = self.examples(path, loaded)
        limits: dict[str, Any] = {
            "context": loaded.context_tokens,
            "max_input_tokens": training.max_input_tokens,
            "max_output_tokens": training.max_output_tokens,
        }
        if loaded.is_encoder_decoder:
            return tokenize_pairs(examples, loaded.tokenizer, **limits)
        return tokenize(examples, loaded.tokenizer, loss_on=training.loss_on, **limits)

    def remarks(
        self,
        reports: tuple[ValidationReport, ValidationReport | None],
        tokens: tuple[TokenDataset, TokenDataset | None],
    ) -> tuple[str, ...]:
        """What is not refused in the two files, but the caller should know: a sentence each."""
        found = []
        names = ("Training file", "Validation file")
        for name, report, data in zip(names, reports, tokens, strict=True):
            found += [f"{name}: {warning}" for warning in (report.warnings if report else ())]
            if data is not None and data.report.n_truncated:
                found.append(
                    f"{name}: {data.report.n_truncated} of {len(data)} samples are longer than "
                    "green.training.max_input_tokens or green.training.max_output_tokens, and were "
                    "cut."
                )
        if self.validation is not None:
            overlap = overlap_warning(
                self._contents(self.training),
                self._contents(self.validation),
                max_tracked=self.limits.max_tracked,
            )
            found += [] if overlap is None else [overlap.message]
        return tuple(found)

    def _contents(self, path: Path) -> Iterator[tuple[int, bytes]]:
        if self.task is None:
            return contents(path, self.limits)
        return self._table(path, self.limits).contents()

    @contextmanager
    def named(self, path: Path) -> Iterator[None]:
        """What is found wrong with the data is of ``path``, one of the two files: say so."""
        try:
            yield
        except DataInvalid as error:
            is_training = path == self.training
            error.param = error.param or ("training_file" if is_training else "validation_file")
            raise

    def _report(self, path: Path, limits: DataLimits, name: str) -> ValidationReport:
        if self.task is None:
            return validate(path, limits=limits, name=name)
        table = self._table(path, limits)
        with self.named(path):
            return table.check(min_examples=limits.min_examples, name=name)

    def _table(self, path: Path, limits: DataLimits) -> TaskData:
        assert self.task is not None, "only a task reads tables"
        return TaskData(task=self.task, path=path, columns=self.columns, limits=limits)


def _require_known(data: TokenDataset, loaded: LoadedModel) -> None:
    # ids that occur, not the tokenizer's length: some published tokenizers are longer than need be
    n_known = loaded.model.get_input_embeddings().weight.shape[0]
    if data.largest_id >= n_known:
        raise ModelUnsupported(
            f"The tokenizer of {loaded.model_id!r} gives token id {data.largest_id}, but the model "
            f"has {n_known} embeddings: the tokenizer is another model's, or tokens were added "
            "without resize_token_embeddings.",
            param="model",
        )


def fetch_tables(task: Task, folder: Path) -> tuple[Path, Path]:
    """The task's own data set from the hub, kept in ``folder``: training and evaluation rows.

    Raises:
        Unavailable: neither the hub nor its cache has it; names the local alternative.
        StorageUnavailable: the disk does not take it.
    """
    is_offline = not hub_answers()
    train, held_out = (
        download(task, split, folder, is_offline=is_offline)
        for split in ("train", task.evaluation_split)
    )
    return train, held_out


def corpus_of(spec: JobSpec, training: Path, validation: Path | None, limits: DataLimits) -> Corpus:
    """``training``, ``validation``: where the spec's files lie on this host.

    Raises:
        InvalidInput: an unknown task, or a field that it has not; the known ones are named. A table
            of no task.
    """
    if spec.task is None:
        refuse_tables(training, validation)
        return Corpus(training=training, validation=validation, limits=limits)
    task = task_named(spec.task.name)
    return Corpus(
        training=training,
        validation=validation,
        limits=limits,
        task=task,
        columns=task.named_columns(spec.task.columns),
    )
