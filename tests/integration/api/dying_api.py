"""The API over HTTP, killed by SIGKILL around an object that it stores.

Run as ``python dying_api.py PATTERN MOMENT`` with settings in the environment: it dies at the first
object whose key fits ``PATTERN``, "before" or "after" it is stored. Prints the port that it
listens on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from api.main import create_app
from tests.fixtures.deadly_store import DeadlyStore


@contextmanager
def running_api(
    environment: Mapping[str, str], pattern: str | None = None, moment: str = "after"
) -> Iterator[str]:
    """Its URL, ``/v1`` included. With a ``pattern`` it must have died when the block is left."""
    command = [sys.executable, __file__, pattern or "$never", moment]
    root = str(Path(__file__).resolve().parents[3])
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": root} | environment, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        if pattern is not None:
            assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def main(pattern: str, moment: str) -> None:
    app = create_app()
    held = app.state.services
    app.state.services = replace(held, objects=DeadlyStore(held.objects, pattern, moment))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
