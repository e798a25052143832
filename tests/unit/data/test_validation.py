"""Every rule of the contract's section 9, and: no bytes whatever raise anything."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.formats import read_examples
from core.data.validation import (
    MAX_COUNTED,
    MAX_REPORTED,
    DataLimits,
    ValidationReport,
    validate,
)
from core.errors import DataInvalid

ANY_COUNT = DataLimits(min_examples=0)
USER = {"role": "user", "content": "What is it?"}
REPLY = {"role": "assistant", "content": "A thing."}


def chat(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


GOOD = chat(USER, REPLY)


def check(*lines: bytes, limits: DataLimits = ANY_COUNT) -> ValidationReport:
    return validate(io.BytesIO(b"".join(line + b"\n" for line in lines)), limits=limits)


def call(**changes: Any) -> dict[str, Any]:
    function = {"name": "look", "arguments": "{}"}
    return {"id": "c1", "type": "function", "function": function, **changes}


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        chat({"role": "system", "content": "Be brief."}, USER, REPLY),
        chat({"role": "developer", "content": "Be brief."}, USER, REPLY),
        chat(USER, REPLY | {"weight": 0}, USER | {"name": "ann"}, REPLY | {"weight": 1}),
        chat(USER, REPLY, USER, REPLY | {"weight": 0}),
        chat(
            USER | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            REPLY,
        ),
        chat(
            USER,
            {"role": "assistant", "tool_calls": [call()]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            REPLY,
            tools=[{"type": "function", "function": {"name": "look"}}],
            parallel_tool_calls=False,
        ),
        chat(
            USER,
            {"role": "assistant", "content": None, "function_call": call()["function"]},
            {"role": "function", "name": "look", "content": "42"},
            REPLY,
            functions=[{"name": "look"}],
        ),
        chat(USER, {"role": "assistant", "content": None, "refusal": "No."}),
        chat(USER | {"content": "smile \U0001f600, zwölf"}, REPLY),
        b'{"prompt": "a", "completion": "b"}',
        b'{"prompt": "", "completion": " b"}',
        GOOD + b"\r",
        b"  " + GOOD,
    ],
)
def test_sound_examples_pass(line: bytes, tmp_path: Path):
    report = check(line)
    assert report.problems == ()
    assert (report.n_examples, report.ok, report.complete) == (1, True, True)
    (tmp_path / "a.jsonl").write_bytes(line)
    assert len(list(read_examples(tmp_path / "a.jsonl"))) == 1


BROKEN = [
    (chat(USER, REPLY | {"content": None}), "messages[1].content", "wrong_type"),
    (chat(USER, REPLY | {"content": ""}), "messages[1].content", "empty_content"),
    (chat(USER, REPLY | {"content": 3}), "messages[1].content", "wrong_type"),
    (chat(USER, {"role": "assistant"}), "messages[1].content", "wrong_type"),
    (
        chat(USER | {"content": [{"type": "image_url"}]}, REPLY),
        "messages[0].content[0]",
        "unsupported_part",
    ),
    (
        chat(USER | {"content": [{"type": "text", "text": ""}]}, REPLY),
        "messages[0].content[0]",
        "empty_content",
    ),
    (chat(USER | {"content": []}, REPLY), "messages[0].content", "wrong_type"),
    (chat(USER | {"role": "human"}, REPLY), "messages[0].role", "unknown_role"),
    (chat(USER | {"role": None}, REPLY), "messages[0].role", "unknown_role"),
    (chat(USER | {"role": ["user"]}, REPLY), "messages[0].role", "unknown_role"),
    (chat(USER, REPLY | {"weight": 0.5}), "messages[1].weight", "invalid_weight"),
    (chat(USER, REPLY | {"weight": True}), "messages[1].weight", "invalid_weight"),
    (chat(USER | {"weight": 1}, REPLY), "messages[0].weight", "misplaced_field"),
    (chat(USER | {"wieght": 1}, REPLY), "messages[0].wieght", "unknown_field"),
    (chat(USER, REPLY, USER), "messages[2].role", "last_not_assistant"),
    (chat(USER, REPLY | {"weight": 0}), "messages", "nothing_to_train"),
    (chat(), "messages", "wrong_type"),
    (b'{"messages": {"role": "user"}}', "messages", "wrong_type"),
    (chat("hello", REPLY), "messages[0]", "wrong_type"),
    (chat(USER, REPLY | {"refusal": "No."}), "messages[1].content", "misplaced_field"),
    (chat(USER, REPLY | {"tool_calls": []}), "messages[1].tool_calls", "wrong_type"),
    (
        chat(USER, REPLY | {"tool_calls": [call(type="x")]}),
        "messages[1].tool_calls[0]",
        "wrong_type",
    ),
    (
        chat(USER, REPLY | {"tool_calls": [call(id=None)]}),
        "messages[1].tool_calls[0].id",
        "missing_field",
    ),
    (
        chat(USER, REPLY | {"tool_calls": [call(function={"name": "x"})]}),
        "messages[1].tool_calls[0].function.arguments",
        "wrong_type",
    ),
    (
        chat(USER, {"role": "tool", "content": "4"}, REPLY),
        "messages[1].tool_call_id",
        "missing_field",
    ),
    (chat(USER, {"role": "function", "content": "4"}, REPLY), "messages[1].name", "missing_field"),
    (chat(USER, REPLY, tools={}), "tools", "wrong_type"),
    (chat(USER, REPLY, tools=[{"name": "x"}]), "tools[0]", "wrong_type"),
    (chat(USER, REPLY, functions=[{}]), "functions[0].name", "wrong_type"),
    (chat(USER, REPLY, parallel_tool_calls=1), "parallel_tool_calls", "wrong_type"),
    (b'{"prompt": "a"}', "completion", "missing_field"),
    (b'{"prompt": "a", "completion": ""}', "completion", "empty_content"),
    (b'{"prompt": null, "completion": "b"}', "prompt", "wrong_type"),
    (b'{"prompt": "a", "messages": []}', "", "mixed_formats"),
    (
        b'{"input": {}, "preferred_output": [], "non_preferred_output": []}',
        "",
        "unsupported_format",
    ),
    (b'{"text": "a"}', "", "unknown_format"),
    (b"[1]", "", "wrong_type"),
    (b"null", "", "wrong_type"),
    (b"{,", "", "invalid_json"),
    (b"{", "", "not_jsonl"),
    (b'{"prompt": "a", "completion": 1e999}', "", "invalid_json"),
    (GOOD + GOOD, "", "invalid_json"),
    (b'{"prompt": "a", "completion": NaN}', "", "invalid_json"),
    (b'{"prompt": "a", "completion": -Infinity}', "", "invalid_json"),
    (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}", "", "invalid_json"),
    (b'{"prompt": "\\ud83d", "completion": "b"}', "", "invalid_json"),
    (b'{"prompt": "a", "prompt": "c", "completion": "b"}', "", "duplicate_key"),
    (b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}', "", "duplicate_key"),
    (b'{"prompt": "a\0", "completion": "b"}', "", "nul_character"),
    (b'{"prompt": "a\\u0000", "completion": "b"}', "", "nul_character"),
    (b'{"prompt": "\xff", "completion": "b"}', "", "invalid_utf8"),
    (GOOD.decode().encode("utf-16"), "", "not_jsonl"),
    (b"\xef\xbb\xbf" + GOOD, "", "byte_order_mark"),
    (b"[" * 100_000, "", "too_deep"),
    (b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}", "", "too_deep"),
]


ARGUMENTS = "messages[1].tool_calls[0].function.arguments"
BROKEN += [
    (chat(USER, REPLY | {"tool_calls": [call(function={"name": "x", "arguments": text})]}), *said)
    for text, *said in (
        ("", ARGUMENTS, "wrong_type"),
        ("[1]", ARGUMENTS, "wrong_type"),
        ("{a: 1}", ARGUMENTS, "invalid_json"),
        ('{"a": NaN}', ARGUMENTS, "invalid_json"),
        ('{"a": -1e999}', ARGUMENTS, "invalid_json"),
        ('{"a": "\\ud83d"}', ARGUMENTS, "invalid_json"),
        ('{"a": "\\u0000"}', ARGUMENTS, "nul_character"),
        ('{"a": 1, "a": 2}', ARGUMENTS, "duplicate_key"),
        ('{"a":' * 500 + "1" + "}" * 500, ARGUMENTS, "too_deep"),
    )
]


@pytest.mark.parametrize(("line", "path", "code"), BROKEN)
def test_broken_examples_are_named(line: bytes, path: str, code: str, tmp_path: Path):
    report = check(line)
    assert (path, code) in {(problem.path, problem.code) for problem in report.problems}
    assert not report.ok
    assert report.n_examples == 0
    assert report.first_message is not None
    assert report.first_message.startswith("line 1: ")
    (tmp_path / "a.jsonl").write_bytes(line)
    with pytest.raises(DataInvalid, match=r"^line 1: "):
        list(read_examples(tmp_path / "a.jsonl"))


def test_the_first_message_is_the_contracts():
    report = check(*[GOOD] * 16, chat(USER, REPLY, USER | {"content": None}, REPLY))
    assert (
        report.first_message == "line 17: messages[2].content must be a non-empty string; got null."
    )
    with pytest.raises(DataInvalid) as failure:
        report.raise_if_invalid()
    assert failure.value.code == "invalid_training_file"
    assert failure.value.param == "training_file"
    assert str(failure.value) == report.first_message


def test_too_few_examples_in_openais_words():
    report = check(*[GOOD] * 7, limits=DataLimits(min_examples=10))
    assert (
        report.first_message == "Training file has 7 example(s), but must have at least 10 examples"
    )
    with pytest.raises(DataInvalid) as failure:
        report.raise_if_invalid()
    assert failure.value.code == "invalid_n_examples"
    assert check(*[GOOD] * 10, limits=DataLimits(min_examples=10)).ok
    empty = validate(io.BytesIO(b""), name="Validation file")
    assert empty.first_message == (
        "Validation file has 0 example(s), but must have at least 10 examples"
    )


def test_one_format_in_a_file():
    report = check(GOOD, b'{"prompt": "a", "completion": "b"}', GOOD)
    assert [(p.line, p.code) for p in report.problems] == [(2, "mixed_formats")]
    assert (report.format, report.n_examples) == ("chat", 2)


def test_blank_lines_only_at_the_end():
    assert check(GOOD, GOOD, b"", b"  ", b"\r").ok
    report = check(GOOD, b"", b"", GOOD, b"", GOOD, b"")
    assert [(p.line, p.code) for p in report.problems] == [(2, "blank_line"), (5, "blank_line")]


def test_a_last_line_without_line_end_counts():
    assert validate(io.BytesIO(GOOD + b"\n" + GOOD), limits=ANY_COUNT).n_examples == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_lines_up_to_the_limit_and_no_longer(end: bytes):
    limits = DataLimits(min_examples=0, max_line_bytes=200)
    fitting = GOOD[:-1] + b" " * (200 - len(GOOD)) + b"}"
    assert validate(io.BytesIO(fitting + end), limits=limits).ok
    report = validate(io.BytesIO(b" " + fitting + end), limits=limits)
    assert [(p.line, p.code) for p in report.problems] == [(1, "line_too_long")]
    assert report.n_bytes == 201 + len(end)


def test_a_line_without_end_is_not_read_into_memory():
    class Endless(io.RawIOBase):
        left = 200 << 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            n_bytes = min(len(buffer), self.left)
            buffer[:n_bytes] = b"x" * n_bytes
            self.left -= n_bytes
            return n_bytes

    tracemalloc.start()
    try:
        report = validate(io.BufferedReader(Endless()), limits=ANY_COUNT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.problems[0].code == "line_too_long"
    assert report.n_bytes == 200 << 20
    assert peak < 8 << 20


def test_a_hundred_problems_are_shown_and_all_are_counted():
    report = check(*[b"{,"] * 250)
    assert (len(report.problems), report.n_problems) == (MAX_REPORTED, 250)
    assert [p.line for p in report.problems] == list(range(1, MAX_REPORTED + 1))
    assert report.complete
    with pytest.raises(DataInvalid, match="249 more") as failure:
        report.raise_if_invalid()
    carried = pickle.loads(pickle.dumps(failure.value)).problems
    assert carried == tuple(map(str, report.problems))


@pytest.mark.parametrize("line", [b"1", b""])
def test_a_hopeless_file_is_not_read_to_its_end(line: bytes):
    report = check(*[line] * (MAX_COUNTED + 10))
    assert not report.complete
    assert not report.ok


def test_too_many_examples_are_a_problem():
    report = check(*[GOOD] * 4, limits=DataLimits(min_examples=0, max_examples=3))
    assert report.problems[0].code == "too_many_examples"


def test_repeated_examples_and_extra_keys_are_warnings():
    other = chat(USER, REPLY, id=7)
    report = check(GOOD, other, GOOD, GOOD)
    assert report.ok
    assert [(w.line, w.code) for w in report.warnings] == [
        (3, "duplicate_example"),
        (2, "unknown_key"),
    ]
    assert report.warnings[0].message.startswith("2 example(s)")


def test_the_report_is_plain_json():
    report = check(GOOD, b"{", chat(USER, REPLY, note="é"))
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_paths_and_streams_give_the_same_report(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n{\n")
    assert validate(tmp_path / "a.jsonl") == validate(io.BytesIO(GOOD + b"\n{\n"))


def well_formed(report: ValidationReport, raw: bytes) -> None:
    assert report.ok == (report.n_problems == 0)
    assert len(report.problems) == min(report.n_problems, MAX_REPORTED)
    if report.complete:
        assert report.n_bytes == len(raw)
    json.dumps(report.to_dict()).encode()


@given(st.binary(max_size=300))
def test_no_bytes_raise(raw: bytes):
    well_formed(validate(io.BytesIO(raw), limits=ANY_COUNT), raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "text", "tool", "function"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "role", "content", "weight", "tool_calls", "function_call", "prompt",
             "completion", "tools", "functions", "name", "type", "text", "function", "id", "x"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=15,
)  # fmt: skip


@given(
    st.lists(VALUES | st.fixed_dictionaries({"messages": st.lists(VALUES, max_size=3)}), max_size=4)
)
def test_no_json_raises_and_what_passes_can_be_read(tmp_path_factory, values: list[Any]):
    raw = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    report = validate(io.BytesIO(raw), limits=ANY_COUNT)
    well_formed(report, raw)
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(raw)
    if report.ok:
        assert len(list(read_examples(path))) == report.n_examples
    else:
        with suppress(DataInvalid):
            list(read_examples(path))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_one_changed_byte_never_raises(at: int, byte: int):
    raw = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    well_formed(validate(io.BytesIO(raw), limits=ANY_COUNT), raw)
