"""Rows in memory and on disk: as they were put, within bounds, or not at all."""

import errno
import io
import tempfile

import pytest
import torch

from core.training.row_store import RowStore


def _row(seed, n_tokens=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n_tokens, 4, generator=generator).to(dtype),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_bit_for_bit_from_memory_and_disk(dtype, tmp_path):
    store = RowStore(memory_bytes=50, disk_bytes=1000, folder=tmp_path / "new")
    rows = {bytes([i]): (*_row(i, i + 1, dtype), *_row(50 + i, 2, dtype)) for i in range(4)}
    assert all(store.put(key, row) for key, row in rows.items())
    assert store.n_disk_bytes > 0
    for key, row in rows.items():
        found = store.get(key)
        assert [f.dtype for f in found] == [dtype, dtype]
        assert all(torch.equal(f, r) for f, r in zip(found, row, strict=True))
    assert list((tmp_path / "new").iterdir()) == []  # nobody else sees the file
    assert store.get(b"unknown") is None


def test_bounds_hold(tmp_path):
    store = RowStore(memory_bytes=100, disk_bytes=100, folder=tmp_path)
    kept = [store.put(bytes([i]), _row(i)) for i in range(6)]  # 48 bytes each
    assert kept == [True] * 4 + [False] * 2
    assert (store.n_memory_bytes, store.n_disk_bytes, len(store)) == (96, 96, 4)
    assert store.put(bytes([0]), _row(9)) is False
    store.clear()
    assert (store.n_memory_bytes, store.n_disk_bytes, len(store)) == (0, 0, 0)
    assert store.put(b"x", _row(1))


def test_a_row_does_not_follow_its_source():
    store, row = RowStore(memory_bytes=100, disk_bytes=0), _row(1)
    expected = row[0].clone()
    store.put(b"x", row)
    row[0].zero_()
    assert torch.equal(store.get(b"x")[0], expected)


@pytest.mark.parametrize("damage", ["flipped bit", "cut"])
def test_a_damaged_row_is_forgotten(damage, tmp_path):
    store = RowStore(memory_bytes=0, disk_bytes=1000, folder=tmp_path)
    for i in range(2):
        store.put(bytes([i]), _row(i))
    if damage == "cut":
        store._file.truncate(60)
    else:
        store._file.seek(50)
        store._file.write(b"\xff")
    assert store.get(bytes([1])) is None
    assert bytes([1]) not in store
    assert torch.equal(store.get(bytes([0]))[0], _row(0)[0])
    assert store.put(bytes([1]), _row(1))
    assert torch.equal(store.get(bytes([1]))[0], _row(1)[0])


def test_a_disk_that_refuses_costs_rows_not_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = RowStore(memory_bytes=0, disk_bytes=1000, folder=tmp_path / "file")
    assert store.put(b"x", _row(1)) is False
    assert store.get(b"x") is None


class _Disk(io.FileIO):
    """Takes and gives a few bytes at once, as the system does of 2 GiB, until it is full."""

    room = 1000

    def write(self, data):
        if self.tell() >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[: min(20, self.room - self.tell())])

    def read(self, size=-1):
        return super().read(min(size, 20) if size >= 0 else 20)

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:20])


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """The one file that a store makes."""
    file = _Disk(tmp_path / "rows", "w+b")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: file)
    return file


@pytest.mark.usefixtures("disk")
def test_a_row_that_the_system_gives_in_parts_is_whole():
    store = RowStore(memory_bytes=0, disk_bytes=1000)
    for i in range(2):
        assert store.put(bytes([i]), _row(i))
    for i in range(2):
        assert torch.equal(store.get(bytes([i]))[0], _row(i)[0])


def test_a_row_that_fills_the_disk_leaves_it_as_it_was(disk):
    disk.room = 70  # 48 bytes each
    store = RowStore(memory_bytes=0, disk_bytes=1000)
    assert [store.put(bytes([i]), _row(i)) for i in range(2)] == [True, False]
    assert (disk.seek(0, io.SEEK_END), store.n_disk_bytes) == (48, 48)
    assert torch.equal(store.get(bytes([0]))[0], _row(0)[0])
