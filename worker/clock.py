"""The clock of a deployment that runs it apart from its workers: it asks for sweeps, and nothing
else. Its pulse is a file in the home folder, touched whenever the broker has taken a request.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from celery.beat import ScheduleEntry, Scheduler

from core.settings import Settings, read_settings
from worker.app import make_app
from worker.logs import log_to_stderr

#: requests that may be late or lost before the clock counts as stopped
_PATIENCE: Final = 4


class PulsedScheduler(Scheduler):
    """Celery's own, in memory, with a pulse."""

    def apply_async(self, entry: ScheduleEntry, *args: Any, **kwargs: Any) -> Any:
        sent = super().apply_async(entry, *args, **kwargs)
        _pulse_file(read_settings()).touch()
        return sent


def beat() -> None:
    """Ask for sweeps until told to stop."""
    log_to_stderr()
    settings = read_settings()
    pulse = _pulse_file(settings)
    pulse.parent.mkdir(parents=True, exist_ok=True)
    # an earlier clock's pulse says nothing about this one
    pulse.unlink(missing_ok=True)
    make_app(settings).Beat(
        scheduler_cls=f"{__name__}:{PulsedScheduler.__name__}", quiet=True
    ).run()


def is_beating() -> bool:
    """Whether this host's clock has reached the broker lately: a container's health."""
    settings = read_settings()
    try:
        asked_s = _pulse_file(settings).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - asked_s < _PATIENCE * settings.sweep_every_s


def _pulse_file(settings: Settings) -> Path:
    return settings.home.expanduser() / "beat.pulse"
