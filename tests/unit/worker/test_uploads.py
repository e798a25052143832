"""Checkpoints on their way out: order, back-pressure and a store that is away."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.errors import StorageUnavailable
from core.jobs.lifecycle import Status
from core.jobs.records import Claim, JobRecord, Progress
from core.objects.folders import get_folder
from core.objects.local import LocalStore
from core.spec import JobSpec
from core.training.hooks import CheckpointRecord
from worker import uploads
from worker.uploads import CheckpointHook


class Gate:
    """An object store behind a gate: closed, it holds writers; broken, it refuses."""

    def __init__(self, root: Path) -> None:
        self._store = LocalStore(root)
        self.open = threading.Event()
        self.arrived = threading.Event()
        self.is_broken = False

    def put(self, key: str, source: Iterable[bytes]) -> Any:
        self.arrived.set()
        self.open.wait(20)
        if self.is_broken:
            raise StorageUnavailable("It is away.")
        return self._store.put(key, source)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return self._store.get(key, start=start, end=end)

    def delete(self, key: str) -> None:
        self._store.delete(key)


class Rows:
    """In the place of the reporter: takes down what would be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checkpoints: list[Any] = []
        self.announced: list[str] = []
        monkeypatch.setattr(
            uploads.service,
            "announce_objects",
            lambda _session, _job, _fence, keys: self.announced.extend(keys),
        )
        monkeypatch.setattr(
            uploads.service,
            "record_checkpoint",
            lambda _session, _job, _fence, checkpoint, **_: self.checkpoints.append(checkpoint),
        )

    def call(self, write: Any) -> None:
        write(None, datetime.now(UTC))

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.checkpoints]


@pytest.fixture
def claim() -> Claim:
    names = dict.fromkeys(JobRecord.__dataclass_fields__)
    job = JobRecord(
        **names
        | {
            "id": "ftjob-1",
            "status": Status.RUNNING,
            "spec": JobSpec(model="m", training_file="f"),
            "progress": Progress(),
        }
    )
    return Claim(job=job, fence=3, resume=None)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "objects")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(monkeypatch)


def saved(tmp_path: Path, step: int, *, is_milestone: bool = False) -> CheckpointRecord:
    folder = tmp_path / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes([step]))
    (folder / "optimizer.safetensors").write_bytes(bytes([step]))
    return CheckpointRecord(
        step=step,
        epoch=0.0,
        folder=folder,
        is_milestone=is_milestone,
        train_loss=1.0,
        train_token_accuracy=None,
        validation_loss=float("nan"),
        validation_token_accuracy=None,
    )


def test_the_row_comes_after_the_manifest_and_the_original_may_go(tmp_path, claim, gate, rows):
    with CheckpointHook(rows, claim, gate, tmp_path) as hook:
        record = saved(tmp_path, 5)
        hook.on_checkpoint(record)
        gate.arrived.wait(20)
        assert rows.steps == []
        announced = {key.rpartition("/")[2] for key in rows.announced}
        assert announced == {"weights.safetensors", "optimizer.safetensors", "manifest.json"}
        (record.folder / "weights.safetensors").unlink()  # as the loop's pruning does
        gate.open.set()
        hook.finish()
    (row,) = rows.checkpoints
    assert row.step == 5
    assert row.prefix.startswith("jobs/ftjob-1/checkpoints/5/3/")
    assert row.state_files == ("optimizer.safetensors",)
    assert row.metrics == {"train_loss": 1.0}, "what is not finite is not said"
    get_folder(gate, row.prefix, tmp_path / "back")
    assert (tmp_path / "back" / "weights.safetensors").read_bytes() == b"\x05"


def test_a_newer_one_overtakes_but_never_a_milestone(tmp_path, claim, gate, rows):
    with CheckpointHook(rows, claim, gate, tmp_path) as hook:
        hook.on_checkpoint(saved(tmp_path, 1))
        gate.arrived.wait(20)  # under way: it is finished, whatever comes
        hook.on_checkpoint(saved(tmp_path, 2))
        hook.on_checkpoint(saved(tmp_path, 3, is_milestone=True))
        hook.on_checkpoint(saved(tmp_path, 4))
        hook.on_checkpoint(saved(tmp_path, 5))
        gate.open.set()
        hook.finish()
    assert rows.steps == [1, 3, 5]
    assert [row.is_milestone for row in rows.checkpoints] == [False, True, False]


def test_a_store_that_comes_back_gets_the_checkpoint(
    tmp_path, claim, gate, rows, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploads, "RETRY_S", 0.05)
    gate.is_broken = True
    gate.open.set()
    with CheckpointHook(rows, claim, gate, tmp_path) as hook:
        hook.on_checkpoint(saved(tmp_path, 1))
        gate.arrived.wait(20)
        gate.is_broken = False
        hook.finish()
    assert rows.steps == [1]


def test_a_step_that_is_saved_twice_takes_another_place(tmp_path, claim, gate, rows):
    gate.open.set()
    with CheckpointHook(rows, claim, gate, tmp_path) as hook:
        for folder in ("a", "b"):
            hook.on_checkpoint(saved(tmp_path / folder, 5))
            hook.finish()
    first, second = (row.prefix for row in rows.checkpoints)
    assert first != second
    for prefix in (first, second):
        get_folder(gate, prefix, tmp_path / prefix)


def test_at_the_end_a_store_that_stays_away_is_an_error(
    tmp_path, claim, gate, rows, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploads, "RETRY_S", 0.05)
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.1)
    gate.is_broken = True
    gate.open.set()
    with CheckpointHook(rows, claim, gate, tmp_path) as hook:
        hook.on_checkpoint(saved(tmp_path, 1))
        with pytest.raises(StorageUnavailable):
            hook.finish()
    assert rows.steps == []
