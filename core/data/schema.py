"""The shape of one example: OpenAI's chat and completion formats, checked field by field.

chat: ``{"messages": [{"role", "content", ...}], "tools"?, "parallel_tool_calls"?, "functions"?}``;
completion: ``{"prompt": str, "completion": str}``. Source: OpenAI's fine-tuning guide and API
reference (supervised method), with the stricter rules of our contract: the last message is the
assistant's and at least one assistant message has a weight other than 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from core.data.lines import MAX_DEPTH, LineError, parse_json

Format = Literal["chat", "completion"]
#: reports one problem: path inside the example, code, sentence
Report = Callable[[str, str, str], None]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_PLAIN_ROLES = frozenset({"system", "developer", "user", "assistant"})
_TOP_KEYS: dict[str, frozenset[str]] = {
    "chat": frozenset({"messages", "tools", "parallel_tool_calls", "functions"}),
    "completion": frozenset({"prompt", "completion"}),
}
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"}
)
_ASSISTANT_ONLY = ("weight", "tool_calls", "function_call", "refusal")


def detect_format(value: object, report: Report) -> Format | None:
    """The format of one parsed line, or None with the reason reported."""
    if not isinstance(value, dict):
        report("", "wrong_type", f"an example must be a JSON object; got {show(value)}.")
        return None
    is_chat = "messages" in value
    is_completion = "prompt" in value or "completion" in value
    if is_chat and is_completion:
        report("", "mixed_formats", 'an example has either "messages" or "prompt"; got both.')
        return None
    if is_chat:
        return "chat"
    if is_completion:
        return "completion"
    if "preferred_output" in value or "non_preferred_output" in value:
        report(
            "", "unsupported_format", "this is preference data, which is for dpo; not supported."
        )
        return None
    report("", "unknown_format", 'an example needs "messages" (chat) or "prompt" and "completion".')
    return None


def unknown_keys(value: dict[str, Any], form: Format) -> list[str]:
    """Keys beside the format's own. They are ignored in training, with a warning."""
    known = _TOP_KEYS[form]
    return [key for key in value if key not in known]


def check_example(value: dict[str, Any], form: Format, report: Report) -> None:
    """Report every problem of one example of format ``form``."""
    if form == "completion":
        _check_completion(value, report)
        return
    _check_messages(value["messages"], report)
    if len(value) > 1:
        _check_tools(value, report)


