"""Object ids (prefix and 96 random bits in hex) and the names of fine-tuned models."""

from __future__ import annotations

import re
import secrets
import string
from typing import Final

JOB: Final = "ftjob-"
EVENT: Final = "ftevent-"
CHECKPOINT: Final = "ftckpt_"
FILE: Final = "file-"
UPLOAD: Final = "upload_"
PART: Final = "part_"
KEY: Final = "key_"
#: what the names of fine-tuned models and their checkpoints begin with
TUNED: Final = "ft:"

_DIGITS: Final = string.digits + string.ascii_letters
_TAIL = re.compile(r"[0-9a-f]{24}", re.ASCII)
_CHECKPOINT_MODEL = re.compile(r"ft:.+:ckpt-step-[0-9]+", re.ASCII)
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def new_id(prefix: str) -> str:
    """``prefix`` and 24 hex digits: no two ever meet."""
    return prefix + secrets.token_hex(12)


def is_id(prefix: str, text: str) -> bool:
    """Whether ``text`` has the shape of an id; anything else is known not to exist."""
    return text.startswith(prefix) and _TAIL.fullmatch(text, len(prefix)) is not None


def fine_tuned_model(*, base: str, tenant: str, suffix: str | None, job_id: str) -> str:
    """``ft:<last segment of base>:<tenant>:<suffix or empty>:<8 characters of the job's id>``.

    A function of the job alone, so that its checkpoints can be named before it ends.
    """
    segment = base.rstrip("/").rpartition("/")[2]
    tail = _short(int(job_id.removeprefix(JOB), 16))
    return f"ft:{_UNFIT.sub('-', segment)}:{_UNFIT.sub('-', tenant)}:{suffix or ''}:{tail}"


def _short(number: int) -> str:
    """The last 8 digits of ``number`` to base 62: 2e14 of them, so that no two models meet."""
    digits = []
    for _ in range(8):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def checkpoint_model(model: str, step: int) -> str:
    return f"{model}:ckpt-step-{step}"


def is_checkpoint_model(model: str) -> bool:
    return _CHECKPOINT_MODEL.fullmatch(model) is not None
