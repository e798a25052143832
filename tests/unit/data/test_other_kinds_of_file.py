"""A file that is no JSONL is told what it is instead, and what to change."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from core.data.validation import DataLimits, validate

MESSAGES = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A thing."},
]
EXAMPLE = json.dumps({"messages": MESSAGES}).encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"PAR1\x15\x04\x00\n\xff", "a Parquet table; name it .parquet"),
        (b"PK\x03\x04\x14\x00\n\n", "a spreadsheet"),
        (gzip.compress(b"{}\n", mtime=0), "compressed by gzip"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "in UTF-16; save as UTF-8"),
        (json.dumps([{"prompt": "a"}]).encode(), "one JSON array; write each of its objects"),
        (json.dumps([{"prompt": "a"}], indent=1).encode(), "one JSON array"),
        (json.dumps({"prompt": "a"}, indent=1).encode(), "JSON over several lines"),
    ],
)
def test_another_kind_of_file_is_told_what_it_is(raw: bytes, said: str) -> None:
    report = validate(io.BytesIO(raw), limits=DataLimits(min_examples=1))
    (problem,) = report.problems
    assert (problem.line, problem.code) == (1, "not_jsonl")
    assert said in problem.message
    assert not report.complete


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            EXAMPLE + b"\r" + EXAMPLE + b"\r",
            "a carriage return stands alone; end lines with LF or CRLF",
        ),
        ((EXAMPLE + b"\r") * 20_000, "put one example on a line, ended by LF or CRLF"),
        (b"prompt\tcompletion\na\tb\n", "a table is CSV with commas, in a file named .csv"),
        (b'{"prompt": "a\tb"}', "Invalid control character at character 14"),
    ],
)
def test_what_does_not_parse_is_told_what_to_change(raw: bytes, said: str) -> None:
    report = validate(io.BytesIO(raw), limits=DataLimits(min_examples=0))
    assert report.problems[0].line == 1
    assert said in report.problems[0].message