def show(value: object) -> str:
    """A short name for a JSON value, for ``got ...``."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_completion(value: dict[str, Any], report: Report) -> None:
    prompt, completion = value.get("prompt"), value.get("completion")
    if type(prompt) is str and type(completion) is str and completion:
        return  # nearly every example: decided at once
    for key in ("prompt", "completion"):
        if key not in value:
            report(key, "missing_field", f"{key} is missing.")
        elif not isinstance(value[key], str):
            report(key, "wrong_type", f"{key} must be a string; got {show(value[key])}.")
        elif not value[key] and key == "completion":
            report(key, "empty_content", "completion must be a non-empty string.")


def _check_messages(messages: object, report: Report) -> None:
    if not isinstance(messages, list) or not messages:
        report(
            "messages", "wrong_type", f"messages must be a non-empty list; got {show(messages)}."
        )
        return
    n_trained = 0
    role = None
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            path = f"messages[{index}]"
            report(path, "wrong_type", f"{path} must be an object; got {show(message)}.")
            role = None
            continue
        role = message.get("role")
        content = message.get("content")
        # nearly every message has just a role and a text: decide those at once
        plain = len(message) == 2 and type(content) is str and content
        if not (plain and type(role) is str and role in _PLAIN_ROLES):
            _check_message(message, f"messages[{index}]", report)
        if role == "assistant" and message.get("weight") != 0:
            n_trained += 1
    if role != "assistant":
        path = f"messages[{len(messages) - 1}].role"
        report(path, "last_not_assistant", f"{path} must be assistant; got {show(role)}.")
    elif not n_trained:
        report("messages", "nothing_to_train", "messages has no assistant message with weight 1.")


def _check_message(message: dict[str, Any], path: str, report: Report) -> None:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        report(
            f"{path}.role", "unknown_role", f"{path}.role must be one of {known}; got {show(role)}."
        )
    for key in message:
        if key not in _MESSAGE_KEYS:
            at = f"{path}.{key[:40]}"
            report(at, "unknown_field", f"{at} is not a field of a message.")
    if role != "assistant":
        for key in _ASSISTANT_ONLY:
            if message.get(key) is not None:
                at = f"{path}.{key}"
                report(at, "misplaced_field", f"{at} belongs to assistant messages only.")
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        at = f"{path}.weight"
        report(at, "invalid_weight", f"{at} must be 0 or 1; got {show(weight)}.")
    _check_names(message, role, path, report)
    _check_calls(message, path, report)
    _check_content(message, f"{path}.content", report)


def _check_names(message: dict[str, Any], role: object, path: str, report: Report) -> None:
    required = {"tool": "tool_call_id", "function": "name"}.get(str(role))
    for key in ("name", "tool_call_id", "refusal"):
        text = message.get(key)
        at = f"{path}.{key}"
        if text is None:
            if key == required:
                report(at, "missing_field", f"{at} is missing; {role} messages need it.")
        elif not isinstance(text, str) or not text:
            report(at, "wrong_type", f"{at} must be a non-empty string; got {show(text)}.")


def _check_content(message: dict[str, Any], path: str, report: Report) -> None:
    content = message.get("content")
    if content is not None and message.get("refusal") is not None:
        report(path, "misplaced_field", f"{path} must be null beside a refusal; keep one of them.")
        return
    if isinstance(content, str) and content:
        return
    if content is None and any(
        message.get(key) is not None for key in ("tool_calls", "function_call", "refusal")
    ):
        return
    if not isinstance(content, list) or not content:
        code = "empty_content" if content == "" else "wrong_type"
        report(path, code, f"{path} must be a non-empty string; got {show(content)}.")
        return
    for index, part in enumerate(content):
        at = f"{path}[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            report(at, "unsupported_part", f'{at} must be a part of type "text".')
        elif not isinstance(part.get("text"), str) or not part["text"]:
            got = show(part.get("text"))
            report(at, "empty_content", f"{at}.text must be a non-empty string; got {got}.")


def _check_calls(message: dict[str, Any], path: str, report: Report) -> None:
    if (call := message.get("function_call")) is not None:
        _check_call(call, f"{path}.function_call", report)
    calls = message.get("tool_calls")
    if calls is None:
        return
    at = f"{path}.tool_calls"
    if not isinstance(calls, list) or not calls:
        report(at, "wrong_type", f"{at} must be a non-empty list; got {show(calls)}.")
        return
    for index, call in enumerate(calls):
        where = f"{at}[{index}]"
        if not isinstance(call, dict) or call.get("type") != "function":
            report(where, "wrong_type", f'{where} must be an object of type "function".')
            continue
        if not isinstance(call.get("id"), str) or not call["id"]:
            report(f"{where}.id", "missing_field", f"{where}.id must be a non-empty string.")
        _check_call(call.get("function"), f"{where}.function", report)


def _check_call(call: object, path: str, report: Report) -> None:
    """``call``: a function with arguments, which are JSON inside a JSON text."""
    _check_function(call, path, report)
    if not isinstance(call, dict):
        return
    text, at = call.get("arguments"), f"{path}.arguments"
    if not isinstance(text, str):
        report(at, "wrong_type", f"{at} must be a string; got {show(text)}.")
        return
    if not text.lstrip().startswith("{"):
        report(at, "wrong_type", f"{at} must be a JSON object as text; got {show(text)}.")
        return
    try:
        parse_json(text.encode(), MAX_DEPTH)
    except LineError as error:
        report(at, error.code, f"{at} must be a JSON object as text: {error.message}")


def _check_function(function: object, path: str, report: Report) -> None:
    if not isinstance(function, dict):
        report(path, "wrong_type", f"{path} must be an object; got {show(function)}.")
        return
    name, at = function.get("name"), f"{path}.name"
    if not isinstance(name, str) or not name:
        report(at, "wrong_type", f"{at} must be a string; got {show(name)}.")


def _check_tools(value: dict[str, Any], report: Report) -> None:
    flag = value.get("parallel_tool_calls")
    if flag is not None and not isinstance(flag, bool):
        at = "parallel_tool_calls"
        report(at, "wrong_type", f"{at} must be true or false; got {show(flag)}.")
    for key in ("tools", "functions"):
        entries = value.get(key)
        if entries is None:
            continue
        if not isinstance(entries, list):
            report(key, "wrong_type", f"{key} must be a list; got {show(entries)}.")
            continue
        for index, entry in enumerate(entries):
            at = f"{key}[{index}]"
            if key == "functions":
                _check_function(entry, at, report)
            elif not isinstance(entry, dict) or entry.get("type") != "function":
                report(at, "wrong_type", f'{at} must be an object of type "function".')
            else:
                _check_function(entry.get("function"), f"{at}.function", report)
