"""One effect for a request that is sent twice (OPENAI_CONTRACT.md, section 1)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from core.errors import IdempotencyInProgress, InvalidInput
from core.jobs.records import StoredReply
from core.jobs.store.rows import FRESH, insert_on_conflict, is_storable
from core.jobs.tables import Idempotency

KEY_LENGTH = 255
IDEMPOTENCY_TTL_S = 86_400.0
#: a client's own retry, without a key, is recognised for so long
RETRY_TTL_S = 600.0
#: a request that has not finished by then died: its key may be taken over
IN_PROGRESS_S = 600.0


def begin_idempotent(
    session: Session,
    *,
    tenant: str,
    route: str,
    key: str,
    body_sha256: str,
    now: datetime,
    ttl_s: float = IDEMPOTENCY_TTL_S,
    replay: bool = True,
) -> StoredReply | None:
    """Take ``key`` for this request, or answer what the first request with it was answered.

    None: go on, then call `finish_idempotent` in the transaction that commits the effect. In one
    transaction with the effect, a second request waits for the first one's commit, and a failure
    frees the key; where this call is committed on its own, a second request meanwhile is refused.

    Args:
        session: open session.
        tenant: whose key it is; tenants never see each other's.
        route: e.g. "POST /v1/files".
        key: the ``Idempotency-Key`` header, 1 to 255 characters; without one, a digest of API
            key id, route and body.
        body_sha256: hex digest of the request's body.
        now: aware UTC.
        ttl_s: seconds for which the reply is kept.
        replay: False takes the key over whatever it holds: for a request without a key that says
            it is no retry (``x-stainless-retry-count: 0``).

    Raises:
        InvalidInput: the key was used with another body (code idempotency_key_reused), or is
            empty, too long or not storable.
        IdempotencyInProgress: the first request has not finished.
    """
    if not (1 <= len(key) <= KEY_LENGTH and is_storable(key)):
        raise InvalidInput(
            f"Idempotency-Key must have 1 to {KEY_LENGTH} characters.", param="Idempotency-Key"
        )
    values: dict[str, Any] = {
        "body_sha256": body_sha256,
        "started_at": now,
        "expires_at": now + timedelta(seconds=ttl_s),
        "status_code": None,
        "body": None,
    }
    inserted = session.execute(
        insert_on_conflict(session, Idempotency)
        .values(tenant=tenant, route=route, key=key, **values)
        .on_conflict_do_nothing()
        .returning(Idempotency.key),
        execution_options=FRESH,
    ).one_or_none()
    if inserted is not None:
        return None
    # whoever inserted it has committed by now: the insert waited for that
    row = session.scalars(
        select(Idempotency).where(*_is(tenant, route, key)).with_for_update(),
        execution_options=FRESH,
    ).one()
    if replay and row.expires_at > now:
        reply = _stored(row, body_sha256=body_sha256, now=now)
        if reply is not None:
            return reply
    for name, value in values.items():
        setattr(row, name, value)
    session.flush()
    return None


def _stored(row: Idempotency, *, body_sha256: str, now: datetime) -> StoredReply | None:
    """The reply; None: the request that took the key has died."""
    if row.body_sha256 != body_sha256:
        raise InvalidInput(
            "This Idempotency-Key was used with another request body; choose a new key.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    if row.status_code is not None and row.body is not None:
        return StoredReply(status_code=row.status_code, body=row.body)
    if row.started_at > now - timedelta(seconds=IN_PROGRESS_S):
        raise IdempotencyInProgress(
            "A request with this Idempotency-Key is being worked on; try again in a moment.",
            param="Idempotency-Key",
        )
    return None


def _is(tenant: str, route: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return (Idempotency.tenant == tenant, Idempotency.route == route, Idempotency.key == key)


def finish_idempotent(
    session: Session, *, tenant: str, route: str, key: str, status_code: int, body: str
) -> None:
    """Keep the reply of the request that took ``key``."""
    session.execute(
        update(Idempotency)
        .where(*_is(tenant, route, key))
        .values(status_code=status_code, body=body),
        execution_options=FRESH,
    )
