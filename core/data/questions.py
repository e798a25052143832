"""What a model is asked in an evaluation, and what counts as a right answer.

A question is all that precedes an example's last trained reply, tokenised as it would be for a
user who asks: the chat template with its generation prompt, or the prompt alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from core.data.cutting import bos_id, input_endings, kept_of_input, kept_of_prompt
from core.data.formats import Example
from core.data.templates import Tokenizer, apply_template
from core.data.tokens import pairs_of
from core.errors import DataInvalid, InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """``prompts``: token ids of each; ``references``: every right answer to it; ``n_cut``: how many
    prompts were too long and lost tokens, as training would cut them.
    """

    prompts: tuple[tuple[int, ...], ...]
    references: tuple[tuple[str, ...], ...]
    n_cut: int

    def __len__(self) -> int:
        return len(self.prompts)


def questions(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    is_pair: bool,
    context: int | None,
    max_new_tokens: int,
    max_input_tokens: int | None = None,
) -> Questions:
    """One question for each example.

    A prompt is cut to ``max_input_tokens``, and so that prompt and answer fit a causal model's
    ``context``.

    Raises:
        DataInvalid: an example has no prompt, its reply is a call of a tool, or the chat template
            refuses it.
        InvalidInput: no room for a prompt beside ``max_new_tokens``.
        ModelUnsupported: no chat template for chat examples.
    """
    room = None if context is None else context - (0 if is_pair else max_new_tokens)
    if room is not None and room < 1:
        raise InvalidInput(
            f"green.eval.max_new_tokens {max_new_tokens} leaves no room for a prompt in this "
            f"model's context of {context} tokens.",
            param="green.eval.max_new_tokens",
        )
    limits = [limit for limit in (room, max_input_tokens) if limit is not None]
    limit = min(limits) if limits else None
    bos = None if is_pair else bos_id(tokenizer)
    prompts, references, n_cut = [], [], 0
    for example in examples:
        asked = _last_reply_only(example)
        ids = np.array(
            _pair_ids(asked, tokenizer) if is_pair else _causal_ids(asked, tokenizer, bos), np.int32
        )
        if not len(ids):
            raise DataInvalid(f"line {example.line}: there is no prompt to answer.")
        if limit is not None and len(ids) > limit:
            n_cut += 1
            ending = input_endings([asked], tokenizer)[0] if is_pair else 0
            ids = ids[
                kept_of_input(len(ids), limit, ending)
                if is_pair
                else kept_of_prompt(ids, limit, bos)
            ]
        prompts.append(tuple(ids.tolist()))
        references.append(example.references or (_reply(asked),))
    return Questions(prompts=tuple(prompts), references=tuple(references), n_cut=n_cut)


def _last_reply_only(example: Example) -> Example:
    """The example up to its last trained reply, which alone is trained."""
    if not example.is_chat:
        return example
    last = max(at for at, message in enumerate(example.messages) if message.is_trained)
    before = (replace(message, is_trained=False) for message in example.messages[:last])
    return replace(example, messages=(*before, example.messages[last]))


def _reply(asked: Example) -> str:
    if asked.is_chat and asked.messages[-1].tool_calls:
        raise DataInvalid(
            f"line {asked.line}: messages[{len(asked.messages) - 1}] is a call of a tool, and "
            "answers are scored as texts; ask examples whose last trained reply is a text."
        )
    return (asked.messages[-1].content if asked.is_chat else asked.completion).strip()


def _causal_ids(asked: Example, tokenizer: Tokenizer, bos: int | None) -> list[int]:
    if asked.is_chat:
        turns = [message.to_template() for message in asked.messages[:-1]]
        text = apply_template(asked, tokenizer, turns, add_generation_prompt=True) if turns else ""
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = tokenizer(asked.prompt, add_special_tokens=False)["input_ids"]
    return list(ids) if bos is None else [bos, *ids]


def _pair_ids(asked: Example, tokenizer: Tokenizer) -> list[int]:
    ((source, _),) = pairs_of(asked)
    return list(tokenizer(source)["input_ids"])
