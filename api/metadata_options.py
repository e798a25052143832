"""``green.*`` keys in a job's metadata: our options from clients that can send no key of their own.

Metadata holds strings only, so a value is read as JSON where its option takes what that yields, and
as the string itself otherwise. The keys stay in the metadata: they are labels as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from api.errors import invalid_input
from api.schemas import CreateJob, GreenIn, Request
from core.errors import InvalidInput, UnknownParameter

PREFIX = "green."


def _adapters(block: type[Request], prefix: str) -> Iterator[tuple[str, TypeAdapter[Any]]]:
    for name, field in block.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) if isinstance(kind, type)]
        inner = [kind for kind in kinds if issubclass(kind, Request)]
        if inner:
            yield from _adapters(inner[0], f"{prefix}{name}.")
        else:
            # the field too: it carries the limits that stand beside its type
            checked: Any = Annotated[field.annotation, field]
            yield f"{prefix}{name}", TypeAdapter(checked, config=Request.model_config)


#: metadata key -> what checks its value
_OPTIONS = dict(_adapters(GreenIn, PREFIX))


def request_with_options(request: CreateJob) -> Iterator[CreateJob]:
    """A dependency: the merged request. Where one of its options is refused later on, by whomever,
    the answer's ``param`` is the metadata key that gave it.
    """
    try:
        yield merge_options(request)
    except InvalidInput as error:
        if error.param in _given(request):
            error.param = f"metadata.{error.param}"
        raise


def merge_options(request: CreateJob) -> CreateJob:
    """``request`` with the options of its metadata in ``green``, key by key. Null is not given.

    Raises:
        UnknownParameter: no such option.
        InvalidInput: a value that the option does not take, or not the one that ``green`` gives.
        MissingParameter: an option whose block lacks what it needs, such as a task's name.
    """
    given = _given(request)
    if not given:
        return request
    green = {} if request.green is None else request.green.model_dump(exclude_none=True)
    for key, text in given.items():
        value = _value(key, text)
        if value is None:
            continue
        *blocks, name = key.removeprefix(PREFIX).split(".")
        block = green
        for outer in blocks:
            block = block.setdefault(outer, {})
        if block.setdefault(name, value) != value:
            raise InvalidInput(
                f"metadata.{key} is {text!r} and {key} another value; give one of them.",
                param=f"metadata.{key}",
            )
    try:
        merged = GreenIn.model_validate(green)
    except ValidationError as error:
        problem = error.errors()[0]
        location = ("body", "green", *problem["loc"])
        raise invalid_input({**problem, "loc": location}, {"green": green}) from error
    return request.model_copy(update={"green": merged})


def _given(request: CreateJob) -> dict[str, str]:
    labels = request.metadata or {}
    return {key: text for key, text in labels.items() if key.startswith(PREFIX)}


def _value(key: str, text: str) -> Any:
    adapter = _OPTIONS.get(key)
    if adapter is None:
        raise UnknownParameter(f"Unknown parameter: metadata.{key}.", param=f"metadata.{key}")
    problems = []
    for reading in _readings(text):
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            problems.append(error.errors()[0])
    location = ("body", "metadata", key)
    raise invalid_input({**problems[0], "loc": location}, {"metadata": {key: text}})


def _readings(text: str) -> list[Any]:
    try:
        return [json.loads(text), text]
    except (ValueError, RecursionError):
        return [text]
