"""The data files of a job, brought to this host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.data.tables import SUFFIXES, TABLE_SUFFIXES
from core.errors import StorageUnavailable
from core.jobs import store
from core.jobs.database import Database
from core.jobs.records import Claim, FileRecord
from core.objects.store import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    training: Path
    validation: Path | None


def fetch_data(database: Database, objects: ObjectStore, claim: Claim, folder: Path) -> DataFiles:
    """Bring the job's files to ``folder``; what is there already stays.

    Raises:
        NotFound: a file was deleted.
        StorageUnavailable: the store cannot be used, or a file is not what was uploaded.
    """
    spec = claim.spec
    folder.mkdir(exist_ok=True)
    training = _fetch(database, objects, claim.tenant, spec.training_file, folder)
    if spec.validation_file is None:
        return DataFiles(training=training, validation=None)
    validation = _fetch(database, objects, claim.tenant, spec.validation_file, folder)
    return DataFiles(training=training, validation=validation)


def _fetch(
    database: Database, objects: ObjectStore, tenant: str, file_id: str, folder: Path
) -> Path:
    for suffix in SUFFIXES:
        if (there := folder / f"{file_id}{suffix}").exists():
            return there
    with database.read() as session:
        record = store.get_held_file(session, tenant, file_id)
    suffix = Path(record.filename).suffix.lower()
    target = folder / f"{file_id}{suffix if suffix in TABLE_SUFFIXES else '.jsonl'}"
    _download(objects, record, target)
    return target


def _download(objects: ObjectStore, record: FileRecord, target: Path) -> None:
    digest = hashlib.sha256()
    part = target.with_suffix(".part")
    with part.open("wb") as out:
        for piece in objects.get(record.object_key):
            digest.update(piece)
            out.write(piece)
    if digest.hexdigest() != record.sha256:
        raise StorageUnavailable(f"File {record.id} is not what was uploaded (SHA-256 differs).")
    part.rename(target)
