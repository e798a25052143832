"""What the system says of a disk, whoever passes it on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from safetensors import SafetensorError

_NUMBER: Final = re.compile(r"I/O error: .*\(os error (\d+)\)")


@contextmanager
def system_errors() -> Iterator[None]:
    """A full or failing disk is an OSError here, as from every other writer: safetensors tells of
    it by an exception of its own, which would pass for a bug.
    """
    try:
        yield
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error
