"""What the processes of a worker have to say."""

from __future__ import annotations

import logging
import sys
from typing import Final

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """A line each, with its time."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr)
    # a line for every sweep, several times a minute, would bury what happens to jobs
    for name in ("celery.beat", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
