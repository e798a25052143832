"""/v1/files: training data in, result files out."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from api.deps import (
    AfterCommit,
    FilesCaller,
    IsHead,
    Now,
    Objects,
    Reader,
    ServicesDep,
    Transaction,
)
from api.errors import error_body
from api.idempotency import IdempotencyDep
from api.ranges import Part, Unsatisfiable, part_of
from api.schemas import CursorListOf, Deleted, ErrorOut, FileOut
from api.stored_files import confirm, stored_file
from api.uploads import Received, form_body
from api.views import cursor_list_of, file_out
from core.errors import InvalidInput, NotFound
from core.jobs import ids, service, store
from core.jobs.records import FileRecord

router = APIRouter(prefix="/v1/files", tags=["files"])

_FORM = form_body(
    {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["fine-tune"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
    required=["file", "purpose"],
)

_BYTES: dict[str, Any] = {"application/octet-stream": {}, "text/csv": {}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": _BYTES},
    206: {"description": "The range that was asked for.", "content": _BYTES},
    416: {"description": "The file has nothing of that range.", "model": ErrorOut},
}


@router.post("", response_model=FileOut, openapi_extra=_FORM)
def create_file(
    upload: Received,
    caller: FilesCaller,
    session: Transaction,
    held: ServicesDep,
    idempotency: IdempotencyDep,
    now: Now,
) -> Response:
    """Store a training file and check it. What is wrong with its content does not refuse the
    upload: it is reported, with line numbers, in ``validation``. Of a table (.csv, .parquet) the
    form is checked: what its columns must hold is for the job's ``green.task`` to say.
    """
    with stored_file(
        held.database,
        held.objects,
        upload.data,
        filename=upload.filename,
        expires_at=upload.expires_at(now),
        max_line_bytes=held.settings.max_line_bytes,
    ) as file:
        # the slow part is over: only now does the session take its connection
        digest = upload.digest(file.sha256)
        earlier = idempotency.earlier_reply(session, digest, now)
        if earlier is not None:
            held.objects.delete(file.object_key)
            return earlier
        confirm(session, file.object_key)
        record = service.create_file(
            session,
            tenant=caller.tenant,
            file=file,
            most_bytes=held.settings.max_stored_bytes,
            now=now,
        )
        return idempotency.remember(session, digest, file_out(record))


@router.get("")
def list_files(
    caller: FilesCaller,
    session: Reader,
    now: Now,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> CursorListOf:
    if purpose not in (None, "fine-tune", "fine-tune-results"):
        return CursorListOf(data=[], has_more=False, first_id=None, last_id=None)
    if after is not None and not ids.is_id(ids.FILE, after):
        raise InvalidInput("after must be the id of a file.", param="after")
    page = store.list_files(
        session,
        caller.tenant,
        now=now,
        purpose=purpose,  # type: ignore[arg-type]  # narrowed above
        order=order,
        after=after,
        limit=limit,
    )
    return cursor_list_of(page, file_out)


@router.get("/{file_id}")
def retrieve_file(file_id: str, caller: FilesCaller, session: Reader, now: Now) -> FileOut:
    _check_id(file_id)
    return file_out(store.get_file(session, caller.tenant, file_id, now=now))


@router.delete("/{file_id}")
def delete_file(
    file_id: str, caller: FilesCaller, session: Transaction, outbox: AfterCommit, now: Now
) -> Deleted:
    """409 while a job that has not ended reads the file."""
    _check_id(file_id)
    record = service.delete_file(session, tenant=caller.tenant, file_id=file_id, now=now)
    outbox.delete_object(record.object_key)
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content", response_class=Response, responses=_CONTENT)
def file_content(
    file_id: str,
    caller: FilesCaller,
    session: Reader,
    objects: Objects,
    is_head: IsHead,
    now: Now,
    wanted: Annotated[str | None, Header(alias="range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """The file, or the one range of bytes that is asked for; ``if-range`` takes the ``etag``."""
    _check_id(file_id)
    record = store.get_file(session, caller.tenant, file_id, now=now)
    headers = _content_headers(record)
    if if_range not in (None, headers["etag"]):
        wanted = None
    try:
        part = part_of(wanted, record.n_bytes)
    except Unsatisfiable:
        return _no_such_range(record.n_bytes)
    if part is None:
        status, part = HTTPStatus.OK, Part(0, record.n_bytes)
    else:
        status = HTTPStatus.PARTIAL_CONTENT
        headers["content-range"] = f"bytes {part.start}-{part.end - 1}/{record.n_bytes}"
    # of nothing the store still says whether it has the object
    end = part.start if is_head else part.end
    is_table = record.purpose == "fine-tune-results" and record.filename.endswith(".csv")
    return StreamingResponse(
        _started(objects.get(record.object_key, start=part.start, end=end)),
        status_code=status,
        media_type="text/csv; charset=utf-8" if is_table else "application/octet-stream",
        headers=headers | {"content-length": str(part.end - part.start)},
    )


def _no_such_range(n_bytes: int) -> Response:
    message = f"The file has {n_bytes} bytes; the range begins beyond them."
    return JSONResponse(
        error_body(message, kind="invalid_request_error", code="invalid_value", param="range"),
        status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        headers={"content-range": f"bytes */{n_bytes}", "x-should-retry": "false"},
    )


def _content_headers(record: FileRecord) -> dict[str, str]:
    return {
        "accept-ranges": "bytes",
        "etag": f'"{record.sha256}"',
        "content-disposition": f"attachment; filename*=UTF-8''{_header_safe(record.filename)}",
        "x-content-type-options": "nosniff",
    }


def _check_id(file_id: str) -> None:
    if not ids.is_id(ids.FILE, file_id):
        raise NotFound(f"No such File object: {file_id[:64]}", param="id")


def _header_safe(filename: str) -> str:
    return quote(filename, safe="", errors="replace")


def _started(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Read the first chunk now, while a missing object can still be answered with an error."""
    return chain([next(chunks, b"")], chunks)
