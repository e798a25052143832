"""What `greentune run` keeps of its energy: every sample once, whatever the disk did meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.carbon.account import Overhead
from core.carbon.energy import Device, EnergySample
from core.carbon.static import StaticSignal
from tests.fixtures.full_disk import full_disk
from worker.local_account import Account
from worker.local_folder import LocalFolder

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DEVICES: tuple[Device, ...] = ("cpu", "ram")


def opened(folder: Path) -> Account:
    return Account(LocalFolder(path=folder), StaticSignal(), "FR", warn=pytest.fail)


def samples(at: int) -> tuple[EnergySample, ...]:
    begun = START + at * MINUTE
    return tuple(
        EnergySample(
            started_at=begun, ended_at=begun + MINUTE, device=d, energy_j=7.0, method="estimate"
        )
        for d in DEVICES
    )


def test_a_disk_that_fills_up_neither_loses_energy_nor_counts_it_twice(tmp_path: Path):
    account = opened(tmp_path)
    account.take(samples(0))
    energy = LocalFolder(path=tmp_path).energy
    n_bytes = energy.stat().st_size
    # room for the first of two lines and a part of the other
    with full_disk(n_bytes + n_bytes * 3 // 4):
        account.take(samples(1))
    assert len(opened(tmp_path).rows) == 2
    account.take(samples(1))  # as the meter does with what was not taken
    assert opened(tmp_path).rows == account.rows
    assert [row.energy_j for row in account.rows] == [7.0] * 4


def test_lines_after_one_that_was_cut_are_read(tmp_path: Path):
    account = opened(tmp_path)
    found = [
        Overhead(kind="selection", started_at=START + n * MINUTE, ended_at=START + (n + 1) * MINUTE)
        for n in range(3)
    ]
    account.take_overhead(found[0])
    n_bytes = LocalFolder(path=tmp_path).overheads.stat().st_size
    with full_disk(n_bytes + 9):
        account.take_overhead(found[1])
    account.take_overhead(found[2])
    assert opened(tmp_path).overheads == (found[0], found[2])
