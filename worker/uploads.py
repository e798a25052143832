"""Checkpoints on their way out: announced, files, manifest, then the database's row."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from core.errors import StorageUnavailable
from core.jobs import service
from core.jobs.records import Claim, NewCheckpoint
from core.objects.folders import folder_keys, put_folder
from core.objects.store import ObjectStore
from core.training.checkpoint import state_files
from core.training.hooks import CheckpointRecord, Hook
from worker.reporter import Reporter

logger = logging.getLogger(__name__)

# An object store that is away is asked again after so long.
RETRY_S: Final = 5.0
# At the end of a run the last checkpoint may wait so long for the object store; within the
# supervisor's grace for a stop.
PATIENCE_S: Final = 120.0


class CheckpointHook(Hook):
    """Uploads checkpoints beside the training.

    The loop is held up only for hard links to the checkpoint's files (it may prune them later). At
    most one upload runs; a checkpoint that was taken against loss of work alone gives way to a
    newer one that is waiting. An object store that is away delays uploads, never the training.

    Each upload has a prefix of its own: an attempt that lost its lease cannot touch files that a
    row of its successor points to, nor can one that falls back behind a checkpoint of its own.
    """

    def __init__(
        self, reporter: Reporter, claim: Claim, objects: ObjectStore, scratch: Path
    ) -> None:
        self._reporter = reporter
        self._claim = claim
        self._objects = objects
        self._kept = Path(tempfile.mkdtemp(prefix="uploads-", dir=scratch))
        self._waiting: list[tuple[CheckpointRecord, Path]] = []
        self._is_uploading = False
        self._give_up_at: float | None = None
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What has not begun is dropped; `finish` first to keep it."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        kept = self._kept / record.folder.name
        shutil.copytree(record.folder, kept, copy_function=os.link)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            overtaken = [item for item in self._waiting if not item[0].is_milestone]
            self._waiting = [item for item in self._waiting if item[0].is_milestone]
            self._waiting.append((record, kept))
            self._changed.notify_all()
        for _, folder in overtaken:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self) -> None:
        """Wait until all checkpoints are stored and written down.

        Raises:
            StorageUnavailable: the object store was away for `PATIENCE_S`.
        """
        with self._changed:
            self._give_up_at = time.monotonic() + PATIENCE_S
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._failure is not None or not (self._waiting or self._is_uploading)
            )
            if self._failure is not None:
                raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                record, folder = self._waiting.pop(0)
                self._is_uploading = True
            try:
                self._upload(record, folder)
            except Exception as error:  # noqa: BLE001  raised again in the training's thread
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._is_uploading = False
                self._changed.notify_all()

    def _upload(self, record: CheckpointRecord, folder: Path) -> None:
        job_id, fence = self._claim.job_id, self._claim.fence
        prefix = f"jobs/{job_id}/checkpoints/{record.step}/{fence}/{secrets.token_hex(4)}"
        keys = folder_keys(prefix, folder)
        self._reporter.call(
            lambda session, _now: service.announce_objects(session, job_id, fence, keys)
        )
        n_bytes = self._put(prefix, folder)
        if n_bytes is None:
            return
        only_to_go_on = state_files(folder)
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint = NewCheckpoint(
            step=record.step,
            prefix=prefix,
            n_bytes=n_bytes,
            metrics=_metrics_of(record),
            is_milestone=record.is_milestone,
            state_files=only_to_go_on,
        )
        self._reporter.call(
            lambda session, now: service.record_checkpoint(
                session, job_id, fence, checkpoint, now=now
            )
        )

    def _put(self, prefix: str, folder: Path) -> int | None:
        """Bytes stored; None: closed meanwhile."""
        while True:
            try:
                return put_folder(self._objects, prefix, folder).n_bytes
            except StorageUnavailable as error:
                logger.warning("job %s: upload waits: %s", self._claim.job_id, error)
                with self._changed:
                    if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                        raise
                    self._changed.wait_for(lambda: self._is_closed, timeout=RETRY_S)
                    if self._is_closed:
                        return None


def _metrics_of(record: CheckpointRecord) -> dict[str, float]:
    values = {
        "train_loss": record.train_loss,
        "train_mean_token_accuracy": record.train_token_accuracy,
        "valid_loss": record.validation_loss,
        "valid_mean_token_accuracy": record.validation_token_accuracy,
        "full_valid_loss": record.validation_loss,
        "full_valid_mean_token_accuracy": record.validation_token_accuracy,
        **{f"eval_{name}": value for name, value in (record.scores or {}).items()},
    }
    return {
        key: value for key, value in values.items() if value is not None and math.isfinite(value)
    }
