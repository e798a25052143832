"""Is the process alive, and could a job be accepted and claimed now."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.deps import Services, ServicesDep
from api.errors import error_body
from api.schemas import ErrorOut
from core.errors import GreentuneError, QueueUnavailable, Unavailable
from core.jobs import store

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/health", tags=["health"])

# A worker shows itself every few seconds; three silences in a row mean that it is gone.
WORKER_SILENT_AFTER_S = 20.0
_PROBE_KEY = "health/probe"
_NO_WORKER = "no worker has shown itself (start one with `greentune worker`)"
Check = Callable[[Services], None]


@router.get("/live")
def live() -> dict[Literal["status"], Literal["ok"]]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"model": ErrorOut}})
def ready(held: ServicesDep) -> Any:
    """200 only when a job could be accepted and claimed; else 503 that names what is missing."""
    missing = missing_parts(held, OUTSIDE | {_NO_WORKER: _check_worker})
    if not missing:
        return {"status": "ok"}
    body = error_body("; ".join(missing), kind="server_error", code="not_ready")
    return JSONResponse(body, status_code=503, headers={"retry-after": "2"})


def missing_parts(held: Services, checks: Mapping[str, Check]) -> dict[str, str]:
    """What does not hold -> why, in words for the operator and not for callers."""
    missing = {}
    for problem, check in checks.items():
        try:
            check(held)
        except (GreentuneError, OSError) as error:
            logger.info("not ready: %s", error)
            missing[problem] = str(error)
    return missing


def _check_objects(held: Services) -> None:
    held.objects.put(_PROBE_KEY, io.BytesIO(b"ready"))


def _check_broker(held: Services) -> None:
    if not held.queue.is_up():
        raise QueueUnavailable("see GREENTUNE_BROKER_URL")


def _check_worker(held: Services) -> None:
    with held.database.read() as session:
        if not store.live_workers(session, now=held.clock(), within_s=WORKER_SILENT_AFTER_S):
            raise Unavailable("no live worker")


#: what a process of ours needs from others
OUTSIDE: dict[str, Check] = {
    "the database does not answer or is not migrated": lambda held: held.database.check(),
    "the object store does not take writes": _check_objects,
    "the message broker does not answer": _check_broker,
}
