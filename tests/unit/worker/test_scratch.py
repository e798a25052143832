"""Scratch folders: gone with their owner, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from worker.scratch import scratch_folder

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from worker.scratch import scratch_folder
with scratch_folder(Path(sys.argv[2]), "owner") as folder:
    (folder / "file").write_text("x")
    print("up", flush=True)
    sys.stdin.read()
"""


def test_it_is_empty_and_goes_with_its_block(tmp_path: Path):
    root = tmp_path / "scratch"
    with scratch_folder(root, "job-1") as folder:
        assert [path.name for path in folder.iterdir()] == [".lock"]
        (folder / "deep").mkdir()
    assert list(root.iterdir()) == []


def test_a_killed_owners_folder_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path):
    command = [sys.executable, "-c", OWNER, str(ROOT), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        with scratch_folder(tmp_path, "second"):
            assert (tmp_path / "owner" / "file").exists()
        owner.kill()
    with scratch_folder(tmp_path, "third"):
        assert not (tmp_path / "owner").exists()
