"""Held-out questions for a model: what is asked, how answers are scored, and what came of it.

An `Exam` is set before training and sat before and after it, with the same questions; `fit` gets it
as a callable. `evaluate_task` is the same for a model at hand, without a job.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

from core.carbon.energy import MeteredEnergy
from core.data.formats import Example
from core.data.questions import Questions, questions
from core.data.tasks import Task
from core.spec import EvalOptions
from core.training.answers import evaluate_answers
from core.training.generation import Decoding, decoding_named
from core.training.hooks import EvaluationRecord, FitResult, Hook
from core.training.models import LoadedModel, context_of
from core.training.pricing import Price, price_steps
from worker.whole_files import write_whole

DEFAULT_METRICS: Final = ("rougeL",)
DEFAULT_NEW_TOKENS: Final = 64
LABELS: Final = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "Exact match",
    "f1": "F1",
    "accuracy": "Accuracy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    questions: Questions
    metrics: tuple[str, ...]
    decoding: Decoding

    def sit(self, model: Any, tokenizer: Any, forward: Price) -> EvaluationRecord:
        """The model's answers and their scores; ``forward``: `StepPrices.forward`."""
        return evaluate_answers(
            model,
            tokenizer,
            self.questions.prompts,
            self.questions.references,
            metrics=self.metrics,
            decoding=self.decoding,
            forward=forward,
            n_cut=self.questions.n_cut,
        )


def set_exam(
    options: EvalOptions,
    examples: Iterable[Example],
    loaded: LoadedModel,
    *,
    task: Task | None,
    max_input_tokens: int | None,
) -> Exam:
    """The exam of a job: what its options leave open, its task decides.

    Raises:
        DataInvalid, InvalidInput, ModelUnsupported: as `core.data.questions.questions`.
    """
    metrics = task.metrics if task else DEFAULT_METRICS
    new_tokens = task.max_new_tokens if task else DEFAULT_NEW_TOKENS
    decoding = decoding_named(options.decoding, max_new_tokens=options.max_new_tokens or new_tokens)
    return Exam(
        questions=questions(
            islice(examples, options.max_examples),
            loaded.tokenizer,
            is_pair=loaded.is_encoder_decoder,
            context=loaded.context_tokens,
            max_new_tokens=decoding.max_new_tokens,
            max_input_tokens=max_input_tokens,
        ),
        metrics=options.metrics or metrics,
        decoding=decoding,
    )


def evaluate_task(
    model: Any,
    tokenizer: Any,
    examples: Iterable[Example],
    metrics: Sequence[str],
    generation: Decoding,
    *,
    max_examples: int | None = None,
    max_input_tokens: int | None = None,
) -> EvaluationRecord:
    """The first ``max_examples`` of ``examples``, answered by ``model`` and scored; step is 0.

    Raises:
        DataInvalid, InvalidInput, ModelUnsupported: as `core.data.questions.questions` and
            `evaluate_answers`.
    """
    asked = questions(
        islice(examples, max_examples),
        tokenizer,
        is_pair=bool(model.config.is_encoder_decoder),
        context=context_of(model, tokenizer),
        max_new_tokens=generation.max_new_tokens,
        max_input_tokens=max_input_tokens,
    )
    exam = Exam(questions=asked, metrics=tuple(metrics), decoding=generation)
    return exam.sit(model, tokenizer, price_steps(model).forward)


def card_rows(result: FitResult) -> dict[str, str]:
    """Lines for the model card: metric -> before and after."""
    first, last = result.first_scores, result.scores
    if first is None or last is None:
        return {}
    label = "{} of held-out answers before and after"
    return {label.format(LABELS[name]): f"{first[name]:.2f} and {last[name]:.2f}" for name in last}


def scores_line(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{LABELS[name]} {value:.2f}" for name, value in scores.items())


def energy_within(rows: Iterable[MeteredEnergy], start: datetime, end: datetime) -> float:
    """Joules of the metered intervals that fall between two moments; a part of an interval counts
    with its share of the interval's time.
    """
    total_j = 0.0
    for row in rows:
        length_s = (row.ended_at - row.started_at).total_seconds()
        inside_s = (min(row.ended_at, end) - max(row.started_at, start)).total_seconds()
        if length_s > 0 and inside_s > 0:
            total_j += row.energy_j * inside_s / length_s
    return total_j


class EvaluationFile(Hook):
    """Keeps the last evaluation before training and after it in one JSON file, answers included.

    ``exam`` None: nothing is asked, and there is no file.
    """

    def __init__(self, path: Path, exam: Exam | None) -> None:
        self._path = path
        self._exam = exam

    def on_evaluation(self, record: EvaluationRecord) -> None:
        assert self._exam is not None, "only an exam is evaluated"
        kept = self._read()
        kept["decoding"] = {
            "num_beams": self._exam.decoding.num_beams,
            "repetition_penalty": self._exam.decoding.repetition_penalty,
            "max_new_tokens": self._exam.decoding.max_new_tokens,
        }
        kept["n_examples"] = record.n_examples
        kept["n_cut"] = record.n_cut
        kept["after" if record.step else "before"] = {
            "step": record.step,
            "scores": dict(record.scores),
            "flops": record.flops,
            "n_tokens": record.n_tokens,
            "duration_s": record.duration_s,
            "ended_at": datetime.now(UTC).isoformat(),
            "answers": list(record.answers),
        }
        kept["references"] = [list(right) for right in self._exam.questions.references]
        self._write(kept)

    def add_energy(self, rows: Iterable[MeteredEnergy]) -> float:
        """Write down what asking took, as far as it was metered; joules of both evaluations."""
        if self._exam is None:
            return 0.0
        kept, metered, total_j = self._read(), tuple(rows), 0.0
        for one in (kept[name] for name in ("before", "after") if name in kept):
            end = datetime.fromisoformat(one["ended_at"])
            start = end - timedelta(seconds=one["duration_s"])
            one["energy_j"] = energy_within(metered, start, end)
            total_j += one["energy_j"]
        self._write(kept)
        return total_j

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
        return found

    def _write(self, kept: dict[str, Any]) -> None:
        write_whole(self._path, json.dumps(kept, indent=1, ensure_ascii=False))
