"""The clock that runs apart from the workers: its requests reach the broker, its health says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from core.wire import CONTROL_QUEUE
from worker.clock import is_beating

PATIENCE_S = 120


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("GREENTUNE_HOME", str(home))
    monkeypatch.setenv("GREENTUNE_SWEEP_EVERY_S", "0.5")
    return home


@contextmanager
def clock() -> Iterator[subprocess.Popen[str]]:
    """``greentune beat`` as a container runs it."""
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "beat"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def health() -> int:
    return subprocess.run([sys.executable, "-m", "worker", "beat-health"], check=False).returncode


def test_a_clock_that_reaches_its_broker_is_healthy_for_as_long_as_it_does(
    home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENTUNE_BROKER_URL", redis_url)
    assert health() == 1, "no clock has run here"
    pulse = home / "beat.pulse"
    home.mkdir()
    # of an earlier clock
    pulse.touch()
    with clock() as process, redis.Redis.from_url(redis_url) as broker:
        for _ in range(2):
            assert broker.blpop([CONTROL_QUEUE], timeout=PATIENCE_S), "no sweep was asked for"
        # the second request comes after the first one's pulse
        assert process.poll() is None
        assert is_beating()
        monkeypatch.setenv("GREENTUNE_SWEEP_EVERY_S", "60")
        assert health() == 0
    long_ago_s = time.time() - 4 * 60 - 1
    os.utime(pulse, (long_ago_s, long_ago_s))
    assert health() == 1, "its last request is four sweeps ago"


def test_a_clock_without_a_broker_is_not_healthy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENTUNE_BROKER_URL", "redis://127.0.0.1:9/0")
    home.mkdir()
    (home / "beat.pulse").touch()
    with clock() as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "beat" in line.lower())
        assert "Connection" in said or "error" in said.lower(), said
        assert health() == 1
