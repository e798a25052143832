"""What an exception that nobody foresaw says to a caller, and whether its like may pass.

The traceback is the worker's log's. A caller gets one sentence without what is this host's own
matter (paths, addresses of servers, SQL), and the same sentence whenever the exception is the same:
`core.jobs.service.raised` compares them.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from sqlalchemy.exc import SQLAlchemyError

_LONGEST: Final = 200
#: what is left out -> what stands in its place, in this order
_OMITTED: Final = (
    (re.compile(r"\w[\w+.-]*://[^\s'\"<>]+"), "<address>"),
    (re.compile(r"(['\"])~?/[^'\"]*\1"), "<path>"),
    (re.compile(r"(?<![\w.)\]])~?/[^\s'\":;,()<>]+"), "<path>"),
    # where an object lay in memory is another place every time
    (re.compile(r"\b0x[0-9a-f]{6,}"), "0x..."),
)
# Messages of torch for what went wrong on a card: a sick one, or one that others have used up.
_OF_DEVICE: Final = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|NCCL error")
# These tell of the program: an index out of range, shapes that do not go together.
_OF_PROGRAM: Final = re.compile(r"device-side assert|STATUS_(INVALID_VALUE|BAD_PARAM)")


def sentence_of(error: Exception) -> str:
    """One sentence, without its full stop; at most some 250 characters."""
    # a database's words quote statements and name servers
    words = "" if isinstance(error, SQLAlchemyError) else str(error).strip()
    said = " ".join(words.split("\n")[0].split())
    for pattern, instead in _OMITTED:
        said = pattern.sub(instead, said)
    said = said.rstrip(".:")
    if len(said) > _LONGEST:
        said = said[: _LONGEST - 3].rstrip() + "..."
    named = f"Training failed with {type(error).__name__}"
    return f"{named}: {said}" if said else named


def may_pass(error: Exception) -> bool:
    """Whether the card is to blame rather than the program: another attempt, on this card or
    another, may fare better though the last one ended alike.
    """
    is_of_torch = isinstance(error, RuntimeError)
    said = str(error) if is_of_torch else ""
    is_of_device = isinstance(error, torch.AcceleratorError) or bool(_OF_DEVICE.search(said))
    return is_of_device and not _OF_PROGRAM.search(said)
