"""What a training process stands on."""

from __future__ import annotations

from sqlalchemy import text

from core.settings import Settings
from worker.world import open_jobs


def test_a_silent_transaction_of_a_worker_ends_before_its_lease(postgres_url: str):
    """One that was frozen in the middle of it holds rows that others pass over."""
    database = open_jobs(Settings(database_url=postgres_url, lease_s=15.0))
    with database.read() as session:
        shown = session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
    database.dispose()
    assert shown == "7500ms"
