"""Tools and their calls reach the model, or the example is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.data.formats import Example, read_examples
from core.data.questions import questions
from core.data.tokens import IGNORED, tokenize, tokenize_pairs
from core.errors import DataInvalid
from tests.unit.data.byte_tokenizer import CHATML, MARKED, byte_tokenizer

CALL = (
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}"
)
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
#: as Qwen2.5's and Llama 3.1's do
WRITES_CALLS = CHATML.replace("+ message['content'] +", "+ message['content'] }}" + CALL + "{{")
WRITES_BOTH = TOOLS + WRITES_CALLS
MARKED_WRITES_BOTH = TOOLS + MARKED.replace(
    "{% generation %}{{ message['content'] + '<|im_end|>' }}",
    "{% generation %}{{ message['content'] }}" + CALL + "{{ '<|im_end|>' }}",
)

FUNCTION = {"name": "add", "arguments": json.dumps({"a": 1})}
CALLS: dict[str, Any] = {
    "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}],
}
OFFER = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ASK, RESULT = (
    {"role": "user", "content": "1 and 1?"},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
)


def examples(folder: Path, *messages: dict[str, Any], **more: Any) -> list[Example]:
    path = folder / "train.jsonl"
    plain = {"messages": [ASK, {"role": "assistant", "content": "two"}]}
    path.write_text("\n".join(map(json.dumps, (plain, {"messages": messages, **more}))))
    return list(read_examples(path))


def learned(tokenizer: Any, found: list[Example]) -> str:
    sample = tokenize(found, tokenizer, context=None)[1]
    return tokenizer.decode([label for label in sample.labels.tolist() if label != IGNORED])


@pytest.mark.parametrize("template", [WRITES_BOTH, MARKED_WRITES_BOTH])
@pytest.mark.parametrize("calls", [CALLS, {"function_call": FUNCTION}])
def test_a_call_is_learned(template: str, calls: dict[str, Any], tmp_path: Path) -> None:
    found = examples(tmp_path, ASK, {"role": "assistant", **calls}, tools=OFFER)
    assert learned(byte_tokenizer(template), found) == '<call>add{"a": 1}<|im_end|>'


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_call_that_the_template_leaves_out_is_refused(template: str, tmp_path: Path) -> None:
    call, end = {"role": "assistant", **CALLS}, {"role": "assistant", "content": "two"}
    for messages in ((ASK, call), (ASK, call, RESULT, end)):
        found = examples(tmp_path, *messages)
        with pytest.raises(DataInvalid, match=r"^line 2: .* leaves out messages\[1\].tool_calls"):
            tokenize(found, byte_tokenizer(template), context=None)


def test_tools_that_the_template_leaves_out_are_refused(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "two"}
    for key, offered in (("tools", OFFER), ("functions", [OFFER[0]["function"]])):
        found = examples(tmp_path, ASK, reply, **{key: offered})
        with pytest.raises(DataInvalid, match=r"^line 2: .* leaves out tools, .*system message"):
            tokenize(found, byte_tokenizer(WRITES_CALLS), context=None)
        assert learned(byte_tokenizer(WRITES_BOTH), found) == "two<|im_end|>"


def test_a_template_that_needs_the_call_has_read_it(tmp_path: Path) -> None:
    strict = WRITES_CALLS.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.role == 'tool' and not "
        "messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% endif %}",
        1,
    )
    end = {"role": "assistant", "content": "two"}
    found = examples(tmp_path, ASK, {"role": "assistant", **CALLS}, RESULT, end)
    assert learned(byte_tokenizer(strict), found).endswith("two<|im_end|>")


def test_a_model_with_an_encoder_has_no_form_for_tools(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "two"}
    for where, messages, more in (
        (r"messages\[1\].tool_calls", (ASK, {"role": "assistant", **CALLS}), {}),
        ("tools", (ASK, reply), {"tools": OFFER}),
    ):
        found = examples(tmp_path, *messages, **more)
        with pytest.raises(DataInvalid, match=rf"^line 2: {where}: .* plain text"):
            tokenize_pairs(found, byte_tokenizer(), context=None)


def test_a_call_is_no_text_to_score(tmp_path: Path) -> None:
    found = examples(tmp_path, ASK, {"role": "assistant", **CALLS}, tools=OFFER)
    with pytest.raises(DataInvalid, match=r"^line 2: messages\[1\] is a call of a tool"):
        questions(found, byte_tokenizer(WRITES_BOTH), is_pair=False, context=None, max_new_tokens=4)
