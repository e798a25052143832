"""What routes are given: one transaction, the caller, the clock, and the outside world's ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from api.outbox import Outbox
from api.queue import JobQueue
from api.rates import RequestLimiter, of_address
from core.carbon.signal import IntensitySignal
from core.errors import AuthenticationFailed, LimitExceeded, PermissionRefused
from core.jobs import keys
from core.jobs.database import Database
from core.jobs.records import Caller, Scope
from core.objects.store import ObjectStore
from core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the process holds for its lifetime; built in `api.main`."""

    settings: Settings
    database: Database
    objects: ObjectStore
    queue: JobQueue
    #: None: requests are not limited
    limiter: RequestLimiter | None
    signal: IntensitySignal
    clock: Callable[[], datetime]


def system_clock() -> datetime:
    return datetime.now(UTC)


def services(request: Request) -> Services:
    held: Services = request.app.state.services
    return held


ServicesDep = Annotated[Services, Depends(services)]


def settings(held: ServicesDep) -> Settings:
    return held.settings


def now(held: ServicesDep) -> datetime:
    return held.clock()


def objects(held: ServicesDep) -> ObjectStore:
    return held.objects


def signal(held: ServicesDep) -> IntensitySignal:
    return held.signal


def outbox(held: ServicesDep) -> Iterator[Outbox]:
    """Opened before the transaction and emptied after it: nothing leaves without a commit."""
    box = Outbox()
    yield box
    box.send(held.queue, held.objects)


AfterCommit = Annotated[Outbox, Depends(outbox, scope="function")]


def transaction(held: ServicesDep, _: AfterCommit) -> Iterator[Session]:
    """One request, one transaction, committed before the response leaves (scope="function")."""
    with held.database.transaction() as session:
        yield session


def reader(held: ServicesDep) -> Iterator[Session]:
    with held.database.read() as session:
        yield session


def is_head(request: Request) -> bool:
    """Whether the answer's body is left out, see `api.middleware.HeadAsGet`."""
    return getattr(request.state, "is_head", False)


_bearer = HTTPBearer(auto_error=False, description="An API key: `greentune keys create NAME`.")


def caller(
    held: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    request: Request,
) -> Caller:
    """Who calls, by the bearer key.

    In a session of its own, over before a body is read: a slow upload holds no connection.

    Raises:
        AuthenticationFailed: no key, or not a valid one.
        LimitExceeded: the key has no request left, or the address none without a valid key.
        PermissionRefused: the organization header names another tenant.
    """
    try:
        found = _authenticated(held, credentials)
    except AuthenticationFailed:
        # after the key was looked at: those who share an address with a guesser are let in
        host = None if request.client is None else request.client.host
        unknown = "calls of a minute without a valid API key"
        _count(request, held.limiter, of_address(host), who="This address", what=unknown)
        raise
    who = f"The API key {found.name!r}"
    _count(request, held.limiter, found.key_id, who=who, what="requests of a minute")
    named = request.headers.get("openai-organization")
    if named and named != found.tenant:
        raise PermissionRefused(
            "The header OpenAI-Organization names another organization than this API key's; "
            "leave the header out."
        )
    return found


def _authenticated(held: Services, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    if credentials is None or not credentials.credentials:
        message = "No API key was sent. Send it as the header `Authorization: Bearer <key>`."
        raise AuthenticationFailed(message, code="missing_api_key")
    with held.database.read() as session:
        return keys.authenticate(session, credentials.credentials, now=held.clock())


def _count(
    request: Request, limiter: RequestLimiter | None, holder: str, *, who: str, what: str
) -> None:
    allowance = None if limiter is None else limiter.take(holder)
    if allowance is None:
        return
    request.state.rate_headers = allowance.headers
    if allowance.wait_s:
        raise LimitExceeded(
            f"{who} has made its {allowance.per_minute} {what}. Try again in "
            f"{allowance.wait_s:.3g} seconds, as the header retry-after says."
        )


AnyCaller = Annotated[Caller, Depends(caller)]


def scoped(scope: Scope) -> Callable[[Caller], Caller]:
    """The caller, refused unless the key has ``scope``."""

    def require(found: AnyCaller) -> Caller:
        keys.require(found, scope)
        return found

    return require


SettingsDep = Annotated[Settings, Depends(settings)]
Now = Annotated[datetime, Depends(now)]
IsHead = Annotated[bool, Depends(is_head)]
Objects = Annotated[ObjectStore, Depends(objects)]
Signal = Annotated[IntensitySignal, Depends(signal)]
Transaction = Annotated[Session, Depends(transaction, scope="function")]
Reader = Annotated[Session, Depends(reader, scope="function")]
FilesCaller = Annotated[Caller, Depends(scoped("files"))]
JobsCaller = Annotated[Caller, Depends(scoped("jobs"))]
ModelsCaller = Annotated[Caller, Depends(scoped("models"))]
