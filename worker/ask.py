"""Ask a model the questions of a held-out file, and score its answers against the file's own.

python -m worker ask --model PATH_OR_ID --questions FILE.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from core.data.batches import collate
from core.data.formats import Example, read_examples
from core.data.questions import questions as questions_of
from core.data.tokens import Sample, tokenize, tokenize_pairs
from core.training.evaluate import evaluate
from core.training.generation import Decoding, generate
from core.training.metrics import score
from core.training.models import LoadedModel, load_model
from core.training.step import LossStep

BATCH_SIZE = 8
MAX_NEW_TOKENS = 48


def ask(
    model: str,
    questions: Path,
    *,
    models: Mapping[str, str | None],
    cache: Path,
    limit: int | None = None,
) -> dict[str, Any]:
    """Loss over the file's trained tokens, and a greedy answer with ROUGE for each example.

    Args:
        model: a folder in Hugging Face layout, a name of ``models``, or a hub id.
        questions: JSONL in chat or prompt/completion format.
        models: model id -> local folder, or None where the id itself is loaded.
        cache: folder for unpacked packaged models.
        limit: only the first so many examples.

    Raises:
        ModelUnavailable, ModelUnsupported: the model cannot be loaded, or not be asked.
        DataInvalid: the file breaks the rules.
    """
    folder = model if Path(model).is_dir() else models.get(model)
    loaded = load_model(model, folder=folder, cache=cache)
    examples = list(islice(read_examples(questions), limit))
    encode = tokenize_pairs if loaded.is_encoder_decoder else tokenize
    samples = list(encode(examples, loaded.tokenizer, context=loaded.context_tokens))
    asked = questions_of(
        examples,
        loaded.tokenizer,
        is_pair=loaded.is_encoder_decoder,
        context=loaded.context_tokens,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    decoding = Decoding(max_new_tokens=MAX_NEW_TOKENS)
    answers = generate(loaded.model, loaded.tokenizer, asked.prompts, decoding).texts
    scores = score(("rouge1", "rouge2", "rougeL"), answers, asked.references)
    return {
        "model": model,
        "n_examples": len(examples),
        "loss": _loss(loaded, samples),
        **scores,
        "answers": [
            {"question": _question(example), "answer": answer, "reference": right[0]}
            for example, answer, right in zip(examples, answers, asked.references, strict=True)
        ],
    }


def _loss(loaded: LoadedModel, samples: list[Sample]) -> float:
    """Mean over the file's trained tokens, nats."""
    step = LossStep(loaded.model)
    by_length = sorted(samples, key=lambda sample: len(sample.input_ids))
    parts = (by_length[at : at + BATCH_SIZE] for at in range(0, len(by_length), BATCH_SIZE))
    return evaluate(step, (step.inputs(collate(part, pad_id=0)) for part in parts)).loss


def _question(example: Example) -> str:
    asked = [message.content for message in example.messages if message.role == "user"]
    return asked[-1] if asked else example.prompt
