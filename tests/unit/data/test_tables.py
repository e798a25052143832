"""Rows come out as they stand in the file, and every bad one is named by its line."""

from __future__ import annotations

import csv
import errno
import io
import json
import random
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.lines import Problem
from core.data.tables import Row, check_table, parse_columns, read_rows
from core.data.validation import DataLimits
from core.errors import DataInvalid, InvalidInput

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=8)
on_disk = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, *columns: str, limits: DataLimits | None = None) -> list[Row | Problem]:
    return list(read_rows(path, columns, limits=limits))


def problems(rows: list[Row | Problem]) -> list[tuple[int | None, str]]:
    return [(row.line, row.code) for row in rows if isinstance(row, Problem)]


@on_disk
@given(ROWS)
def test_any_text_survives_csv(tmp_path: Path, rows: list[tuple[str, str]]):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "skipped", "b"), *((a, "x", b) for a, b in rows)])
    got = read(path, "b", "a")
    assert [(row.values["a"], row.values["b"]) for row in got] == rows
    # each row is named by the line that it begins on
    lines = [
        2 + sum(a.count("\n") + b.count("\n") + 1 for a, b in rows[:at]) for at in range(len(rows))
    ]
    assert [row.line for row in got] == lines


@on_disk
@given(ROWS)
def test_any_text_survives_jsonl(tmp_path: Path, rows: list[tuple[str, str]]):
    lines = (json.dumps({"a": a, "x": 1, "b": [b]}, ensure_ascii=False) for a, b in rows)
    path = written(tmp_path, "rows.jsonl", "".join(line + "\n" for line in lines))
    got = read(path, "a", "b")
    assert [row.values for row in got] == [{"a": a, "b": [b]} for a, b in rows]
    assert [row.line for row in got] == list(range(1, len(rows) + 1))


@on_disk
@given(ROWS)
def test_any_text_survives_parquet(tmp_path: Path, rows: list[tuple[str, str]]):
    path = tmp_path / "rows.parquet"
    table = {"a": [a for a, _ in rows], "x": [1] * len(rows), "b": [[b] for _, b in rows]}
    schema = pa.schema([("a", pa.string()), ("x", pa.int64()), ("b", pa.list_(pa.string()))])
    pq.write_table(pa.table(table, schema), path)
    got = read(path, "a", "b")
    assert [row.values for row in got] == [{"a": a, "b": [b]} for a, b in rows]
    assert [row.line for row in got] == list(range(1, len(rows) + 1))


@on_disk
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "parquet"]))
def test_no_bytes_raise_anything_but_our_errors(tmp_path: Path, content: bytes, kind: str):
    path = written(tmp_path, f"rows.{kind}", content)
    try:
        rows = read(path, "a")
    except DataInvalid:
        return
    assert all(isinstance(row, (Row, Problem)) for row in rows)


def test_bad_csv_rows_are_named_and_the_rest_is_read(tmp_path: Path):
    path = written(
        tmp_path,
        "rows.csv",
        b'a,b\n1,2\n1\n"x\ny",3\n\xff,1\n"p"q,1\n4,5,6\n\n7,8\n' + b"9" * 60 + b',1\n5,6\n"open,',
    )
    rows = read(path, "a", limits=DataLimits(max_line_bytes=50))
    assert problems(rows) == [
        (3, "wrong_field_count"),
        (6, "invalid_utf8"),
        (7, "invalid_csv"),
        (8, "wrong_field_count"),
        (11, "line_too_long"),
        (13, "invalid_csv"),
    ]
    assert [(row.line, row.values["a"]) for row in rows if isinstance(row, Row)] == [
        (2, "1"),
        (4, "x\ny"),
        (10, "7"),
        (12, "5"),
    ]


def test_a_long_csv_field_is_read_while_another_upload_ends():
    """The csv module has one limit for all threads."""
    long = b"a\n" + b"x" * (1 << 19) + b"\n"
    reading, ended = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def readline(self, *size: int) -> bytes:
            line = super().readline(*size)
            if line.startswith(b"x"):
                reading.set()
                assert ended.wait(10)
            return line

    class Overtaken(io.BytesIO):
        def readline(self, *size: int) -> bytes:
            line = super().readline(*size)
            if line.startswith(b"x"):
                slow.start()
                assert reading.wait(10)
            return line

    found = []
    slow = threading.Thread(target=lambda: found.append(check_table(Slow(long), ".csv")))
    csv.field_size_limit(1 << 17)  # the module's own
    assert check_table(Overtaken(long), ".csv").ok
    ended.set()
    slow.join()
    assert found[0].problems == ()


