"""The tasks of the GreenTrainer paper: how a row of a table becomes a prompt and its answer.

Templates are the paper's (arXiv 2309.13192, section 4); ``</s>`` stands for the end token of the
model at hand. The loss is taken on the answer alone, which is the last field, and on the end token
after it. Where a row has several answers (a list), the first is learned and all count as right in
evaluation; a list in any other field is one text, its parts joined by blanks.

A prompt that is longer than allowed is cut by the tokeniser (`core.data.tokens`); the template's
words after the last field, such as `` TL;DR:``, stay whichever end is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from core.data.formats import Example
from core.data.lines import Problem
from core.data.oddities import Oddities
from core.data.schema import show
from core.data.tables import Row, read_rows
from core.data.validation import MAX_REPORTED, DataLimits, ValidationReport
from core.errors import DataInvalid, InvalidInput, ModelUnsupported

END: Final = "</s>"
_FIELD = re.compile(r"\{(\w+)\}")
_SHAPE = re.compile(r"(?P<prompt>.*\S)(?P<blank> ?)\{(?P<answer>\w+)\}(?:</s>)?", re.DOTALL)
# a list of texts as Python, numpy and JSON print it; its repetitions give nothing back, so that no
# text takes long
_QUOTED: Final = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_WRITTEN_LIST = re.compile(rf"\[\s*{_QUOTED}(?:\s*+(?:,\s*)?{_QUOTED})*+\s*,?\s*\]", re.DOTALL)
_SUMMARY: Final = "{src} TL;DR: {summary}"
_ROUGE: Final = ("rouge1", "rouge2", "rougeL")


#: of the hub: its own Parquet copy of a data set
PARQUET_BRANCH: Final = "refs/convert/parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A data set on the hub.

    ``files``: pattern of the files of a split, with ``{split}`` in it; None: as the set says.
    ``splits``: those that have answers.
    """

    name: str
    splits: tuple[str, ...]
    revision: str | None = None
    files: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A template and what goes with it.

    ``columns``: field of the template -> column of ``hub``; local files are read the same way
    unless told otherwise. ``metrics`` and ``max_new_tokens``: of an evaluation that does not say.
    """

    name: str
    template: str
    columns: Mapping[str, str]
    hub: HubSet
    metrics: tuple[str, ...]
    max_new_tokens: int

    @property
    def prompt(self) -> str:
        """The template up to the answer, without the blank before it."""
        return self._part("prompt")

    @property
    def blank(self) -> str:
        """What divides the prompt from the answer in one text; belongs to the answer's tokens."""
        return self._part("blank")

    @property
    def answer(self) -> str:
        """The field that is learned and asked for."""
        return self._part("answer")

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(_FIELD.findall(self.template))

    @property
    def evaluation_split(self) -> str:
        """The hub's split to evaluate on: validation, else test."""
        return next(name for name in ("validation", "test") if name in self.hub.splits)

    def named_columns(self, columns: Mapping[str, str] | None = None) -> dict[str, str]:
        """Field -> column: as ``columns`` says, else as on the hub.

        Raises:
            InvalidInput: ``columns`` names a field that the template has not.
        """
        chosen = dict(columns or {})
        for field in chosen:
            if field not in self.fields:
                raise InvalidInput(
                    f"The task {self.name} has no field {field!r}; its fields are: "
                    f"{', '.join(self.fields)}.",
                    param="columns",
                )
        return {field: chosen.get(field, self.columns[field]) for field in self.fields}

    def _part(self, name: str) -> str:
        match = _SHAPE.fullmatch(self.template)
        assert match is not None, "a template ends with its answer"
        return match[name]


