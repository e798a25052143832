"""The state folder of a service: made for its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import StartRefused


def made_folder(folder: Path) -> Path:
    """Create ``folder`` for this user alone; one that is there stays as it is.

    Raises:
        StartRefused: it cannot be created; says why.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartRefused(
            f"The folder {folder} cannot be made ({reason_of(error)}); mend what is in the way or "
            "choose another folder (GREENTUNE_HOME)."
        ) from error
    return folder


def private_folder(folder: Path) -> Path:
    """Create ``folder`` for its owner alone, or check that it is the owner's already.

    Raises:
        StartRefused: it cannot be made, or belongs to somebody else, who could be listening in.
    """
    made_folder(folder)
    try:
        if folder.stat().st_uid != os.getuid():
            raise StartRefused(
                f"{folder} belongs to another user; remove it or choose another home."
            )
        folder.chmod(0o700)
    except OSError as error:
        raise StartRefused(
            f"The folder {folder} cannot be made this user's own ({reason_of(error)})."
        ) from error
    return folder


def reason_of(error: OSError) -> str:
    """The system's own words, without the address that Python adds; None of it for look-ups."""
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0) if known else str(error.strerror)
