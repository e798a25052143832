"""Whole folders (checkpoints, results) as objects: every file, then the manifest that names them.

The manifest is written last and read first: without it there is no folder, so a reader never sees
half of one, and every file is checked against it on the way back. Files that nobody will ask for
again may be deleted before their folder: who asks for the others still gets them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from core.errors import InvalidInput, StorageUnavailable
from core.objects.local import named_failures
from core.objects.store import ObjectStore, check_key

MANIFEST: Final = "manifest.json"
_MAX_MANIFEST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """``name`` is relative to the folder, with forward slashes."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderManifest:
    files: tuple[FolderFile, ...]

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    def to_json(self) -> str:
        return json.dumps({"version": 1, "files": [asdict(file) for file in self.files]}, indent=1)


def folder_keys(prefix: str, folder: Path) -> tuple[str, ...]:
    """The keys of all objects that `put_folder` makes of ``folder``.

    Raises:
        InvalidInput: as `put_folder`.
    """
    return (*(f"{prefix}/{name}" for name in _files(prefix, folder)), f"{prefix}/{MANIFEST}")


def put_folder(store: ObjectStore, prefix: str, folder: Path) -> FolderManifest:
    """Store every file of ``folder`` under ``prefix/``, the manifest last.

    Raises:
        InvalidInput: a file's name cannot be a key, or is the manifest's.
        StorageUnavailable: the store cannot be used; no manifest is there then.
    """
    names = _files(prefix, folder)
    store.delete(f"{prefix}/{MANIFEST}")  # files of an older folder must not pass for this one's
    files = []
    for name in names:
        with (folder / name).open("rb") as stream:
            stored = store.put(f"{prefix}/{name}", stream)
        files.append(FolderFile(name=name, n_bytes=stored.n_bytes, sha256=stored.sha256))
    manifest = FolderManifest(files=tuple(files))
    store.put(f"{prefix}/{MANIFEST}", [manifest.to_json().encode()])
    return manifest


def _files(prefix: str, folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        check_key(f"{prefix}/{name}")
    if MANIFEST in names:
        raise InvalidInput(f"{folder.name} holds a file {MANIFEST!r}, a name of ours; rename it.")
    return names


def read_manifest(store: ObjectStore, prefix: str) -> FolderManifest:
    """What the folder holds.

    Raises:
        NotFound: there is no such folder, or it was never completed.
        StorageUnavailable: the manifest is damaged.
    """
    key = f"{prefix}/{MANIFEST}"
    raw = bytearray()
    for piece in store.get(key, end=_MAX_MANIFEST_BYTES):
        raw += piece
    try:
        entries = json.loads(raw)["files"]
        files = tuple(
            FolderFile(
                name=str(entry["name"]),
                n_bytes=int(entry["n_bytes"]),
                sha256=str(entry["sha256"]),
            )
            for entry in entries
        )
        for file in files:
            check_key(file.name)
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise StorageUnavailable(f"The manifest {key!r} is damaged: {error}.") from error
    return FolderManifest(files=files)


def get_folder(
    store: ObjectStore, prefix: str, folder: Path, *, only: Collection[str] | None = None
) -> FolderManifest:
    """Bring the folder back as ``folder``, which appears only when every file is there and right.

    ``only``: the files to bring, where the others are not needed; None: all.

    Raises:
        NotFound: there is no such folder, or it was never completed.
        StorageUnavailable: the store cannot be used, or a file differs from the manifest.
        FileExistsError: ``folder`` is there already and not empty.
    """
    manifest = read_manifest(store, prefix)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file in manifest.files:
            if only is None or file.name in only:
                _fetch(store, prefix, file, incoming / file.name)
        incoming.chmod(0o755)  # mkdtemp's folder is for its owner alone
        incoming.replace(folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return manifest


def delete_folder(store: ObjectStore, prefix: str) -> None:
    """Forget the folder, manifest last: broken off half-way, it can be done again to the end.

    Raises:
        NotFound: there is no such folder, or it was never completed.
        StorageUnavailable: the store cannot be used, or the manifest is damaged.
    """
    manifest = read_manifest(store, prefix)
    for file in manifest.files:
        store.delete(f"{prefix}/{file.name}")
    store.delete(f"{prefix}/{MANIFEST}")


def _fetch(store: ObjectStore, prefix: str, file: FolderFile, target: Path) -> None:
    digest = hashlib.sha256()
    n_bytes = 0
    key = f"{prefix}/{file.name}"
    with named_failures(key):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for piece in store.get(key):
                digest.update(piece)
                n_bytes += len(piece)
                out.write(piece)
    if n_bytes != file.n_bytes or digest.hexdigest() != file.sha256:
        raise StorageUnavailable(
            f"Object {key!r} differs from its manifest: {n_bytes} bytes of "
            f"{file.n_bytes}, SHA-256 {digest.hexdigest()[:12]} for {file.sha256[:12]}."
        )
