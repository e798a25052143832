"""What `greentune run` keeps in its output folder, so that the same command goes on where it ended.

::

    OUT/job.json          the spec, the data's hashes and when it was first asked for
    OUT/rho.json          the share of FLOPs, once it is decided
    OUT/begun.json        epochs, batch size and rates that the first attempt began with
    OUT/energy.jsonl      metered energy with its intensity, all attempts
    OUT/attempts.jsonl    when each attempt began, and when and how it ended
    OUT/overheads.jsonl   times that went into something other than training steps
    OUT/checkpoints/      of `core.training.checkpoint`
    OUT/metrics.csv       one line a step
    OUT/evaluation.json   answers to held-out questions and their scores, before and after
    OUT/model/            the result, in Hugging Face layout
    OUT/emissions.json    the report
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from core.errors import Conflict, StartRefused
from core.jobs.records import Hyperparameters
from core.option_names import option_of
from core.spec import JobSpec
from core.training.hooks import Hook, StartRecord, StepRecord, ValidationRecord
from worker.whole_files import append_whole, write_whole

COLUMNS: Final = (
    "step",
    "epoch",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "rho",
    "flops_share",
    "tokens",
    "duration_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFolder:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def energy(self) -> Path:
        return self.path / "energy.jsonl"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def overheads(self) -> Path:
        return self.path / "overheads.jsonl"

    @property
    def emissions(self) -> Path:
        return self.path / "emissions.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one process at a time.

        Raises:
            StartRefused: the folder cannot be made.
            Conflict: another `greentune run` works here.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartRefused(
                f"The folder {self.path} cannot be made ({error.strerror}); choose another --out."
            ) from error
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"Another `greentune run` works in {self.path}; wait for it, or choose another "
                    "--out."
                ) from error
            yield

    def begin(self, spec: JobSpec, files: Sequence[Path]) -> datetime:
        """Claim the folder for this job, or recognise it; returns when it was first asked for.

        A job that was refused before any training (bad data, a rho too low) may be mended and asked
        for again; what its attempts spent stays in the account.

        Raises:
            Conflict: the folder belongs to a job of another spec or other data.
        """
        job = self.path / "job.json"
        asked = spec.to_dict()
        hashes = [_sha256(file) for file in files]
        found = json.loads(job.read_text()) if job.exists() else None
        if found is None or not self._rho.exists():
            since = datetime.now(UTC).isoformat() if found is None else found["submitted_at"]
            written = {"spec": asked, "data_sha256": hashes, "submitted_at": since}
            write_whole(job, json.dumps(written, indent=1))
            return datetime.fromisoformat(since)
        # options that came after the folder have their defaults
        held = JobSpec.from_dict(found["spec"]).to_dict()
        if held != asked or found["data_sha256"] != hashes:
            raise Conflict(
                f"{self.path} holds a job with {_difference(held, asked)}; choose "
                "another --out, or repeat that job's options to continue it."
            )
        return datetime.fromisoformat(found["submitted_at"])

    def settle_rho(self, decide: Callable[[], float]) -> float:
        """Decided once per job: a later attempt goes on with what the first one began with."""
        if not self._rho.exists():
            write_whole(self._rho, json.dumps(decide()))
        return float(json.loads(self._rho.read_text()))

    @property
    def began(self) -> Hyperparameters | None:
        """What the first attempt made of open options; None: there was none, or one of a release
        that did not write it down.
        """
        if not self._begun.exists():
            return None
        return Hyperparameters(**json.loads(self._begun.read_text()))

    def begun(self, hyperparameters: Hyperparameters) -> None:
        """Keep what the first attempt begins with, for those after it."""
        write_whole(self._begun, json.dumps(asdict(hyperparameters)))

    @property
    def _begun(self) -> Path:
        return self.path / "begun.json"

    @property
    def _rho(self) -> Path:
        return self.path / "rho.json"


class MetricsFile(Hook):
    """One line a step. Steps that are trained again after a resume are written again, once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[int, dict[str, Any]] = {}

    def on_start(self, record: StartRecord) -> None:
        if self._path.exists():
            with self._path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if int(row["step"]) <= record.step:
                        self._rows[int(row["step"])] = dict(row)
        self._rewrite()

    def on_step(self, record: StepRecord) -> None:
        row = self._row(record.step)
        row.update(
            epoch=record.epoch,
            train_loss=record.loss,
            train_accuracy=record.token_accuracy,
            learning_rate=record.learning_rate,
            grad_norm=record.grad_norm,
            rho=record.rho,
            flops_share=record.flops / record.full_flops,
            tokens=record.tokens,
            duration_s=record.duration_s,
        )
        line = io.StringIO()
        _writer(line).writerow(row)
        append_whole(self._path, line.getvalue())

    def on_validation(self, record: ValidationRecord) -> None:
        self._row(record.step).update(
            epoch=record.epoch,
            valid_loss=record.loss,
            valid_mean_token_accuracy=record.token_accuracy,
        )
        self._rewrite()

    def _row(self, step: int) -> dict[str, Any]:
        return self._rows.setdefault(step, {"step": step})

    def _rewrite(self) -> None:
        table = io.StringIO()
        writer = _writer(table)
        writer.writeheader()
        writer.writerows(self._rows[step] for step in sorted(self._rows))
        write_whole(self._path, table.getvalue())


def _writer(file: Any) -> csv.DictWriter[str]:
    return csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(found: dict[str, Any], asked: dict[str, Any], at: str = "") -> str:
    """``at``: the path to both in their specs."""
    for key, value in asked.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict) and value != other:
            return _difference(other, value, f"{at}{key}.")
        if other != value:
            return f"{_typed(at + key)} {other!r}, not {value!r}"
    return "other data"


def _typed(path: str) -> str:
    """The option that sets this field of a spec; of the others their own name."""
    fields = (f"green.{path}", path.replace("training.", "hyperparameters.", 1), path)
    return next(filter(None, map(option_of, fields)), path)
