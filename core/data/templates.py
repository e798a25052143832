"""A conversation as the model's own chat template writes it, and which characters are trained.

Templates seldom mark what the assistant says, so it is found by difference: the text up to and
including an assistant message, less the text before it with the generation prompt added, is
exactly what the model will have to produce there, its end-of-turn token included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from core.data.formats import Example
from core.errors import DataInvalid, ModelUnsupported

#: a transformers fast tokenizer, or whatever answers the same calls
Tokenizer = Any
Turns = list[dict[str, Any]]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """``spans``: half-open character ranges of ``text`` that the model is to learn, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


def has_generation_marks(tokenizer: Tokenizer) -> bool:
    """Whether the template itself marks the assistant's part with ``{% generation %}``."""
    return _MARKS.search(tokenizer.chat_template or "") is not None


def end_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts that may end a turn: the tokenizer's special and added tokens."""
    return tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""})


def render_chat(example: Example, tokenizer: Tokenizer, endings: tuple[str, ...]) -> RenderedChat:
    """The whole conversation and the spans of its trained messages; ``endings``: `end_tokens`.

    Raises:
        DataInvalid: the template refuses this conversation.
        ModelUnsupported: the tokenizer has no chat template, or one whose text before a message
            changes with what follows, so that no span can be told.
    """
    turns = [message.to_template() for message in example.messages]
    full = apply_template(example, tokenizer, turns)
    spans = []
    for index, message in enumerate(example.messages):
        if not message.is_trained:
            continue
        is_last = index + 1 == len(turns)
        upto = full if is_last else apply_template(example, tokenizer, turns[: index + 1])
        if index:
            before = apply_template(example, tokenizer, turns[:index], add_generation_prompt=True)
            start = len(before) if upto.startswith(before) else -1
        else:
            # no template renders an empty conversation: find the first message by its words
            start = upto.rfind(message.content) if message.content else -1
        if start < 0 or not full.startswith(upto):
            raise ModelUnsupported(
                f"line {example.line}: this model's chat template writes messages[{index}] "
                "differently depending on what follows it, so its tokens cannot be told apart; "
                "split the conversation so that only its last message is trained (weight 0 on "
                "the others), or use the prompt/completion format."
            )
        spans.append((start, _end_of_turn(upto, start, endings)))
    return RenderedChat(text=full, spans=tuple(spans))


def apply_template(example: Example, tokenizer: Tokenizer, turns: Turns, **options: Any) -> Any:
    """``tokenizer.apply_chat_template`` with its failures named; text unless asked otherwise."""
    if not tokenizer.chat_template:
        raise ModelUnsupported(
            "This model's tokenizer has no chat template, so it cannot be trained on messages; "
            "use the prompt/completion format or an instruction-tuned model."
        )
    options.setdefault("tokenize", False)
    try:
        return tokenizer.apply_chat_template(turns, tools=list(example.tools) or None, **options)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise DataInvalid(
            f"line {example.line}: this model's chat template refuses the conversation: {error}"
        ) from error


def _end_of_turn(text: str, start: int, endings: tuple[str, ...]) -> int:
    """The end of the turn that starts at ``start``, without blank characters after its end token.

    Generation stops at the end token; to learn the line feed after it would only cost.
    """
    stripped = text[start:].rstrip()
    return start + len(stripped) if stripped.endswith(endings) else len(text)
