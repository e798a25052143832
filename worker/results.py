"""What a finished job leaves for its caller: the model's folder and three result files."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from core.jobs.records import EventRecord, NewFile
from core.objects.store import ObjectStore

#: OpenAI's columns, then ours
COLUMNS: Final = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "epoch": "epoch",
    "learning_rate": "learning_rate",
    "flops_share": "flops_share",
    "tokens_per_s": "tokens_per_s",
}
_BLOCK: Final = tarfile.BLOCKSIZE
_CHUNK: Final = 1 << 20


def metrics_csv(newest_first: Iterable[EventRecord]) -> str:
    """One line a step from a job's metrics events. A step that was trained again after a worker was
    lost counts as it went the last time.
    """
    steps: dict[int, dict[str, Any]] = {}
    for event in newest_first:
        if event.type != "metrics" or event.data is None or "step" not in event.data:
            continue
        row = steps.setdefault(int(event.data["step"]), {})
        for key, value in event.data.items():
            row.setdefault(key, value)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step in sorted(steps):
        writer.writerow([steps[step].get(key, "") for key in COLUMNS.values()])
    return out.getvalue()


def file_key(file_id: str) -> str:
    """The key of a result file's object."""
    return f"files/{file_id}"


def put_metrics(store: ObjectStore, file_id: str, text: str) -> NewFile:
    return _put(store, file_id, "step_metrics.csv", [text.encode()])


def put_emissions(store: ObjectStore, file_id: str, report: Mapping[str, Any]) -> NewFile:
    text = json.dumps(report, indent=1, allow_nan=False)
    return _put(store, file_id, "emissions.json", [text.encode()])


def put_archive(store: ObjectStore, file_id: str, folder: Path, name: str) -> NewFile:
    """``folder`` as one tar file, streamed; the same bytes for the same files."""
    return _put(store, file_id, "model.tar", tar_stream(folder, name))


def tar_stream(folder: Path, name: str) -> Iterator[bytes]:
    """A POSIX archive of the files in ``folder``, under ``name/``; in bounded memory."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        header = tarfile.TarInfo(f"{name}/{path.relative_to(folder).as_posix()}")
        header.size = path.stat().st_size
        yield header.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        yield bytes(-header.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _put(store: ObjectStore, file_id: str, filename: str, source: Iterable[bytes]) -> NewFile:
    stored = store.put(file_key(file_id), source)
    return NewFile(
        id=file_id,
        filename=filename,
        purpose="fine-tune-results",
        n_bytes=stored.n_bytes,
        sha256=stored.sha256,
        object_key=stored.key,
        status="processed",
    )
