"""Tools and calls of tools in conversations that a model would read without them.

A chat template that knows no tools passes over them without a word: a reply that is a call would be
learned as an empty one. Such examples are refused.
"""

from __future__ import annotations

from dataclasses import replace

from core.data.formats import Example
from core.data.templates import Tokenizer, apply_template
from core.errors import DataInvalid


def require_tools_written(example: Example, tokenizer: Tokenizer) -> None:
    """
    Raises:
        DataInvalid: the tokenizer's chat template leaves out the example's tools, or its calls; or
            it refuses the conversation.
        ModelUnsupported: there is no chat template.
    """
    call = _first_call(example)
    if call is None and not example.tools:
        return
    full = _rendered(example, tokenizer)
    if call is not None:
        messages = tuple(replace(message, tool_calls=()) for message in example.messages)
        if _leaves_out(replace(example, messages=messages), tokenizer, full):
            raise _left_out(example, f"{call}.tool_calls", "write the call into its content")
    if example.tools and _leaves_out(replace(example, tools=()), tokenizer, full):
        raise _left_out(example, "tools", "describe them in the system message")


def require_no_tools(example: Example) -> None:
    """
    Raises:
        DataInvalid: the example has tools or calls, though its model reads plain text.
    """
    if (call := _first_call(example)) is not None or example.tools:
        where = "tools" if call is None else f"{call}.tool_calls"
        raise DataInvalid(
            f"line {example.line}: {where}: a model with an encoder reads and writes plain text, "
            "which has no form for tools; write them into the messages' content, or name a chat "
            "model."
        )


def _first_call(example: Example) -> str | None:
    calls = (at for at, message in enumerate(example.messages) if message.tool_calls)
    return next((f"messages[{at}]" for at in calls), None)


def _rendered(example: Example, tokenizer: Tokenizer) -> str:
    turns = [message.to_template() for message in example.messages]
    return str(apply_template(example, tokenizer, turns))


def _leaves_out(without: Example, tokenizer: Tokenizer, full: str) -> bool:
    try:
        return _rendered(without, tokenizer) == full
    except DataInvalid:  # what it cannot do without, it reads
        return False


def _left_out(example: Example, where: str, advice: str) -> DataInvalid:
    return DataInvalid(
        f"line {example.line}: this model's chat template leaves out {where}, so the model would "
        f"learn without; name a model whose template writes tools, or {advice}."
    )