_TASKS: Final = (
    Task(
        name="scitldr",
        template=_SUMMARY,
        columns={"src": "source", "summary": "target"},
        hub=HubSet(
            name="allenai/scitldr",
            revision=PARQUET_BRANCH,
            files="Abstract/{split}/*.parquet",
            splits=("train", "validation", "test"),
        ),
        metrics=_ROUGE,
        max_new_tokens=64,
    ),
    Task(
        name="dialogsum",
        template=_SUMMARY,
        columns={"src": "dialogue", "summary": "summary"},
        hub=HubSet(name="knkarthick/dialogsum", splits=("train", "validation", "test")),
        metrics=_ROUGE,
        max_new_tokens=96,
    ),
    Task(
        name="webquestions",
        template="question:{q}</s>answer:{a}</s>",
        columns={"q": "question", "a": "answers"},
        hub=HubSet(name="stanfordnlp/web_questions", splits=("train", "test")),
        metrics=("exact_match", "f1"),
        max_new_tokens=32,
    ),
    Task(
        name="piqa",
        template="goal:{goal}</s>sol1:{sol1}</s>sol2:{sol2}</s>label:{label}</s>",
        columns={"goal": "goal", "sol1": "sol1", "sol2": "sol2", "label": "label"},
        hub=HubSet(
            name="ybisk/piqa",
            revision=PARQUET_BRANCH,
            files="**/{split}/*.parquet",
            # the test split's labels are secret
            splits=("train", "validation"),
        ),
        metrics=("accuracy",),
        max_new_tokens=4,
    ),
)
TASKS: Final[Mapping[str, Task]] = {task.name: task for task in _TASKS}


