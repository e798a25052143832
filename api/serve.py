"""`greentune serve`: broker, worker and API on one machine, started and stopped together.

Everything is checked before anything starts, and what was started is stopped in reverse order,
whatever ends the block: Ctrl-C, SIGTERM, or a failure half-way. Children are in sessions of their
own, so that a terminal's Ctrl-C reaches this process alone and the order holds, and tethered, so
that they go even when this process is killed outright.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from rich.console import Console

from api.broker import running_broker
from api.deps import Services
from api.edge import saying
from api.home import private_folder, reason_of
from api.main import create_app
from api.routes.health import OUTSIDE, missing_parts
from api.tether import tethered
from core.errors import StartRefused
from core.jobs import keys
from core.jobs.database import open_database
from core.settings import Settings
from migrations import upgrade

#: what the line that names the URL begins with, for whoever started us
READY = "greentune is ready at "
STOPPING = "Stopping: a running job is checkpointed first; Ctrl-C again stops at once."
# Below this, SQLite, the broker's log and a small model's checkpoint do not fit.
MIN_FREE_BYTES = 256 * 1024**2
# Longer than the worker's own grace for a checkpoint; then it is killed.
WORKER_STOP_TIMEOUT_S = 180.0
# A worker that ran this long was well: the next restart is immediate again.
WORKER_WELL_AFTER_S = 60.0
RESTART_FIRST_S = 1.0
RESTART_MAX_S = 60.0
# Idle keep-alive connections and slow pollers do not hold up a stop for longer.
API_STOP_TIMEOUT_S = 5


def serve(settings: Settings, console: Console, *, with_worker: bool) -> None:
    """Run until a signal; raises what the signal raises once everything has stopped.

    Raises:
        StartRefused: home, disk, port, broker or database does not allow a start.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    stopped = f"Stopped; nothing runs on, and the state is kept in {settings.home}."
    with saying(console, stopped), ExitStack() as running:
        home = prepare_home(settings.home, min_free_bytes=MIN_FREE_BYTES)
        running.enter_context(locked(home))
        listener = running.enter_context(listening(settings.host, settings.port))
        settings = settings.model_copy(update={"home": home})
        # uploads lie there until they are stored; /tmp may be small, or memory
        tempfile.tempdir = str(home / "tmp")
        upgrade(settings.resolved_database_url)
        if settings.broker_url is None:
            running.enter_context(running_broker(home / "broker", settings.broker_socket))
        app = create_app(settings)
        if with_worker:
            running.enter_context(running_worker(worker_environment(settings), console))
        _announce(settings, listener, console)
        # an object store that is away is asked for half a minute; the API need not wait for that
        threading.Thread(
            target=_say_what_is_missing, args=(app.state.services, console), daemon=True
        ).start()
        with saying(console, STOPPING):
            _run_api(app, listener)


def prepare_home(home: Path, *, min_free_bytes: int) -> Path:
    """Create the state folder for its owner alone and prove that it can be written to.

    Raises:
        StartRefused: it cannot be created or written, or its disk is full.
    """
    home = home.expanduser().absolute()
    try:
        private_folder(home)
        private_folder(home / "tmp")
        probe = home / "tmp" / "probe"
        with probe.open("wb") as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
        probe.unlink()
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise StartRefused(
            f"The state folder {home} cannot be written ({reason_of(error)}); free its disk, mend "
            "its permissions, or set GREENTUNE_HOME to another folder."
        ) from error
    if free < min_free_bytes:
        raise StartRefused(
            f"The disk of {home} is full: {free // 1024**2} MiB are free and at least "
            f"{min_free_bytes // 1024**2} MiB are needed; free some, or set GREENTUNE_HOME to "
            "another folder."
        )
    return home


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold ``home`` alone; the kernel lets go of it when this process ends, however it ends.

    Raises:
        StartRefused: another `greentune serve` holds it.
    """
    with (home / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise StartRefused(
                f"Another greentune serve{lock.read()} already uses {home}; stop it, or set "
                "GREENTUNE_HOME to another folder."
            ) from error
        lock.truncate(0)
        lock.write(f" (process {os.getpid()})")
        lock.flush()
        yield


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """The API's socket, bound before anything else starts.

    Raises:
        StartRefused: the port is taken or not allowed, or the host is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise StartRefused(
            f"Cannot listen on {host}:{port} ({reason_of(error)}); stop what uses the port, or "
            "choose another with --port."
        ) from error
    with listener:
        yield listener


def worker_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with what `serve` itself decided."""
    return {
        **os.environ,
        "GREENTUNE_HOME": str(settings.home),
        "GREENTUNE_BROKER_URL": settings.resolved_broker_url,
        "TMPDIR": str(settings.home / "tmp"),
    }


@contextmanager
def running_worker(environment: Mapping[str, str], console: Console) -> Iterator[None]:
    """Keep one worker process alive until the block ends, then let it checkpoint and stop."""
    if importlib.util.find_spec("torch") is None:
        console.print(
            "No worker was started: the training stack is not installed (pip install "
            "'greentune\\[worker]'). Jobs wait until a worker joins."
        )
        yield
        return
    keeper = WorkerKeeper([sys.executable, "-m", "worker", "worker"], environment, console.print)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


class WorkerKeeper:
    """Starts a command, and starts it again with a growing wait whenever it ends unasked.

    The command is started from a thread that lives until `stop`: Linux ties a child to the thread
    that started it.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._command = command
        self._environment = environment
        self._say = say
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM, then wait for the checkpoint; a second Ctrl-C or the time limit kills."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.terminate()
        try:
            self._thread.join(WORKER_STOP_TIMEOUT_S)
        except KeyboardInterrupt:
            self._say("Stopping at once; a running job resumes from its last checkpoint.")
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
        self._thread.join()

    def _keep(self) -> None:
        wait_s = RESTART_FIRST_S
        while True:
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(  # noqa: S603  our own worker
                    tethered(self._command),
                    env=dict(self._environment),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            code = self._process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > WORKER_WELL_AFTER_S:
                wait_s = RESTART_FIRST_S
            self._say(f"The worker ended unexpectedly ({code}); it starts again in {wait_s:g} s.")
            if self._stopping.wait(wait_s):
                return
            wait_s = min(2 * wait_s, RESTART_MAX_S)


def _run_api(app: object, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=API_STOP_TIMEOUT_S,
    )
    uvicorn.Server(config).run(sockets=[listener])


def first_key(settings: Settings) -> str | None:
    """A key for a server that has none yet; stored as its hash only."""
    database = open_database(settings.resolved_database_url)
    try:
        with database.transaction() as session:
            if keys.list_keys(session, tenant=settings.organization):
                return None
            return keys.create(
                session, tenant=settings.organization, name="first", now=datetime.now(UTC)
            )
    finally:
        database.dispose()


def _announce(settings: Settings, listener: socket.socket, console: Console) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console.print(f"{READY}http://{shown}:{port}/v1", markup=False, soft_wrap=True)
    console.print(f"  documentation  http://{shown}:{port}/docs", markup=False)
    console.print(f"  state          {settings.home}", markup=False, soft_wrap=True)
    key = first_key(settings)
    if key is not None:
        console.print(f"  first API key  {key}  (shown this once)", markup=False, soft_wrap=True)


def _say_what_is_missing(held: Services, console: Console) -> None:
    """Others may come later: no reason to refuse a start, but jobs will wait until then."""
    for problem, reason in missing_parts(held, OUTSIDE).items():
        sentence = f"Jobs cannot run yet: {problem} ({reason.rstrip('.')})."
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _exit_on_sigterm(*_: object) -> None:
    raise SystemExit(0)
