"""/v1/uploads: a large file in parts."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import BinaryIO

from fastapi import APIRouter, Response

from api.deps import FilesCaller, Now, ServicesDep, SettingsDep, Transaction
from api.idempotency import BodyDigest, IdempotencyDep
from api.json_bodies import JsonRoute
from api.schemas import CompleteUpload, CreateUpload, PartOut, UploadOut
from api.stored_files import confirm, stored_bytes, stored_file
from api.uploads import ReceivedPart, check_purpose, form_body
from api.views import file_out, part_out, upload_out
from core.errors import InvalidInput, NotFound, StorageUnavailable, TooLarge
from core.jobs import ids, service, store
from core.jobs.uploads import PartRecord, UploadRecord, check_pending, chosen_parts
from core.objects.store import ObjectStore

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=JsonRoute)

_PARTS = re.compile(r"/v1/uploads/[^/]+/parts")
_FORM = form_body({"data": {"type": "string", "format": "binary"}}, required=["data"])


def takes_a_part(path: str) -> bool:
    """Whether the body of a request for ``path`` is a part."""
    return _PARTS.fullmatch(path) is not None


@router.post("", response_model=UploadOut)
def create_upload(
    request: CreateUpload,
    caller: FilesCaller,
    session: Transaction,
    settings: SettingsDep,
    idempotency: IdempotencyDep,
    body_digest: BodyDigest,
    now: Now,
) -> Response:
    """Announce a file; its parts have an hour to arrive."""
    check_purpose(request.purpose)
    if request.bytes > settings.max_upload_bytes:
        raise TooLarge(
            f"bytes is {request.bytes}; at most {settings.max_upload_bytes} are allowed.",
            param="bytes",
        )
    earlier = idempotency.earlier_reply(session, body_digest, now)
    if earlier is not None:
        return earlier
    kept = request.expires_after
    record = service.create_upload(
        session,
        tenant=caller.tenant,
        filename=request.filename,
        n_bytes=request.bytes,
        file_expires_after_s=None if kept is None else kept.seconds,
        most_bytes=settings.max_stored_bytes,
        now=now,
    )
    return idempotency.remember(session, body_digest, upload_out(record))


@router.post("/{upload_id}/parts", openapi_extra=_FORM)
def create_part(
    upload_id: str,
    data: ReceivedPart,
    caller: FilesCaller,
    session: Transaction,
    held: ServicesDep,
    now: Now,
) -> PartOut:
    """Store a part. One that is sent twice gets two ids; only those that are listed at the end
    count.
    """
    _check_id(upload_id)
    with held.database.read() as reader:
        check_pending(store.get_upload(reader, caller.tenant, upload_id), now)
    part_id = ids.new_id(ids.PART)
    key = f"uploads/{upload_id}/{part_id}"
    with stored_bytes(held.database, held.objects, key, data) as stored:
        confirm(session, key)
        record = service.add_part(
            session,
            tenant=caller.tenant,
            upload_id=upload_id,
            part_id=part_id,
            object_key=key,
            n_bytes=stored.n_bytes,
            most_bytes=held.settings.max_stored_bytes,
            now=now,
        )
    return part_out(record)


@router.post("/{upload_id}/complete", response_model=UploadOut)
def complete_upload(
    upload_id: str,
    request: CompleteUpload,
    caller: FilesCaller,
    session: Transaction,
    held: ServicesDep,
    idempotency: IdempotencyDep,
    body_digest: BodyDigest,
    now: Now,
) -> Response:
    """Join the listed parts to a file, which is checked as if it had come in one piece."""
    _check_id(upload_id)
    with held.database.read() as reader:
        # in this order: parts that an end meanwhile has taken away are not missed below
        parts = store.list_parts(reader, upload_id)
        upload = store.get_upload(reader, caller.tenant, upload_id)
    if upload.status != "pending":
        # sent again by a client that missed the answer, or refused
        earlier = idempotency.earlier_reply(session, body_digest, now)
        if earlier is not None:
            return earlier
    check_pending(upload, now)
    chosen = chosen_parts(upload, parts, request.part_ids)
    with (
        _joined(held.objects, chosen, md5=request.md5) as data,
        stored_file(
            held.database,
            held.objects,
            data,
            filename=upload.filename,
            expires_at=_file_expires_at(upload, now),
            max_line_bytes=held.settings.max_line_bytes,
        ) as file,
    ):
        # the slow part is over: only now does the session take its connection
        earlier = idempotency.earlier_reply(session, body_digest, now)
        if earlier is not None:
            held.objects.delete(file.object_key)
            return earlier
        confirm(session, file.object_key)
        record, made = service.complete_upload(
            session, tenant=caller.tenant, upload_id=upload_id, file=file, now=now
        )
        return idempotency.remember(session, body_digest, upload_out(record, file_out(made)))


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, caller: FilesCaller, session: Transaction, now: Now) -> UploadOut:
    """409 once the upload is completed or expired."""
    _check_id(upload_id)
    record = service.cancel_upload(session, tenant=caller.tenant, upload_id=upload_id, now=now)
    return upload_out(record)


def _check_id(upload_id: str) -> None:
    if not ids.is_id(ids.UPLOAD, upload_id):
        raise NotFound(f"No such Upload object: {upload_id[:64]}", param="id")


def _file_expires_at(upload: UploadRecord, now: datetime) -> datetime | None:
    seconds = upload.file_expires_after_s
    return None if seconds is None else now + timedelta(seconds=seconds)


@contextmanager
def _joined(
    objects: ObjectStore, parts: Iterable[PartRecord], *, md5: str | None
) -> Iterator[BinaryIO]:
    """The parts one after another, in the temporary folder meanwhile.

    Raises:
        InvalidInput: they do not have the checksum ``md5``.
        StorageUnavailable: a part cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile() as file:
        for piece in _pieces(objects, parts):
            digest.update(piece)
            file.write(piece)
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise InvalidInput(
                f"The listed parts have the MD5 {digest.hexdigest()}, not {md5}.", param="md5"
            )
        file.seek(0)
        yield file


def _pieces(objects: ObjectStore, parts: Iterable[PartRecord]) -> Iterator[bytes]:
    for part in parts:
        try:
            yield from objects.get(part.object_key)
        except NotFound as error:
            # the upload has been cancelled meanwhile, which the client's next try will be told
            raise StorageUnavailable(f"Part {part.id} cannot be read; try again.") from error
