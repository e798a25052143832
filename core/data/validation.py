"""Validation of a whole training file before anything is spent on it.

One pass, one line in memory at a time. Every problem is counted, the first hundred are kept with
line, path inside the example, code and sentence. No input raises anything but a failure to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from core.data.lines import (
    MAX_DEPTH,
    LineError,
    Problem,
    not_jsonl,
    parse_json,
    read_lines,
    too_long,
)
from core.data.oddities import Oddities, texts_of
from core.data.schema import Format, check_example, detect_format, unknown_keys
from core.errors import DataInvalid

MAX_REPORTED: Final = 100
# A file this broken is not the file that was meant; stopping bounds the time it can cost.
MAX_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLimits:
    """What a file may hold. ``min_examples`` 0 leaves the count to the job that uses the file."""

    min_examples: int = 10
    max_examples: int = 1_000_000
    max_line_bytes: int = 1024**2
    max_depth: int = MAX_DEPTH
    #: examples among which repeated ones are found, about 100 bytes each
    max_tracked: int = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What was found. ``n_examples`` counts lines that are examples without a problem.

    ``complete`` is False where reading stopped early: too many problems or examples.
    """

    format: Format | None
    n_examples: int
    n_bytes: int
    problems: tuple[Problem, ...]
    n_problems: int
    warnings: tuple[Problem, ...]
    complete: bool

    @property
    def ok(self) -> bool:
        return not self.n_problems

    @property
    def first_message(self) -> str | None:
        """Such as ``line 17: messages[2].content must be a non-empty string; got null.``"""
        return str(self.problems[0]) if self.problems else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {
            "format": self.format,
            "n_examples": self.n_examples,
            "n_bytes": self.n_bytes,
            "n_problems": self.n_problems,
            "complete": self.complete,
            "problems": [asdict(problem) for problem in self.problems],
            "warnings": [asdict(warning) for warning in self.warnings],
        }

    def raise_if_invalid(self, *, param: str = "training_file") -> None:
        """``param``: training_file or validation_file.

        Raises:
            DataInvalid: code invalid_n_examples with OpenAI's sentence, else invalid_<param>.
        """
        if self.ok:
            return
        first = self.problems[0]
        if first.code == "invalid_n_examples":
            raise DataInvalid(first.message, param=param, code=first.code)
        others = self.n_problems - 1
        more = f" ({others} more in the file's validation report)" if others else ""
        raise DataInvalid(
            f"{first}{more}",
            param=param,
            code=f"invalid_{param}",
            problems=tuple(map(str, self.problems)),
        )


def validate(
    source: BinaryIO | Path | str,
    *,
    limits: DataLimits | None = None,
    name: str = "Training file",
) -> ValidationReport:
    """Check a whole JSONL file. ``name`` opens the sentence about too few examples.

    Raises:
        OSError: the source cannot be read; nothing else is raised, whatever the bytes.
    """
    limits = limits or DataLimits()
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as stream:
            return _Check(limits).run(stream, name)
    return _Check(limits).run(source, name)


def contents(path: Path, limits: DataLimits) -> Iterator[tuple[int, bytes]]:
    """Line and bytes of each example of a JSONL file, as `overlap_warning` compares them."""
    with path.open("rb") as stream:
        for line in read_lines(stream, limits.max_line_bytes):
            if line.raw and not line.raw.isspace():
                yield line.number, line.raw


class _Check:
    """The state of one pass."""

    def __init__(self, limits: DataLimits) -> None:
        self.limits = limits
        self.format: Format | None = None
        self.format_line = 0
        self.line = 0
        self.n_lines = 0
        self.n_examples = 0
        self.n_bytes = 0
        self.n_problems = 0
        self.problems: list[Problem] = []
        self.oddities = Oddities(limits.max_tracked)
        self.extra_keys: dict[str, int] = {}

    def run(self, source: BinaryIO, name: str) -> ValidationReport:
        first_blank: int | None = None
        n_blank = 0
        complete = True
        for line in read_lines(source, self.limits.max_line_bytes):
            self.line, raw, n_bytes = line
            self.n_bytes += n_bytes
            if self.line == 1 and raw is not None and (reason := not_jsonl(raw)) is not None:
                self._report("", "not_jsonl", reason)
                complete = False
                break
            if raw is None:
                self._report("", "line_too_long", too_long(self.limits.max_line_bytes))
                self.n_lines += 1
            elif not raw or raw.isspace():
                first_blank = first_blank or self.line
                n_blank += 1
            else:
                if first_blank is not None:
                    self._report_blank(first_blank)
                    first_blank = None
                self.n_lines += 1
                self._check_line(raw)
            if self._is_hopeless(n_blank, first_blank):
                complete = False
                break
        return self._finish(name, complete)

    def _report(self, path: str, code: str, message: str, line: int | None = None) -> None:
        self.n_problems += 1
        if len(self.problems) < MAX_REPORTED:
            number = self.line if line is None else line
            self.problems.append(Problem(line=number, path=path, code=code, message=message))

    def _report_blank(self, first: int) -> None:
        message = "the line is blank; blank lines may only stand at the end of the file."
        self._report("", "blank_line", message, first)

    def _check_line(self, raw: bytes) -> None:
        before = self.n_problems
        try:
            value = parse_json(raw, self.limits.max_depth)
        except LineError as error:
            self._report("", error.code, error.message)
            return
        form = detect_format(value, self._report)
        if form is None:
            return
        if self.format is None:
            self.format, self.format_line = form, self.line
        elif form != self.format:
            message = (
                f"the example is in {form} format, but line {self.format_line} is in "
                f"{self.format} format; keep to one format in a file."
            )
            self._report("", "mixed_formats", message)
            return
        check_example(value, form, self._report)
        if len(self.extra_keys) < MAX_REPORTED:
            for key in unknown_keys(value, form):
                self.extra_keys.setdefault(key[:40], self.line)
        if self.n_problems == before:
            self.n_examples += 1
            self.oddities.take(self.line, raw, texts_of(raw, value))

    def _is_hopeless(self, n_blank: int, first_blank: int | None) -> bool:
        if n_blank >= MAX_COUNTED and first_blank is not None:
            self._report_blank(first_blank)
        if self.n_lines > self.limits.max_examples:
            message = f"the file has more than {self.limits.max_examples} examples; split it."
            self._report("", "too_many_examples", message)
            return True
        return n_blank >= MAX_COUNTED or self.n_problems >= MAX_COUNTED

    def _finish(self, name: str, complete: bool) -> ValidationReport:
        if complete and self.n_lines < self.limits.min_examples:
            message = (
                f"{name} has {self.n_lines} example(s), but must have at least "
                f"{self.limits.min_examples} examples"
            )
            self.n_problems += 1
            too_few = Problem(line=None, path="", code="invalid_n_examples", message=message)
            self.problems = [*self.problems[: MAX_REPORTED - 1], too_few]
        return ValidationReport(
            format=self.format,
            n_examples=self.n_examples,
            n_bytes=self.n_bytes,
            problems=tuple(self.problems),
            n_problems=self.n_problems,
            warnings=tuple(self._warnings()),
            complete=complete,
        )

    def _warnings(self) -> list[Problem]:
        found = self.oddities.warnings()
        for key, line in self.extra_keys.items():
            message = f"the key {key!r} is not part of the {self.format} format and is ignored."
            found.append(Problem(line=line, path=key, code="unknown_key", message=message))
        return found
