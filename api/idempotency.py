"""One effect for a request that arrives twice.

The openai client repeats a POST by itself when the answer does not come, and sends no key unless
its caller passes one. So a request is recognised by ``Idempotency-Key``, or else by API key, route
and body, when ``x-stainless-retry-count`` says that a client which retries is at work.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.deps import AnyCaller
from core.jobs import service
from core.jobs.service.idempotency import IDEMPOTENCY_TTL_S, RETRY_TTL_S

_MAX_COUNT_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """What a request's headers say of being sent twice. Neither: it is always carried out."""

    tenant: str
    api_key_id: str
    route: str
    #: the caller's ``Idempotency-Key``
    key: str | None
    #: how often the client has sent this before; None: the client does not say
    retry_count: int | None

    def earlier_reply(self, session: Session, body_sha256: str, now: datetime) -> Response | None:
        """The answer that this request got before, or None: then carry it out and `remember`.

        Raises:
            InvalidInput: the key was used with another body.
            IdempotencyInProgress: the first request has not finished.
        """
        key = self._key(body_sha256)
        if key is None:
            return None
        stored = service.begin_idempotent(
            session,
            tenant=self.tenant,
            route=self.route,
            key=key,
            body_sha256=body_sha256,
            now=now,
            ttl_s=RETRY_TTL_S if self.key is None else IDEMPOTENCY_TTL_S,
            replay=self.key is not None or bool(self.retry_count),
        )
        return None if stored is None else _json(stored.body, stored.status_code)

    def remember(self, session: Session, body_sha256: str, answer: BaseModel) -> Response:
        """Keep ``answer`` in the transaction of the effect, and return it as the response."""
        body = answer.model_dump_json()
        key = self._key(body_sha256)
        if key is not None:
            service.finish_idempotent(
                session, tenant=self.tenant, route=self.route, key=key, status_code=200, body=body
            )
        return _json(body, 200)

    def _key(self, body_sha256: str) -> str | None:
        if self.key is not None:
            return self.key
        if self.retry_count is None:
            return None
        named = f"{self.api_key_id}\n{self.route}\n{body_sha256}"
        return "retry-" + hashlib.sha256(named.encode()).hexdigest()


def _json(body: str, status_code: int) -> Response:
    return Response(body, status_code=status_code, media_type="application/json")


def idempotency(request: Request, caller: AnyCaller) -> Idempotency:
    count = request.headers.get("x-stainless-retry-count", "")
    return Idempotency(
        tenant=caller.tenant,
        api_key_id=caller.key_id,
        route=f"{request.method} {request.url.path}",
        key=request.headers.get("idempotency-key"),
        # thousands of digits would not convert, and come from no client that retries
        retry_count=int(count) if count.isdecimal() and len(count) <= _MAX_COUNT_DIGITS else None,
    )


async def body_sha256(request: Request) -> str:
    """Of a body that the framework holds in memory anyway; never for uploads."""
    return hashlib.sha256(await request.body()).hexdigest()


IdempotencyDep = Annotated[Idempotency, Depends(idempotency)]
BodyDigest = Annotated[str, Depends(body_sha256)]
