"""Lines of a JSONL file and the JSON on them, read with bounded memory and strict rules.

JSON here is RFC 8259 read strictly: no NaN or Infinity, also not by way of a number that is too
large, no key twice in one object, no lone surrogate, no NUL, nesting up to a limit. What Python's
parser would let through is refused, because tokenizers and other readers of the same file would
stumble over it or read it otherwise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from json.scanner import make_scanner
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

#: levels of lists and objects on one line
MAX_DEPTH: Final = 32
_SKIP_BYTES = 1 << 20
_LF = ord("\n")
#: first bytes -> what such a file is, and what to do
_OTHER_KINDS: Final = {
    b"PAR1": "a Parquet table; name it .parquet and say its task",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; save it as JSONL, or as CSV for a task",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"\xff\xfe": "text in UTF-16; save as UTF-8",
    b"\xfe\xff": "text in UTF-16; save as UTF-8",
}
#: JSON that goes on in the next line, or is a list of what should be lines
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
_OPEN = re.compile(rb"\s*\{\s*$")


class Line(NamedTuple):  # made for every line: three times as fast as a frozen dataclass
    """One line without its line end. ``raw`` is None where the line is longer than allowed."""

    number: int
    raw: bytes | None
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``line`` counts from 1, None for the file as a whole; ``path`` is "" for the whole line."""

    line: int | None
    path: str
    code: str
    message: str

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class LineError(Exception):
    """What is wrong with one line: a stable ``code`` and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def read_lines(source: BinaryIO, max_line_bytes: int) -> Iterator[Line]:
    """Every line of ``source``, numbered from 1; at most ``max_line_bytes`` of it in memory.

    ``n_bytes`` counts the line end too, so the sum is the file's size.
    """
    number = 0
    readline = source.readline
    cap = max_line_bytes + 2  # room for CR LF
    while raw := readline(cap):
        number += 1
        n_bytes = len(raw)
        if raw[-1] == _LF:
            raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
        elif n_bytes == cap:
            n_bytes += _skip_line(source)
        yield Line(number, raw if len(raw) <= max_line_bytes else None, n_bytes)


def _skip_line(source: BinaryIO) -> int:
    n_bytes = 0
    while rest := source.readline(_SKIP_BYTES):
        n_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return n_bytes


def too_long(max_line_bytes: int) -> str:
    """What is said of a line whose ``raw`` is None."""
    return (
        f"the line is longer than {max_line_bytes} bytes; put one example on a line, ended by LF "
        "or CRLF."
    )


def other_kind(first_line: bytes) -> str | None:
    """What a file is whose first bytes say that it is no UTF-8 text, and what to do; else None."""
    kinds = (kind for start, kind in _OTHER_KINDS.items() if first_line.startswith(start))
    return next(kinds, None)


def not_jsonl(first_line: bytes) -> str | None:
    """Why a whole file is no JSONL, where its first line already shows it."""
    kind = other_kind(first_line)
    if kind is None and _ARRAY.match(first_line):
        kind = "one JSON array; write each of its objects on a line of its own"
    elif kind is None and _OPEN.match(first_line):
        kind = "JSON over several lines; write each object on one line"
    return None if kind is None else f"the file is no JSONL but {kind}."


class _DuplicateKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return made


def _no_constant(name: str) -> NoReturn:
    raise LineError("invalid_json", f"{name} is not JSON; write null or a number.")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise LineError("invalid_json", f"the number {_clip(text)} is too large; write it as text.")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
)
_SCAN = make_scanner(_DECODER)  # type: ignore[arg-type]  # typeshed: wants itself


def parse_json(raw: bytes, max_depth: int) -> Any:
    """The value on one line.

    Raises:
        LineError: invalid_utf8, byte_order_mark, nul_character, invalid_json, duplicate_key or
            too_deep.
    """
    if b"\0" in raw:
        raise LineError("nul_character", "the line holds a NUL byte; save as UTF-8 text.")
    try:
        value = _decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineError(
            "invalid_utf8", f"byte {error.start + 1} of the line is not UTF-8; save as UTF-8."
        ) from error
    except _DuplicateKeyError as error:
        raise LineError(
            "duplicate_key", f"the key {_clip(str(error))} stands twice in one object; keep one."
        ) from error
    except json.JSONDecodeError as error:
        raise LineError("invalid_json", f"not valid JSON: {_syntax(error)}.") from error
    except RecursionError as error:
        raise LineError("too_deep", _too_deep(max_depth)) from error
    except ValueError as error:  # an integer of thousands of digits
        raise LineError("invalid_json", "not valid JSON: a number has too many digits.") from error
    if raw.count(b"{") + raw.count(b"[") > max_depth or b"\\u" in raw:
        _check_deeply(value, max_depth)
    return value


def _syntax(error: json.JSONDecodeError) -> str:
    before = error.doc[: error.pos].rstrip(" \t")
    if error.msg == "Extra data" and before.endswith("\r"):
        return "a carriage return stands alone; end lines with LF or CRLF"
    if error.msg == "Expecting value" and not before:
        return "a line must be one JSON object; a table is CSV with commas, in a file named .csv"
    # two of Python's sentences end with "at" themselves
    return f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"


def _decode(text: str) -> Any:
    """As the decoder does, without its two searches for blank characters where there are none."""
    try:
        value, end = _SCAN(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        if text.startswith("\ufeff"):
            raise LineError(
                "byte_order_mark", "the line starts with a byte order mark; save without BOM."
            ) from None
    return _DECODER.decode(text)


def _check_deeply(value: object, max_depth: int) -> None:
    """Depth, NUL and lone surrogates; only for lines that could offend."""
    level: list[object] = [value]
    depth = 0
    while level:
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, (dict, list)):
                if depth == max_depth:
                    raise LineError("too_deep", _too_deep(max_depth))
                below.extend(item)
                if isinstance(item, dict):
                    below.extend(item.values())
        level = below
        depth += 1


def _check_text(text: str) -> None:
    if "\0" in text:
        raise LineError("nul_character", "a text holds the NUL character \\u0000; remove it.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LineError(
                "invalid_json", "a text holds half of a surrogate pair; write the whole character."
            ) from error


def _too_deep(max_depth: int) -> str:
    return f"the JSON is nested deeper than {max_depth} levels; flatten it."


def _clip(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
