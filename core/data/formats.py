"""From checked lines to examples: one record for both formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.lines import LineError, Problem, parse_json, read_lines, too_long
from core.data.schema import check_example, detect_format
from core.data.validation import DataLimits
from core.errors import DataInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. ``content`` is plain text (parts joined; "" where only a call stands);
    ``tool_calls`` are as in the file, with ``arguments`` parsed, which chat templates expect.
    """

    role: str
    content: str
    is_trained: bool = False
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()

    def to_template(self) -> dict[str, Any]:
        """The dict that chat templates read; keys only where they say something."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            turn["tool_calls"] = list(self.tool_calls)
        return turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example from ``line`` of its file: ``messages`` or ``prompt``/``completion``."""

    line: int
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""
    #: the last words of ``prompt``, which stay where a long prompt is cut
    prompt_end: str = ""
    #: what counts as a right answer in evaluation; empty: the reply alone
    references: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


def read_examples(path: Path | str, *, limits: DataLimits | None = None) -> Iterator[Example]:
    """The examples of a JSONL file in order, one line in memory at a time.

    Raises:
        DataInvalid: code invalid_file_format, at the first line that is not a sound example.
    """
    limits = limits or DataLimits()
    with Path(path).open("rb") as stream:
        for line in read_lines(stream, limits.max_line_bytes):
            if line.raw is None:
                raise DataInvalid(f"line {line.number}: {too_long(limits.max_line_bytes)}")
            if line.raw and not line.raw.isspace():
                yield _parse(line.number, line.raw, limits)


def _parse(number: int, raw: bytes, limits: DataLimits) -> Example:
    problems: list[Problem] = []

    def report(path: str, code: str, message: str) -> None:
        problems.append(Problem(line=number, path=path, code=code, message=message))

    try:
        value = parse_json(raw, limits.max_depth)
    except LineError as error:
        raise DataInvalid(f"line {number}: {error.message}") from error
    form = detect_format(value, report)
    if form is not None:
        check_example(value, form, report)
    if problems:
        raise DataInvalid(str(problems[0]))
    if form == "completion":
        return Example(line=number, prompt=value["prompt"], completion=value["completion"])
    return Example(
        line=number,
        messages=tuple(_message(message) for message in value["messages"]),
        tools=tuple(_tools(value)),
    )


def _message(raw: dict[str, Any]) -> Message:
    role = raw["role"]
    content = raw.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return Message(
        # open models know no developer; OpenAI made it of what was the system message
        role="system" if role == "developer" else role,
        content=content or raw.get("refusal") or "",
        is_trained=role == "assistant" and raw.get("weight") != 0,
        name=raw.get("name"),
        tool_call_id=raw.get("tool_call_id"),
        tool_calls=tuple(_calls(raw)),
    )


def _calls(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    calls = list(raw.get("tool_calls") or ())
    if (legacy := raw.get("function_call")) is not None:
        calls.append({"id": "call_0", "type": "function", "function": legacy})
    for call in calls:
        # checked with the example: a JSON object
        arguments = json.loads(call["function"]["arguments"])
        yield {**call, "function": {**call["function"], "arguments": arguments}}


def _tools(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from value.get("tools") or ()
    for function in value.get("functions") or ():
        yield {"type": "function", "function": function}
