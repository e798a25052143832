"""Column types that give Python what it wants on Postgres and SQLite alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import JSON, DateTime, Dialect, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

from core.moments import as_utc

T = TypeVar("T")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out. SQLite keeps text without a zone, which sorts like the time it says."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = as_utc(value)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002  SQLAlchemy fixes the signature
    ) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FreeText(TypeDecorator[str]):
    """Text that may quote anything, e.g. a line of somebody's file; see `storable`."""

    impl = Text
    cache_ok = True

    def process_bind_param(
        self,
        value: str | None,
        dialect: Dialect,  # noqa: ARG002  as above
    ) -> str | None:
        return None if value is None else storable(value)


class AsJson(TypeDecorator[Any]):
    """A Python value kept as JSON (JSONB on Postgres); None is SQL's NULL.

    Its strings are kept as `storable` ones, and numbers that are not finite as null, which is all
    that JSON has for them.
    """

    impl = JSON
    cache_ok = True

    def __init__(
        self, load: Callable[[Any], Any] | None = None, dump: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(none_as_null=True)
        self.load = load
        self.dump = dump

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(JSON(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  as above
        return None if value is None else _plain(value if self.dump is None else self.dump(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  as above
        return value if value is None or self.load is None else self.load(value)


def storable(text: str) -> str:
    """``text`` without what no database keeps: NUL and half surrogate pairs become U+FFFD."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def flat_record(kind: type[Any]) -> AsJson:
    """A frozen dataclass whose fields are JSON values.

    Fields that it does not know are left out: a newer release may be writing beside this one.
    """
    return AsJson(load=_loader(kind), dump=asdict)


def flat_records(kind: type[Any]) -> AsJson:
    """A tuple of such dataclasses."""
    load = _loader(kind)
    return AsJson(
        load=lambda raw: tuple(load(item) for item in raw),
        dump=lambda records: [asdict(record) for record in records],
    )


def _loader(kind: type[Any]) -> Callable[[dict[str, Any]], Any]:
    names = {f.name for f in fields(kind)}
    return lambda raw: kind(**{name: value for name, value in raw.items() if name in names})
