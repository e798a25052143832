"""Receiving a multipart upload: to disk as it arrives, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile

from api.deps import FilesCaller, ServicesDep, SettingsDep
from core.errors import InvalidInput, MissingParameter, TooLarge, UnknownParameter
from core.jobs import service

# What a multipart body may hold besides the file itself.
FORM_OVERHEAD_BYTES = 64 * 1024
MAX_FILENAME_CHARS = 255
MAX_PART_BYTES = 64 * 1024**2
EXPIRES_MIN_S, EXPIRES_MAX_S = 3_600, 2_592_000
_MAX_FIELD_BYTES = 4_096
_EXPIRES = {part: f"expires_after[{part}]" for part in ("anchor", "seconds")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that has arrived; ``data`` is readable until the request ends."""

    filename: str
    data: BinaryIO
    #: None: kept until deleted
    expires_after: timedelta | None

    def expires_at(self, now: datetime) -> datetime | None:
        return None if self.expires_after is None else now + self.expires_after

    def digest(self, content_sha256: str) -> str:
        """SHA-256 over all that the caller sent."""
        sent = (content_sha256, self.filename, str(self.expires_after))
        return hashlib.sha256("\n".join(sent).encode("utf-8", "surrogatepass")).hexdigest()


def room_for_body(request: Request, caller: FilesCaller, held: ServicesDep) -> None:
    """Refuse a file by its announced length, before a byte is read, where it cannot be kept.

    Not one that may have been kept already: the answer that it got is found once it was read.

    Raises:
        LimitExceeded: the tenant would have too much stored.
    """
    headers = request.headers
    announced = headers.get("content-length", "")
    is_repeated = headers.get("x-stainless-retry-count", "0") != "0"
    if is_repeated or "idempotency-key" in headers or not announced.isdecimal():
        return
    n_bytes = max(int(announced) - FORM_OVERHEAD_BYTES, 1)
    with held.database.read() as session:
        service.check_room_for_bytes(
            session, caller.tenant, n_bytes, held.settings.max_stored_bytes
        )


async def received(
    request: Request, settings: SettingsDep, _: Annotated[None, Depends(room_for_body)]
) -> AsyncIterator[Upload]:
    """Read the form once the caller is known; large files lie in the temporary folder meanwhile.

    Raises:
        MissingParameter, InvalidInput: a field is absent or wrong.
        TooLarge, LimitExceeded: the file is over the limit, or cannot be kept.
    """
    async with request.form(max_files=1, max_fields=8, max_part_size=_MAX_FIELD_BYTES) as form:
        yield _upload(form, settings.max_file_bytes)


Received = Annotated[Upload, Depends(received)]


def form_body(properties: Mapping[str, Any], *, required: Sequence[str]) -> dict[str, Any]:
    """A multipart body for the OpenAPI document, which the framework does not parse itself."""
    schema = {"type": "object", "required": list(required), "properties": dict(properties)}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def received_part(request: Request, _: FilesCaller) -> AsyncIterator[BinaryIO]:
    """As `received`, for one part of an upload.

    Raises:
        MissingParameter, InvalidInput: ``data`` is absent or empty.
        TooLarge: it is over `MAX_PART_BYTES`.
    """
    async with request.form(max_files=1, max_fields=8, max_part_size=_MAX_FIELD_BYTES) as form:
        yield _part(form)


ReceivedPart = Annotated[BinaryIO, Depends(received_part)]


def _part(form: FormData) -> BinaryIO:
    _refuse_unknown(form, {"data"})
    data = form.get("data")
    if not isinstance(data, UploadFile):
        raise MissingParameter(
            "Missing required parameter: data. Send it as multipart/form-data.", param="data"
        )
    if not data.size:
        raise InvalidInput("The part is empty.", param="data")
    if data.size > MAX_PART_BYTES:
        raise TooLarge(
            f"The part has {data.size} bytes; at most {MAX_PART_BYTES} are allowed.", param="data"
        )
    return data.file


def _refuse_unknown(form: FormData, known: Collection[str]) -> None:
    """Raises `UnknownParameter`: a misspelt expiry would keep a file for ever."""
    for name in form:
        if name not in known:
            raise UnknownParameter(f"Unknown parameter: {name[:128]}.", param=name[:128])


def _upload(form: FormData, max_file_bytes: int) -> Upload:
    _refuse_unknown(form, {"file", "purpose", *_EXPIRES.values()})
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise MissingParameter(
            "Missing required parameter: file. Send it as multipart/form-data.", param="file"
        )
    check_purpose(form.get("purpose"))
    if file.size is not None and file.size > max_file_bytes:
        raise TooLarge(
            f"The file has {file.size} bytes; at most {max_file_bytes} are allowed.", param="file"
        )
    filename = file.filename or "upload"
    if len(filename) > MAX_FILENAME_CHARS:
        raise InvalidInput(
            f"The file's name has {len(filename)} characters; at most {MAX_FILENAME_CHARS} are "
            "allowed.",
            param="file",
        )
    return Upload(filename=filename, data=file.file, expires_after=_expires_after(form))


def check_purpose(purpose: object) -> None:
    """Raises `MissingParameter` or `InvalidInput` unless it is the one that is known."""
    if purpose is None:
        raise MissingParameter("Missing required parameter: purpose.", param="purpose")
    if purpose != "fine-tune":
        raise InvalidInput(
            'purpose must be "fine-tune": this server stores no other files.',
            param="purpose",
            code="invalid_file_purpose",
        )


def _expires_after(form: FormData) -> timedelta | None:
    given = {part: form[name] for part, name in _EXPIRES.items() if name in form}
    if not given:
        return None
    if given.get("anchor") != "created_at":
        raise InvalidInput("expires_after.anchor must be created_at.", param="expires_after.anchor")
    seconds = str(given.get("seconds", ""))
    in_range = seconds.isdecimal() and EXPIRES_MIN_S <= int(seconds) <= EXPIRES_MAX_S
    if not in_range:
        raise InvalidInput(
            f"expires_after.seconds must be a whole number from {EXPIRES_MIN_S} to "
            f"{EXPIRES_MAX_S}.",
            param="expires_after.seconds",
        )
    return timedelta(seconds=int(seconds))
