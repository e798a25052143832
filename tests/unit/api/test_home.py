"""State folders: for their owner alone, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from api.home import made_folder, private_folder
from core.errors import StartRefused


@pytest.mark.parametrize("make", [made_folder, private_folder])
def test_a_folder_that_cannot_be_made_is_refused(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartRefused, match=r"cannot be made \(Not a directory\); .*GREENTUNE_HOME"):
        make(tmp_path / "file" / "home")
    with pytest.raises(StartRefused, match=r"cannot be made \(File exists\)"):
        make(tmp_path / "file")


def test_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o750)
    assert made_folder(tmp_path / "kept").stat().st_mode & 0o777 == 0o750
