"""Rows of JSONL, CSV and Parquet files with the columns that a task asks for, in bounded memory.

A row that cannot be read does not end the reading: it comes as a `Problem`, so that one pass can
name every bad row. Rows are numbered by the line they begin on (CSV and JSONL, from 1, a header
counts) or by their position (Parquet, from 1).
"""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.data.lines import (
    LineError,
    Problem,
    not_jsonl,
    other_kind,
    parse_json,
    read_lines,
    too_long,
)
from core.data.validation import MAX_REPORTED, DataLimits, ValidationReport
from core.errors import DataInvalid, InvalidInput

#: of files that are tables whatever they are for
TABLE_SUFFIXES = (".csv", ".parquet")
SUFFIXES = (".jsonl", *TABLE_SUFFIXES)
_PARQUET_ROWS = 256
#: what other programs write between the fields of a line
_OTHER_DIVIDERS = (";", "\t", "|")
#: what the csv module says -> what is wrong, and what to do
_CSV_ERRORS = {
    "new-line character": "a carriage return stands alone; end lines with LF or CRLF",
    "unexpected end": "a quoted field is never closed; close it, or double a quote that is text",
}
_field_limit = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``values`` has the asked columns that this row has, as the file's own types."""

    line: int
    values: Mapping[str, Any]


def parse_columns(text: str) -> dict[str, str]:
    """``src=document,summary=gold summary`` as field -> column; blanks around names go.

    Raises:
        InvalidInput: a part that is not ``field=column``, or a field named twice.
    """
    found: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column):
            raise InvalidInput(
                f"columns must be field=column pairs such as src=document,summary=summary; "
                f"got {part.strip()!r}.",
                param="columns",
            )
        if field in found:
            raise InvalidInput(f"columns names the field {field!r} twice.", param="columns")
        found[field] = column
    return found


def refuse_tables(training: Path, validation: Path | None) -> None:
    """For files of no task, which have no columns to read.

    Raises:
        InvalidInput: one is a table by its name; ``param`` says which.
    """
    for param, path in (("training_file", training), ("validation_file", validation)):
        if path is not None and path.suffix.lower() in TABLE_SUFFIXES:
            raise InvalidInput(
                f"{path.name} is a table; say which task it is for: green.task, with "
                "green.task.columns where its columns have other names than the task's.",
                param=param,
            )


def refuse_other_kinds(training: Path | None, validation: Path | None = None) -> None:
    """For files of a task, which are read by what their names say they are.

    Raises:
        InvalidInput: one is of no kind that we read; ``param`` says which.
    """
    for param, path in (("training_file", training), ("validation_file", validation)):
        if path is not None and path.suffix.lower() not in SUFFIXES:
            raise InvalidInput(
                f"{path.name} is of no kind that a task reads ({', '.join(SUFFIXES)}): convert it, "
                "or name it after what it is.",
                param=param,
            )


def read_rows(
    path: Path, columns: Collection[str], *, limits: DataLimits | None = None
) -> Iterator[Row | Problem]:
    """Every row of ``path``, a problem in its place where it cannot be read.

    Raises:
        InvalidInput: the file is of no kind that we read.
        DataInvalid: the file as a whole cannot be read: no header, not Parquet, a column that no
            row has.
        OSError: the file cannot be opened.
    """
    refuse_other_kinds(path)
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_file_rows, ".parquet": _parquet_rows}
    return readers[path.suffix.lower()](path, tuple(columns), limits or DataLimits())


def check_table(
    stream: BinaryIO, suffix: str, *, limits: DataLimits | None = None
) -> ValidationReport:
    """Whether a table can be read, and how many rows it has; its columns are its task's business.

    Args:
        suffix: one of `TABLE_SUFFIXES`.

    Raises:
        OSError: the stream cannot be read; what is wrong with the content is in the report.
    """
    problems: list[Problem] = []
    n_rows = n_problems = 0
    try:
        if suffix == ".csv":
            for row in _csv_rows(stream, "The file", (), limits or DataLimits()):
                if isinstance(row, Row):
                    n_rows += 1
                    continue
                n_problems += 1
                problems = [*problems, row][:MAX_REPORTED]
        else:
            n_rows = _n_parquet_rows(stream)
    except DataInvalid as error:
        n_problems += 1
        problems = [_problem(None, "unreadable_table", str(error))]
    if not n_rows and not n_problems:
        n_problems, problems = 1, [_problem(None, "no_rows", "The file has no rows.")]
    return ValidationReport(
        format=None,
        n_examples=n_rows,
        n_bytes=stream.seek(0, os.SEEK_END),
        problems=tuple(problems),
        n_problems=n_problems,
        warnings=(),
        complete=True,
    )


def _jsonl_rows(
    path: Path, columns: tuple[str, ...], limits: DataLimits
) -> Iterator[Row | Problem]:
    with path.open("rb") as stream:
        for line in read_lines(stream, limits.max_line_bytes):
            if line.number == 1 and (reason := not_jsonl(line.raw or b"")) is not None:
                raise DataInvalid(f"line 1: {reason}")
            if line.raw is None:
                yield _problem(line.number, "line_too_long", too_long(limits.max_line_bytes))
            elif line.raw and not line.raw.isspace():
                yield _jsonl_row(line.number, line.raw, columns, limits)


def _jsonl_row(
    number: int, raw: bytes, columns: tuple[str, ...], limits: DataLimits
) -> Row | Problem:
    try:
        value = parse_json(raw, limits.max_depth)
    except LineError as error:
        return _problem(number, error.code, error.message)
    if not isinstance(value, dict):
        return _problem(number, "wrong_type", "a row must be a JSON object with named columns.")
    return Row(line=number, values={name: value[name] for name in columns if name in value})


