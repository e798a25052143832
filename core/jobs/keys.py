"""API keys: 256 random bits, shown once; what is stored is their SHA-256.

A key reads ``gt-`` + 24 hex digits (its id, for looking it up) + 43 characters (the secret).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import AuthenticationFailed, InvalidInput, NotFound, PermissionRefused
from core.jobs import ids
from core.jobs.records import Caller, KeyRecord, Scope
from core.jobs.store.rows import FRESH, is_storable, record
from core.jobs.tables import ApiKey

PREFIX = "gt-"
SECRET_BYTES = 32
ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)
_SHAPE = re.compile(r"gt-([0-9a-f]{24})[A-Za-z0-9_-]{43}", re.ASCII)
# compared with where there is no such key, so that its absence takes as long to find out
_NO_KEY = "0" * 64


def create(
    session: Session,
    *,
    tenant: str,
    name: str,
    scopes: Iterable[Scope] = ALL_SCOPES,
    now: datetime,
    expires_at: datetime | None = None,
) -> str:
    """The new key in plain text: the only time it can be read.

    Raises:
        InvalidInput: an unknown scope, or a name or tenant that is empty, too long or not
            storable.
    """
    wanted = frozenset(scopes)
    if not wanted or not wanted <= set(ALL_SCOPES):
        raise InvalidInput(f"scopes must be some of {', '.join(ALL_SCOPES)}.", param="scopes")
    for param, text in (("name", name), ("tenant", tenant)):
        if not (1 <= len(text) <= 255 and is_storable(text)):
            raise InvalidInput(f"{param} must have 1 to 255 characters.", param=param)
    key_id = ids.new_id(ids.KEY)
    plaintext = PREFIX + key_id.removeprefix(ids.KEY) + secrets.token_urlsafe(SECRET_BYTES)
    session.add(
        ApiKey(
            id=key_id,
            tenant=tenant,
            name=name,
            sha256=_digest(plaintext),
            scopes=wanted,
            created_at=now,
            expires_at=expires_at,
        )
    )
    session.flush()
    return plaintext


def authenticate(session: Session, plaintext: str, *, now: datetime) -> Caller:
    """Who holds this key.

    Raises:
        AuthenticationFailed: unknown, expired or revoked, without saying which.
    """
    shape = _SHAPE.fullmatch(plaintext)
    row = None if shape is None else _find(session, ids.KEY + shape.group(1))
    stored = _NO_KEY if row is None else row.sha256
    matches = hmac.compare_digest(_digest(plaintext), stored)
    if (
        row is None
        or not matches
        or row.revoked_at is not None
        or (row.expires_at is not None and row.expires_at <= now)
    ):
        raise AuthenticationFailed(
            "The API key is not valid; make one with `greentune keys create NAME`."
        )
    scopes: frozenset[Scope] = frozenset(scope for scope in ALL_SCOPES if scope in row.scopes)
    return Caller(tenant=row.tenant, key_id=row.id, name=row.name, scopes=scopes)


def require(caller: Caller, scope: Scope) -> None:
    """Raises `PermissionRefused` unless the key has ``scope``; ``admin`` has all."""
    if not {scope, "admin"} & caller.scopes:
        raise PermissionRefused(f"The API key {caller.name!r} lacks the scope {scope!r}.")


def list_keys(session: Session, *, tenant: str) -> tuple[KeyRecord, ...]:
    """All keys of a tenant, revoked ones too, newest first."""
    statement = (
        select(ApiKey)
        .where(ApiKey.tenant == tenant)
        .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
    )
    return tuple(
        record(KeyRecord, row) for row in session.scalars(statement, execution_options=FRESH)
    )


def revoke(session: Session, *, tenant: str, key_id: str, now: datetime) -> KeyRecord:
    """From the commit on, the key is refused. Idempotent. Raises `NotFound`."""
    row = _find(session, key_id) if ids.is_id(ids.KEY, key_id) else None
    if row is None or row.tenant != tenant:
        raise NotFound(f"There is no API key {key_id!r}.", param="key_id")
    if row.revoked_at is None:
        row.revoked_at = now
        session.flush()
    return record(KeyRecord, row)


def _find(session: Session, key_id: str) -> ApiKey | None:
    statement = select(ApiKey).where(ApiKey.id == key_id)
    return session.scalars(statement, execution_options=FRESH).one_or_none()


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode(errors="surrogatepass")).hexdigest()
