"""Records of files that arrive in parts, and the rules of their completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from core.errors import InvalidInput, InvalidTransition

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

#: an upload that is not completed by then is dropped
UPLOAD_S: Final = 3_600.0
MAX_PARTS: Final = 10_000
#: the openai client sends a part up to three times, and only the last one may be listed
MAX_COPIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    id: str
    tenant: str
    #: the caller's words: data, never a path
    filename: str
    #: as announced
    n_bytes: int
    status: UploadStatus
    #: of the file that it becomes; None: kept until deleted
    file_expires_after_s: int | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A part whose bytes lie in the object store."""

    id: str
    upload_id: str
    n_bytes: int
    object_key: str
    created_at: datetime


def check_pending(upload: UploadRecord, now: datetime) -> None:
    """Raises `InvalidTransition` if the upload takes no more parts and cannot be completed."""
    status = upload.status
    if status == "pending" and upload.expires_at <= now:
        status = "expired"
    if status != "pending":
        raise InvalidTransition(
            f"Upload {upload.id} is {status}; create a new one.", param="upload_id"
        )


def check_room(upload: UploadRecord, *, n_parts: int, held_bytes: int, n_bytes: int) -> None:
    """Parts that are sent again are spare, but not without end.

    Args:
        upload: that takes the part.
        n_parts: that it has.
        held_bytes: by them.
        n_bytes: of the new one.

    Raises:
        InvalidInput: there are too many parts, or too many bytes for what was announced.
    """
    if n_parts >= MAX_PARTS:
        raise InvalidInput(f"An upload takes at most {MAX_PARTS} parts.", param="data")
    held = held_bytes + n_bytes
    if held > MAX_COPIES * upload.n_bytes:
        raise InvalidInput(
            f"With this part the upload would hold {held} bytes, more than {MAX_COPIES} times the "
            f"{upload.n_bytes} that were announced.",
            param="data",
        )


def chosen_parts(
    upload: UploadRecord, parts: Sequence[PartRecord], part_ids: Sequence[str]
) -> tuple[PartRecord, ...]:
    """The listed parts, in the order of the list.

    Raises:
        InvalidInput: one is not of this upload or is listed twice, or together they do not have
            the announced number of bytes.
    """
    if len(set(part_ids)) < len(part_ids):
        raise InvalidInput("part_ids lists a part twice.", param="part_ids")
    known = {part.id: part for part in parts}
    for part_id in part_ids:
        if part_id not in known:
            raise InvalidInput(f"Upload {upload.id} has no part {part_id!r}.", param="part_ids")
    chosen = tuple(known[part_id] for part_id in part_ids)
    n_bytes = sum(part.n_bytes for part in chosen)
    if n_bytes != upload.n_bytes:
        raise InvalidInput(
            f"The listed parts have {n_bytes} bytes; {upload.n_bytes} were announced.",
            param="part_ids",
        )
    return chosen
