"""The Celery app and the worker process around it.

``python -m worker worker`` is one process: Celery hears nudges, the supervisor's slots claim and
run jobs in training processes, and (unless told otherwise) a beat thread asks for a sweep. The
supervisor does not need the broker: with the broker down, work waits for the next look at the
database, nothing else.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from celery import Celery
from celery.beat import EmbeddedService
from celery.signals import worker_shutting_down

from core.carbon.signal import LiveOptions, open_signal
from core.errors import Unavailable
from core.jobs import store
from core.jobs.database import Database, now, open_database
from core.jobs.records import Claim
from core.jobs.signal_texts import SignalTexts
from core.objects.opening import open_store
from core.settings import Settings, read_settings
from core.wire import CONTROL_QUEUE, JOBS_QUEUE, REVISE, SWEEP, TIDY
from worker import tasks
from worker.logs import log_to_stderr
from worker.revision import revise
from worker.supervisor import Supervisor, Terms
from worker.tidying import tidy
from worker.world import open_jobs

logger = logging.getLogger(__name__)

# Providers replace their estimates within hours to days.
REVISE_EVERY_S: Final = 3_600.0
TIDY_EVERY_S: Final = 60.0
# Most tasks last milliseconds; further threads let a sweep wait for the database, a revision for
# the grid's provider, and a removal for the object store, without holding up a nudge. Jobs run in
# the supervisor's slots, never here.
TASK_THREADS: Final = 3
# In memory: the sweep is due soon after every start anyway, and a schedule file would be one more
# thing to keep.
BEAT_SCHEDULER: Final = "celery.beat:Scheduler"


def make_app(settings: Settings) -> Celery:
    """The Celery app for these settings; no connection is made."""
    app = Celery("greentune-worker", set_as_current=False)
    app.conf.update(configuration(settings))
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Every setting that differs from Celery's default, and why."""
    return {
        "broker_url": settings.resolved_broker_url,
        # JSON only: an unpickled message would run code
        "accept_content": ["json"],
        "task_serializer": "json",
        # Early ack, stated because all rests on it: a message is done when it was heard. Late
        # acks would be redelivered after the visibility timeout and lost with a killed worker.
        "task_acks_late": False,
        # nobody reads results; the row is the truth
        "task_ignore_result": True,
        "result_backend": None,
        "task_default_queue": JOBS_QUEUE,
        "task_routes": {SWEEP: {"queue": CONTROL_QUEUE}},
        # forever: Celery's 100 tries would end the worker in a long outage of the broker
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_connection_timeout": 5.0,
        "broker_transport_options": {
            # a broker that went silent must raise, or the worker hangs on a dead socket
            "socket_connect_timeout": 5.0,
            "socket_timeout": 15.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        # threads: tasks only wake other threads; nothing may be forked (torch, CUDA, codecarbon)
        "worker_pool": "threads",
        "worker_concurrency": TASK_THREADS,
        # one message per thread: a nudge held in a busy worker's memory is of use to nobody
        "worker_prefetch_multiplier": 1,
        # jobs are steered through their rows; remote control would be a second way in, and
        # revoke/terminate is known to hit the wrong task
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "beat_schedule": {
            "sweep": {
                "task": SWEEP,
                "schedule": settings.sweep_every_s,
                # after an outage of the broker one sweep is due, not an hour's worth
                "options": {"queue": CONTROL_QUEUE, "expires": settings.sweep_every_s},
            },
            "revise": {
                "task": REVISE,
                "schedule": REVISE_EVERY_S,
                "options": {"queue": CONTROL_QUEUE, "expires": REVISE_EVERY_S},
            },
            "tidy": {
                "task": TIDY,
                "schedule": TIDY_EVERY_S,
                "options": {"queue": CONTROL_QUEUE, "expires": TIDY_EVERY_S},
            },
        },
    }


def work(*, slots: int | None = None, beat: bool = True) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit status.

    The first signal drains: trainings checkpoint, release their jobs and end. The second hurries:
    they are killed, and their jobs resume from the last checkpoint.

    Args:
        slots: jobs trained at a time; None: as set.
        beat: also ask for sweeps (idempotent: any number of workers may).
    """
    log_to_stderr()
    settings = read_settings()
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    database = open_jobs(settings)
    slots = slots or settings.worker_slots
    supervisor = Supervisor(
        database=database,
        terms=terms_of(settings),
        command=lambda claim: training_command(claim, shares_host=slots > 1),
        name=name,
        slots=slots,
    )

    def on_signal(*_: object, **__: object) -> None:
        if supervisor.is_draining:
            supervisor.hurry()
        else:
            supervisor.drain()

    app = make_app(settings)
    tasks.register(
        app,
        wake=supervisor.wake,
        sweep=supervisor.sweep,
        revise=partial(revise_accounts, settings, database),
        tidy=partial(tidy, database, open_store(**settings.objects_access)),
    )
    worker_shutting_down.connect(on_signal, weak=False)
    supervisor.start()
    try:
        status = _listen(app, name, beat=beat)
    finally:
        # Celery's own handlers are of no use any more; it may also have ended unasked
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        supervisor.drain()
        supervisor.join()
        database.dispose()
    return status


def revise_accounts(settings: Settings, database: Database) -> int:
    """Stored samples at the intensities that the grid has told since; how many changed. Recorded
    and yearly values never change: only a live signal is asked.
    """
    if settings.carbon_signal in ("static", "trace"):
        return 0
    grid = open_signal(
        settings.carbon_signal,
        live=LiveOptions(**settings.carbon_access, store=SignalTexts(database)),
    )
    return revise(
        database,
        grid,
        pue=settings.pue,
        embodied_g_per_hour=settings.embodied_g_per_hour,
        now=datetime.now(UTC),
    )


def _listen(app: Celery, name: str, *, beat: bool) -> int:
    """Hear messages until told to stop."""
    worker = app.Worker(
        hostname=f"greentune@{name}",
        queues=[JOBS_QUEUE, CONTROL_QUEUE],
        loglevel="INFO",
        quiet=True,
        # these talk to other workers over the broker, for features that we do not use
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    if not beat:
        worker.start()
        return int(worker.exitcode or 0)
    clock = EmbeddedService(app, thread=True, scheduler_cls=BEAT_SCHEDULER)
    clock.start()
    try:
        worker.start()
    finally:
        clock.service.stop()
    return int(worker.exitcode or 0)


def is_present(within_s: float = 30.0) -> bool:
    """Whether a worker on this host has reported to the database lately: a container's health."""
    database = open_database(read_settings().resolved_database_url)
    try:
        with database.read() as session:
            workers = store.live_workers(session, now=now(session), within_s=within_s)
    except Unavailable:
        return False
    finally:
        database.dispose()
    return any(worker.name.startswith(f"{socket.gethostname()}-") for worker in workers)


def terms_of(settings: Settings) -> Terms:
    return Terms(
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        poll_s=settings.sweep_every_s,
        max_attempts=settings.max_attempts,
        outage_grace_s=settings.lease_s,
    )


def training_command(claim: Claim, *, shares_host: bool) -> list[str]:
    """The training process of one claim; it reads the job from the database."""
    command = [sys.executable, "-m", "worker", "train-child"]
    command += ["--job", claim.job_id, "--fence", str(claim.fence)]
    return [*command, "--shares-host"] if shares_host else command
