"""The folder store, and what only a folder can get wrong."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from core.errors import InvalidInput, StorageUnavailable
from core.objects.folders import put_folder
from core.objects.local import LocalStore, named_failures
from core.objects.opening import open_store
from core.objects.s3 import S3Store
from tests.fixtures.store_contract import StoreContract, read


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


class TestLocalStore(StoreContract):
    def test_nothing_half_written_stays(self, store: LocalStore, tmp_path: Path):
        def source():
            yield b"x"
            raise ValueError

        with pytest.raises(ValueError):
            store.put("a", source())
        left = [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]
        assert left == []

    def test_a_full_disk_is_said_so(self, store: LocalStore):
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
        try:
            with pytest.raises(StorageUnavailable, match="'a' cannot be read or written"):
                store.put("a", (b"x" * (1 << 20) for _ in range(3)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_no_space_left_names_the_way_out(self, store: LocalStore, tmp_path: Path):
        with (
            pytest.raises(StorageUnavailable, match="disk is full; free some space"),
            named_failures("a"),
            Path("/dev/full").open("wb", buffering=0) as out,
        ):
            out.write(b"x")

    def test_a_root_that_is_a_file_is_said_so(self, tmp_path: Path):
        (tmp_path / "root").write_text("")
        with pytest.raises(StorageUnavailable):
            LocalStore(tmp_path / "root").put("a", [b"x"])

    def test_a_reader_keeps_the_version_it_opened(self, store: LocalStore):
        store.put("a", [b"1" * (3 << 20)])
        reader = store.get("a")
        first = next(reader)
        store.put("a", [b"2"])
        assert set(first + b"".join(reader)) == {ord("1")}
        assert read(store, "a") == b"2"

    def test_a_folder_with_a_name_of_ours_or_a_strange_one_is_refused(
        self, store: LocalStore, tmp_path: Path
    ):
        for name in ("manifest.json", "with space"):
            folder = tmp_path / name.replace(" ", "_")
            folder.mkdir()
            (folder / name).write_text("x")
            with pytest.raises(InvalidInput):
                put_folder(store, "f", folder)


def test_opening_drops_what_was_abandoned_and_nothing_else(tmp_path: Path):
    incoming = tmp_path / "an object" / ".incoming"
    incoming.mkdir(parents=True)
    for name, age_s in (("old", 90_000), ("new", 10)):
        (incoming / name).write_text("x")
        stat = (incoming / name).stat()
        os.utime(incoming / name, (stat.st_atime - age_s, stat.st_mtime - age_s))
    store = open_store((tmp_path / "an object").as_uri())
    assert [p.name for p in incoming.iterdir()] == ["new"]
    store.put("a", [b"x"])
    assert (tmp_path / "an object" / "a").read_bytes() == b"x"


def test_s3_urls_open_without_touching_the_network():
    keys = {"s3_access_key_id": "k", "s3_secret_access_key": "s"}
    assert isinstance(open_store("s3://bucket/some/prefix", **keys), S3Store)


def test_half_a_pair_of_keys_is_refused():
    with pytest.raises(InvalidInput, match="SecretAccessKey"):
        open_store("s3://bucket", s3_access_key_id="k")


@pytest.mark.parametrize(
    "url", ["", "objects", "file://host/x", "ftp://a/b", "s3:///x", "memory://"]
)
def test_other_places_are_refused(url: str):
    with pytest.raises(InvalidInput, match="file:///folder or s3://bucket/prefix"):
        open_store(url)
