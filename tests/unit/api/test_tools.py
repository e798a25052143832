"""The pieces of the command line that need no server: progress lines, reports, sockets' names."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from api.demo import stop_serving
from api.main import create_app
from api.report import print_report
from api.serve import listening, locked, prepare_home
from api.watch import describe, duration, watch
from core.errors import StartRefused
from core.settings import SOCKET_PATH_MAX_BYTES, Settings


def job(status: str = "running", step: int = 3, **green: Any) -> dict[str, Any]:
    return {
        "status": status,
        "estimated_finish": 1000,
        "finished_at": None,
        "green": {
            "state": "running",
            "progress": {"step": step, "total_steps": 9, "train_loss": 1.25, "tokens_per_s": 321.4},
            "rho_measured": 0.49,
            "rho_requested": 0.5,
            "energy_wh": {"total": 0.1234},
            "co2e_g": 0.00456,
            **green,
        },
    }


def test_progress_line() -> None:
    line = describe(job(), now=935.0)
    assert line == (
        "running  step 3/9  loss 1.250  321 tokens/s  rho 0.50  (0.49 so far)  "
        "0.12 Wh  0.005 gCO2e  ETA 1:05"
    )
    assert describe(job("validating_files", step=0, state="planned"), now=0) == "planned"
    assert describe(job(step=0), now=0) == "running: preparing"
    assert describe(job(state="cancelling"), now=1e9).endswith("ETA 0:00")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_watch_prints_changes_only() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False)
    last = watch(console, [job(step=1), job(step=1), job(step=2)])
    assert last["green"]["progress"]["step"] == 2
    assert len(out.getvalue().splitlines()) == 2
    live = Console(file=io.StringIO(), force_terminal=True)
    assert watch(live, [job(step=1), job(step=2)])["green"]["progress"]["step"] == 2


def test_report_shows_both_sides() -> None:
    intensity = {"mean": 80.0, "kind": "average", "source": ["yearly"]}
    report: dict[str, Any] = {
        "job_id": "ftjob-1",
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:01:05.5Z",
        "zone": "FR",
        "energy_wh": {"total": 1.0},
        "co2e_g": 0.08,
        "intensity_g_per_kwh": intensity,
        "baseline": None,
        "savings": None,
        "devices": [],
        "co2e_g_range": {"low": 0.04, "high": 0.16},
        "notes": ["100% is estimated."],
    }
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert "0.0800 gCO2e" in out.getvalue()
    report["baseline"] = {
        "energy_wh": 2.0,
        "co2e_g": 0.16,
        "intensity_g_per_kwh": 80.0,
        "duration_s": 60.0,
        "basis": "modelled",
        "method": "energy x 2",
    }
    report["savings"] = {"co2e_g": 0.08, "share": 0.5, "split_g": {"rho": 0.08}}
    report["devices"] = [{"name": "cpu", "energy_wh": 1.0, "methods": ["estimate"]}]
    print_report(report, Console(file=out, width=200))
    assert "0.1600 gCO2e" in out.getvalue()
    assert "50%" in out.getvalue()
    assert "1:06" in out.getvalue()
    assert "cpu 1.000 Wh (estimate)" in out.getvalue()


def test_home_is_private_and_writable(tmp_path: Path) -> None:
    home = prepare_home(tmp_path / "a" / "b", min_free_bytes=0)
    assert home.stat().st_mode & 0o777 == 0o700
    assert list(home.iterdir()) == [home / "tmp"]


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="is full") as caught:
        prepare_home(tmp_path / "home", min_free_bytes=1 << 60)
    assert "\n" not in caught.value.message


def test_unusable_home_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StartRefused, match="cannot be made"):
        prepare_home(tmp_path / "file" / "home", min_free_bytes=0)


def test_a_hosts_own_zone_must_exist(tmp_path: Path) -> None:
    """Else every job that names none would be refused for a zone that it did not name."""
    with pytest.raises(StartRefused, match="GREENTUNE_ZONE is wrong: Unknown zone 'ATLANTIS'"):
        create_app(Settings(home=tmp_path, zone="ATLANTIS"))
    assert create_app(Settings(home=tmp_path, zone="fr"))


def test_home_is_served_once(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(StartRefused, match=f"process {os.getpid()}"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_taken_port_is_one_sentence() -> None:
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartRefused, match=f"127.0.0.1:{port}"), listening("127.0.0.1", port):
            pass
    with pytest.raises(StartRefused, match="Cannot listen"), listening("203.0.113.1", 0):
        pass


def test_broker_socket_is_short_and_stable(tmp_path: Path) -> None:
    short = Settings(home=tmp_path)
    assert short.broker_socket == tmp_path / "broker.sock"
    long = Settings(home=tmp_path / ("x" * 100) / "é" / "home")
    assert len(os.fsencode(long.broker_socket)) <= SOCKET_PATH_MAX_BYTES
    assert long.broker_socket == Settings(home=long.home).broker_socket
    assert long.broker_socket != Settings(home=long.home / "b").broker_socket


def test_ctrl_c_is_quiet_while_modules_are_loaded(tmp_path: Path) -> None:
    # stands in for the library that is being loaded when the signal comes
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "api", "version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


HURRIED = 7
SLOW_TO_STOP = f"""
import signal, sys, threading
signal.signal(signal.SIGINT, lambda *_: sys.exit({HURRIED}))
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("ready", flush=True)
threading.Event().wait()
"""


def test_a_second_ctrl_c_is_passed_on_to_the_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_STOP], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def interrupt_once_it_was_told() -> None:
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(os.getpid(), signal.SIGINT)

        impatient = threading.Thread(target=interrupt_once_it_was_told)
        impatient.start()
        stop_serving(process)
        impatient.join()
    assert process.returncode == HURRIED
