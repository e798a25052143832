"""A task, its columns and metrics as they are typed: `greentune run` and `submit` read them alike.

Which tasks, fields and metrics there are is judged where they are used.
"""

from __future__ import annotations

from core.data.tables import parse_columns
from core.errors import MissingParameter
from core.spec import TaskOptions


def parse_task(name: str | None, columns: str) -> TaskOptions | None:
    """A task by its name, with ``columns`` such as ``src=document,summary=gold``.

    Raises:
        InvalidInput: columns that are no pairs.
        MissingParameter: columns of no task.
    """
    named = parse_columns(columns)
    if name is not None:
        return TaskOptions(name=name, columns=named)
    if named:
        raise MissingParameter("Columns belong to a task's template; say which --task.")
    return None


def parse_metrics(text: str) -> tuple[str, ...]:
    """``rougeL, f1`` as names; blanks around them go."""
    return tuple(map(str.strip, text.split(",")))
