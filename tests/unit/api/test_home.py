"""State folders: for their owner alone, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
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


@pytest.mark.parametrize(
    "command", [["keys", "create", "me"], ["keys", "list"], ["migrate"], ["demo", "--folder", "{}"]]
)
def test_every_command_with_a_home_refuses_such_a_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")
    monkeypatch.setenv("GREENTUNE_HOME", home)
    done = CliRunner().invoke(app, [part.format(home) for part in command])
    assert isinstance(done.exception, StartRefused), done.output


def test_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o750)
    assert made_folder(tmp_path / "kept").stat().st_mode & 0o777 == 0o750
