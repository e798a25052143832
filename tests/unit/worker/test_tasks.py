"""What messages ask of a worker, while the database that they need is away."""

from __future__ import annotations

import logging
from typing import NoReturn

import pytest
from celery import Celery

from core.errors import Unavailable
from core.wire import REVISE, SWEEP, TIDY
from worker.tasks import register


def away() -> NoReturn:
    raise Unavailable("The database is not available at the moment; try again.")


@pytest.mark.parametrize("name", [SWEEP, REVISE, TIDY])
def test_a_database_that_is_away_is_a_line_in_the_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every sweep of an outage, one in ten seconds, left three tracebacks at the level of errors;
    the next one does the work.
    """
    with Celery("test", broker="memory://", set_as_current=False) as app:
        register(app, wake=away, sweep=away, revise=away, tidy=away)
        with caplog.at_level(logging.INFO):
            assert app.tasks[name].apply().state == "SUCCESS"
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert name in told[0].getMessage()
    assert "The database is not available" in told[0].getMessage()
    assert told[0].exc_info is None
