"""What `greentune run` keeps in its output folder, so that the same command goes on where it ended.

::

    OUT/job.json          the spec, the data's hashes and when it was first asked for
    OUT/rho.json          the share of FLOPs, once it is decided
    OUT/energy.jsonl      metered energy with its intensity, all attempts
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
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from core.carbon.energy import EnergySample, MeteredEnergy, attribute
from core.carbon.intensity import IntensitySignal
from core.errors import Conflict, GreentuneError
from core.spec import JobSpec
from core.training.hooks import Hook, StartRecord, StepRecord, ValidationRecord

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
    def emissions(self) -> Path:
        return self.path / "emissions.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one process at a time.

        Raises:
            Conflict: another `greentune run` works here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
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

        Raises:
            Conflict: the folder belongs to a job of another spec or other data.
        """
        job = self.path / "job.json"
        asked = spec.to_dict()
        hashes = [_sha256(file) for file in files]
        if not job.exists():
            now = datetime.now(UTC)
            written = {"spec": asked, "data_sha256": hashes, "submitted_at": now.isoformat()}
            job.write_text(json.dumps(written, indent=1))
            return now
        found = json.loads(job.read_text())
        if found["spec"] != asked or found["data_sha256"] != hashes:
            raise Conflict(
                f"{self.path} holds a job with {_difference(found['spec'], asked)}; choose "
                "another --out, or repeat that job's options to continue it."
            )
        return datetime.fromisoformat(found["submitted_at"])

    def settle_rho(self, decide: Callable[[], float]) -> float:
        """Decided once per job: a later attempt goes on with what the first one began with."""
        rho = self.path / "rho.json"
        if not rho.exists():
            rho.write_text(json.dumps(decide()))
        return float(json.loads(rho.read_text()))


class EnergyFile:
    """Receives the meter's samples, on its thread, and keeps them with the intensity of their time.

    A signal that is away leaves samples without an intensity; it never reads as 0 g.
    """

    def __init__(
        self, path: Path, signal: IntensitySignal, zone: str, warn: Callable[[str], None]
    ) -> None:
        self._path = path
        self._signal = signal
        self._zone = zone
        self._warn = warn
        self._lock = threading.Lock()
        self._rows = [_metered(json.loads(line)) for line in _lines(path)]
        self.attempt = max((row.attempt for row in self._rows), default=0) + 1

    @property
    def rows(self) -> tuple[MeteredEnergy, ...]:
        with self._lock:
            return tuple(self._rows)

    def take(self, samples: tuple[EnergySample, ...]) -> None:
        if not samples:
            return
        start, end = min(s.started_at for s in samples), max(s.ended_at for s in samples)
        try:
            slots = self._signal.series(self._zone, start, end)
        except GreentuneError as error:
            self._warn(f"No carbon intensity for {self._zone}: {error}")
            slots = ()
        rows = attribute(samples, slots, attempt=self.attempt)
        with self._lock, self._path.open("a") as out:
            out.writelines(json.dumps(asdict(row), default=str) + "\n" for row in rows)
            self._rows.extend(rows)


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
        with self._path.open("a", newline="") as file:
            _writer(file).writerow(row)

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
        with self._path.open("w", newline="") as file:
            writer = _writer(file)
            writer.writeheader()
            writer.writerows(self._rows[step] for step in sorted(self._rows))


def _writer(file: Any) -> csv.DictWriter[str]:
    return csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")


def _metered(raw: dict[str, Any]) -> MeteredEnergy:
    for key in ("started_at", "ended_at"):
        raw[key] = datetime.fromisoformat(raw[key])
    return MeteredEnergy(**raw)


def _lines(path: Path) -> list[str]:
    """Whole lines: a process that was killed may have left half a one."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    for key, value in asked.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict) and value != other:
            return _difference(other, value)
        if other != value:
            return f"{key} {other!r}, not {value!r}"
    return "other data"