@pytest.mark.parametrize(("length", "codes"), [(50, []), (51, ["line_too_long"])])
def test_a_csv_row_may_be_as_long_as_a_line(tmp_path: Path, length: int, codes: list[str]):
    field = b"x\n" * ((length - 5) // 2) + b"x" * ((length - 5) % 2)
    path = written(tmp_path, "rows.csv", b'a,b\n"' + field + b'",yz\n1,2\n')
    rows = read(path, "a", limits=DataLimits(max_line_bytes=50))
    assert [row.code for row in rows if isinstance(row, Problem)][:1] == codes


def test_a_bad_line_inside_a_csv_row_is_named_itself(tmp_path: Path):
    for bad in (b"\0", b"\xff"):
        path = written(tmp_path, "rows.csv", b'a,b\n"x\n' + bad + b'\ny",1\n')
        assert read(path, "a")[0].line == 3
    open_quote = written(tmp_path, "rows.csv", 'a,b\n1,2\n"x,1\n3,4\n')
    _, problem = read(open_quote, "a")
    assert str(problem) == (
        "line 3: not valid CSV: a quoted field is never closed; close it, or double a quote that "
        "is text."
    )


def test_names_out_of_a_damaged_file_can_be_printed_and_stored(tmp_path: Path):
    pq.write_table(pa.table({"a\0\x1b[31m": ["x"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataInvalid, match=r"its columns are: a\\x00\\x1b\[31m\. Say") as failure:
        read(tmp_path / "rows.parquet", "b")
    assert failure.value.message.isprintable()


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_header(tmp_path: Path):
    path = written(tmp_path, "rows.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert read(path, "a")[0].values == {"a": "1"}


def test_bad_jsonl_rows_are_named(tmp_path: Path):
    path = written(tmp_path, "rows.jsonl", '{"a": 1}\n[1]\n{"a": \n\n{"b": 2}\n')
    rows = read(path, "a")
    assert problems(rows) == [(2, "wrong_type"), (3, "invalid_json")]
    # what a missing column means is the task's business
    assert [row.values for row in rows if isinstance(row, Row)] == [{"a": 1}, {}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_missing_column_names_those_that_there_are(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("text,label\nx,1\n")
    else:
        pq.write_table(pa.table({"text": ["x"], "label": [1]}), path)
    with pytest.raises(DataInvalid, match=r"no column 'src'; its columns are: text, label"):
        read(path, "src")


def test_files_as_a_whole(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"\.jsonl, \.csv, \.parquet"):
        read_rows(tmp_path / "rows.xlsx", ["a"])
    with pytest.raises(DataInvalid, match="more than one column 'a'"):
        read(written(tmp_path, "twice.csv", "a,a\n1,2\n"), "a")
    twice = pa.table([pa.array(["1"]), pa.array(["2"])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataInvalid, match="more than one column 'a'"):
        read(tmp_path / "twice.parquet", "a")
    for content in ("", "\ufeff", "\n"):
        with pytest.raises(DataInvalid, match=r"empty\.csv has no header"):
            read(written(tmp_path, "empty.csv", content), "a")
    with pytest.raises(DataInvalid, match="cannot be read as Parquet"):
        read(written(tmp_path, "torn.parquet", b"PAR1 and then nothing"), "a")


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_a_damaged_parquet_is_the_files_fault_not_the_disks(tmp_path: Path, compression: str):
    """pyarrow says of damage what it says of a disk: OSError, which callers try again."""
    whole = io.BytesIO()
    table = pa.table({"a": [f"row {n} of many" * 3 for n in range(60)]})
    pq.write_table(table, whole, compression=compression, row_group_size=20)
    draw = random.Random(compression)
    said = []
    for _ in range(200):
        damaged = bytearray(whole.getvalue())
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        report = check_table(io.BytesIO(damaged), ".parquet")
        try:
            read(written(tmp_path, "rows.parquet", bytes(damaged)), "a")
        except DataInvalid as error:
            said.append(error.message)
        else:
            assert report.ok
    assert len(said) > 10
    assert not [message for message in said if "\n" in message or ".." in message]


def test_a_disk_that_fails_is_not_the_files_fault():
    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        check_table(Failing(b"PAR1" * 9), ".parquet")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a;b\n1;2\n", "divide fields by commas"),
        (b"a\tb\n1\t2\n", "divide fields by commas"),
        (b"a,b\r1,2\r", "line 1: .* end lines with LF or CRLF"),
        (b"PK\x03\x04\x14\0\n", "line 1: the file is no CSV but .* a spreadsheet; save it as"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1: .* save as UTF-8"),
    ],
)
def test_other_dialects_are_told_what_to_change(tmp_path: Path, content: bytes, said: str):
    with pytest.raises(DataInvalid, match=said):
        read(written(tmp_path, "rows.csv", content), "a", "b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1\x15\n", "line 1: the file is no JSONL but a Parquet table; name it .parquet"),
        (b'[{"a": 1}]', "line 1: the file is no JSONL but one JSON array"),
    ],
)
def test_a_table_that_is_no_jsonl_is_told_what_it_is(tmp_path: Path, content: bytes, said: str):
    with pytest.raises(DataInvalid, match=said):
        read(written(tmp_path, "rows.jsonl", content), "a")


def test_blanks_around_a_csvs_column_names_are_no_part_of_them(tmp_path: Path):
    (row,) = read(written(tmp_path, "rows.csv", "a, b \n 1,2\n"), "a", "b")
    assert row == Row(line=2, values={"a": " 1", "b": "2"})


def test_columns_are_parsed():
    assert parse_columns("src=document, summary = gold summary,") == {
        "src": "document",
        "summary": "gold summary",
    }
    assert parse_columns("") == {}
    for text in ("src", "src=", "=x", "src=a,src=b"):
        with pytest.raises(InvalidInput):
            parse_columns(text)


NAME = st.text(st.characters(codec="utf-8", exclude_characters=",="), min_size=1).filter(
    lambda text: text.strip()
)


@given(st.dictionaries(NAME.map(str.strip), NAME.map(str.strip), max_size=5))
def test_columns_round_trip(columns: dict[str, str]):
    assert parse_columns(",".join(f"{a}={b}" for a, b in columns.items())) == columns


@given(st.text())
def test_any_columns_parse_or_are_refused(text: str):
    try:
        parsed = parse_columns(text)
    except InvalidInput:
        return
    assert all(field and column for field, column in parsed.items())
