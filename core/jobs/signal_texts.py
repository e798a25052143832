"""The shared cache of live carbon signals: texts by key, in transactions of their own."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from core.errors import Unavailable
from core.jobs.database import Database
from core.jobs.store.rows import FRESH, insert_on_conflict
from core.jobs.tables import SignalText


class SignalTexts:
    """What a signal has told is true whatever becomes of the caller's transaction, and worth no
    failure: with the database away nothing is known, and nothing is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, key: str) -> str | None:
        try:
            with self._database.read() as session:
                return session.scalars(
                    select(SignalText.text).where(SignalText.key == key)
                ).one_or_none()
        except (Unavailable, SQLAlchemyError):
            return None

    def save(self, key: str, text: str) -> None:
        values = {"text": text, "updated_at": datetime.now(UTC)}
        try:
            with self._database.transaction() as session:
                statement = insert_on_conflict(session, SignalText).values(key=key, **values)
                session.execute(
                    statement.on_conflict_do_update(index_elements=["key"], set_=values),
                    execution_options=FRESH,
                )
        except (Unavailable, SQLAlchemyError):
            return

    def swap(self, key: str, old: str | None, new: str) -> bool:
        values = {"text": new, "updated_at": datetime.now(UTC)}
        try:
            with self._database.transaction() as session:
                if old is None:
                    statement = insert_on_conflict(session, SignalText).values(key=key, **values)
                    found = session.execute(
                        statement.on_conflict_do_nothing().returning(SignalText.key)
                    )
                else:
                    found = session.execute(
                        update(SignalText)
                        .where(SignalText.key == key, SignalText.text == old)
                        .values(**values)
                        .returning(SignalText.key),
                        execution_options=FRESH,
                    )
                return found.first() is not None
        except (Unavailable, SQLAlchemyError):
            return True