class _CsvLines:
    """Text lines for `csv.reader`; an iterator that goes on after a line that is refused.

    ``number``: of the last line; ``first``: where the record under way began. A record is as long
    as a line may be.
    """

    def __init__(self, stream: BinaryIO, limits: DataLimits) -> None:
        self._lines = read_lines(stream, limits.max_line_bytes)
        self._limit = limits.max_line_bytes
        self._n_bytes = 0
        self.number = 0
        self.first = 1

    def begin_record(self) -> None:
        self.first = self.number + 1
        self._n_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number = line.number
        if line.raw is None:
            raise LineError("line_too_long", too_long(self._limit))
        # the line end before a line belongs to its quoted field
        self._n_bytes += len(line.raw) + (line.number > self.first)
        if self._n_bytes > self._limit:
            raise LineError(
                "line_too_long",
                f"the row that begins in line {self.first} is longer than {self._limit} bytes; "
                "close its quoted field, or shorten it.",
            )
        if line.number == 1 and (kind := other_kind(line.raw)) is not None:
            raise LineError("not_csv", f"the file is no CSV but {kind}.")
        if b"\0" in line.raw:
            raise LineError("nul_character", "the line holds a NUL byte; save as UTF-8 text.")
        try:
            # spreadsheets begin their CSV files with a byte order mark
            text = line.raw.decode("utf-8-sig" if line.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LineError(
                "invalid_utf8", f"byte {error.start + 1} of the line is not UTF-8; save as UTF-8."
            ) from error
        return text + "\n"


def _csv_file_rows(
    path: Path, columns: tuple[str, ...], limits: DataLimits
) -> Iterator[Row | Problem]:
    with path.open("rb") as stream:
        yield from _csv_rows(stream, path.name, columns, limits)


def _csv_rows(
    stream: BinaryIO, name: str, columns: tuple[str, ...], limits: DataLimits
) -> Iterator[Row | Problem]:
    """RFC 4180 with a header; a quoted field may span lines, blanks around a column's name go."""
    _allow_fields_of(limits.max_line_bytes)
    lines = _CsvLines(stream, limits)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
    except (csv.Error, LineError) as error:
        raise DataInvalid(f"line {lines.number}: {_sentence(error)}") from error
    if not header:
        raise DataInvalid(f"{name} has no header: its first line must name the columns.")
    places = _places(name, [column.strip() for column in header], columns)
    while True:
        lines.begin_record()
        try:
            record = next(reader, None)
        except csv.Error as error:
            yield _problem(lines.first, "invalid_csv", _sentence(error))
            continue
        except LineError as error:
            yield _problem(lines.number, error.code, error.message)
            continue
        if record is None:
            return
        if record:
            yield _csv_row(lines.first, record, len(header), places)


def _csv_row(
    line: int, record: list[str], n_columns: int, places: Mapping[str, int]
) -> Row | Problem:
    if len(record) != n_columns:
        message = f"the row has {len(record)} fields, but the header has {n_columns}."
        return _problem(line, "wrong_field_count", message)
    return Row(line=line, values={name: record[at] for name, at in places.items()})


def _allow_fields_of(n_characters: int) -> None:
    """The csv module's limit is the process's, other threads read by it at this moment: it is
    raised and never lowered. `_CsvLines` bounds what a record takes.
    """
    with _field_limit:
        csv.field_size_limit(max(csv.field_size_limit(), n_characters))


def _places(file: str, header: list[str], columns: tuple[str, ...]) -> dict[str, int]:
    if columns and len(header) == 1 and any(other in header[0] for other in _OTHER_DIVIDERS):
        raise DataInvalid(f"{file} has one column, {header[0]!r}; divide fields by commas.")
    _require_columns(file, header, columns)
    return {name: header.index(name) for name in columns}


def _parquet_rows(
    path: Path, columns: tuple[str, ...], _limits: DataLimits
) -> Iterator[Row | Problem]:
    # half a second that only readers of Parquet should pay
    import pyarrow.parquet as pq  # noqa: PLC0415

    with _parquet_damage_named(path.name), pq.ParquetFile(path) as file:
        _require_columns(path.name, file.schema_arrow.names, columns)
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(columns)):
            for values in batch.to_pylist():
                number += 1
                yield Row(line=number, values=values)


def _n_parquet_rows(stream: BinaryIO) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with _parquet_damage_named("The file"):
        return int(pq.ParquetFile(stream).metadata.num_rows)


@contextmanager
def _parquet_damage_named(name: str) -> Iterator[None]:
    """Arrow raises OSError for damaged content too; only a system's refusal has an ``errno``."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = _printable(str(error).partition("\n")[0].rstrip("."))
        raise DataInvalid(f"{name} cannot be read as Parquet: {reason}.") from error


def _require_columns(file: str, found: list[str], columns: tuple[str, ...]) -> None:
    for name in columns:
        if found.count(name) > 1:
            raise DataInvalid(f"{file} has more than one column {name!r}; rename one.")
    missing = [name for name in columns if name not in found]
    if missing:
        raise DataInvalid(
            f"{file} has no column {missing[0]!r}; its columns are: "
            f"{', '.join(map(_printable, found)) or 'none'}. Say which to use with "
            "green.task.columns, such as src=document."
        )


def _printable(text: str) -> str:
    """A name or a reason out of a damaged file, fit for a terminal and a database: a NUL is none's
    to store.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _sentence(error: Exception) -> str:
    if isinstance(error, LineError):
        return error.message
    known = (text for start, text in _CSV_ERRORS.items() if str(error).startswith(start))
    reason = next(known, f"{error}; quote fields that hold commas, quotes or line ends")
    return f"not valid CSV: {reason}."


def _problem(line: int | None, code: str, message: str) -> Problem:
    return Problem(line=line, path="", code=code, message=message)
