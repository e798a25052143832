"""Result files: what a caller downloads."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

from core.jobs.records import EventRecord
from worker.results import metrics_csv, tar_stream


def event(seq: int, type_: str = "metrics", **data: object) -> EventRecord:
    return EventRecord(
        id=f"ftevent-{seq}",
        job_id="ftjob-1",
        seq=seq,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        level="info",
        message="",
        type=type_,  # type: ignore[arg-type]
        data=data or None,
    )


def test_a_step_trained_twice_counts_as_it_went_last_and_validation_joins_its_step():
    newest_first = [
        event(6, step=2, valid_loss=0.9),
        event(5, step=2, train_loss=1.0),
        event(4, "message", kind="selection", step=2),
        event(3, step=2, train_loss=7.0),
        event(2, step=1, train_loss=2.0),
        event(1, "message"),
    ]
    lines = metrics_csv(newest_first).splitlines()
    assert lines[0].startswith(
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    )
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["1", "2.0", "", ""],
        ["2", "1.0", "", "0.9"],
    ]


def test_the_archive_is_one_that_tar_reads_and_the_same_each_time(tmp_path: Path):
    contents = {
        "a.bin": b"",
        "b/c.bin": bytes(range(256)) * 2,
        "b/d.txt": b"x" * 513,
        "e" * 150: b"1",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    archive = b"".join(tar_stream(tmp_path, "model"))
    assert archive == b"".join(tar_stream(tmp_path, "model"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    assert found == {f"model/{name}": content for name, content in contents.items()}