def task_named(name: str) -> Task:
    """Raises InvalidInput, naming the known ones, for any other name."""
    task = TASKS.get(name)
    if task is None:
        raise InvalidInput(
            f"There is no task {name!r}; there are: {', '.join(TASKS)}.", param="task"
        )
    return task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """Rows for ``task`` in the local table ``path``.

    ``columns``: field -> column where it differs from the task's own; see `Task.named_columns`.
    """

    task: Task
    path: Path
    columns: Mapping[str, str] | None = None
    limits: DataLimits | None = None

    def check(self, *, min_examples: int = 1, name: str = "Training file") -> ValidationReport:
        """Every row, before anything is spent on it.

        ``name`` opens the sentence about too few examples.

        Raises:
            InvalidInput, DataInvalid: as `read_rows`.
        """
        columns = self.task.named_columns(self.columns)
        problems: list[Problem] = []
        oddities = Oddities((self.limits or DataLimits()).max_tracked)
        n_problems = n_rows = 0
        for row in self._rows(columns):
            n_rows += 1
            problem = row if isinstance(row, Problem) else _problem_of(self.task, row, columns)
            if problem is not None:
                n_problems += 1
                problems = [*problems, problem][:MAX_REPORTED]
            elif isinstance(row, Row):
                texts = _all_texts(row, columns)
                oddities.take(row.line, _content(texts), chain.from_iterable(texts))
        n_examples = n_rows - n_problems
        if n_rows < min_examples:
            message = (
                f"{name} has {n_rows} example(s), but must have at least {min_examples} examples"
            )
            n_problems += 1
            too_few = Problem(line=None, path="", code="invalid_n_examples", message=message)
            problems = [*problems[: MAX_REPORTED - 1], too_few]
        return ValidationReport(
            format="completion",
            n_examples=n_examples,
            n_bytes=self.path.stat().st_size,
            problems=tuple(problems),
            n_problems=n_problems,
            warnings=tuple(oddities.warnings()),
            complete=True,
        )

    def examples(self, *, eos: str | None, is_pair: bool) -> Iterator[Example]:
        """The rows in order, written by `render` for the model at hand.

        Raises:
            DataInvalid: at the first bad row, with its line.
            ModelUnsupported: as `render`.
            InvalidInput: as `read_rows`.
        """
        columns = self.task.named_columns(self.columns)
        for row in self._rows(columns):
            if isinstance(row, Problem):
                raise DataInvalid(str(row))
            yield render(self.task, row, columns, eos=eos, is_pair=is_pair)

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Line and fields of each sound row, as `core.data.oddities.overlap_warning` compares
        them.

        Raises:
            InvalidInput, DataInvalid: as `read_rows`.
        """
        columns = self.task.named_columns(self.columns)
        for row in self._rows(columns):
            if isinstance(row, Row):
                yield row.line, _content(_all_texts(row, columns))

    def _rows(self, columns: Mapping[str, str]) -> Iterator[Row | Problem]:
        # two fields may share a column
        names = tuple(dict.fromkeys(columns.values()))
        return read_rows(self.path, names, limits=self.limits)


def render(
    task: Task, row: Row, columns: Mapping[str, str], *, eos: str | None, is_pair: bool
) -> Example:
    """``row`` as prompt and answer.

    Args:
        columns: field -> column, for all fields (`Task.named_columns`).
        eos: the text of the model's end token.
        is_pair: for an encoder-decoder model: the answer stands alone, so no blank precedes it.

    Raises:
        DataInvalid: a field is missing, empty or no text, or holds the end token where that would
            change the template's meaning; with line and column.
        ModelUnsupported: the template needs an end token and the model has none.
    """
    problem = _problem_of(task, row, columns)
    if problem is not None:
        raise DataInvalid(str(problem))
    if END in task.prompt and not eos:
        raise ModelUnsupported(
            f"The template of the task {task.name} holds the model's end token, but this model's "
            "tokenizer has none.",
            param="task",
        )
    texts = {field: _texts(row.values[columns[field]]) for field in task.fields}
    _refuse_end_tokens(task, row.line, columns, texts, eos)
    template = task.prompt.replace(END, eos or "")
    # one pass: braces in the data are data
    prompt = _FIELD.sub(lambda match: " ".join(texts[match[1]]), template)
    answers = texts[task.answer]
    return Example(
        line=row.line,
        prompt=prompt,
        prompt_end=_FIELD.split(template)[-1],
        completion=answers[0] if is_pair else task.blank + answers[0],
        references=answers,
    )


def _problem_of(task: Task, row: Row, columns: Mapping[str, str]) -> Problem | None:
    for field in task.fields:
        column = columns[field]
        value = row.values.get(column)
        texts = _texts(value)
        if not texts:
            got = _shown(value) if column in row.values else "nothing"
            code = "wrong_type"
            message = f"{column} must be a text, a whole number or a list of texts; got {got}."
        elif any("\0" in text for text in texts):
            code = "nul_character"
            message = f"{column} holds the NUL character; remove it."
        elif isinstance(value, str) and _WRITTEN_LIST.fullmatch(texts[0]):
            code = "list_as_text"
            message = (
                f"{column} holds a list that is written as a text, {show(value)}; give the rows as "
                "JSONL or Parquet, which have lists, or one plain text."
            )
        else:
            continue
        return Problem(line=row.line, path=column, code=code, message=message)
    return None


def _all_texts(row: Row, columns: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Of each field, in the template's order."""
    return [_texts(row.values.get(column)) for column in columns.values()]


def _content(texts: list[tuple[str, ...]]) -> bytes:
    """Equal for rows that are trained on alike."""
    return repr(texts).encode()


def _refuse_end_tokens(
    task: Task,
    line: int,
    columns: Mapping[str, str],
    texts: Mapping[str, tuple[str, ...]],
    eos: str | None,
) -> None:
    if not eos:
        return
    structural = task.fields if END in task.prompt else (task.answer,)
    for field in structural:
        if any(eos in text for text in texts[field]):
            raise DataInvalid(
                f"line {line}: {columns[field]} holds {eos!r}, which is this model's end token; "
                "remove it."
            )


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a field, stripped; none where it has no usable one."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        value = (value,)
    elif not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        return ()
    parts: Iterable[Any] = value
    return tuple(text for part in parts if (text := str(part).strip()))


def _shown(value: object) -> str:
    try:
        return show(value)
    except (TypeError, ValueError):  # a table's own type, such as a date
        return f"a {type(value).__name__}"
