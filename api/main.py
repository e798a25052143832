"""The HTTP process. `create_app` wires the rooms together and holds nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import errors
from api.deps import Services, system_clock
from api.middleware import BodyLimit, HeadAsGet, RateHeaders, RequestIdentity
from api.queue import CeleryQueue
from api.rates import RequestLimiter
from api.routes import carbon, files, health, jobs, models, reports, uploads
from api.schemas import ErrorOut
from api.uploads import FORM_OVERHEAD_BYTES, MAX_PART_BYTES
from core.carbon.signal import IntensitySignal, LiveOptions, open_signal
from core.errors import InvalidInput, SignalUnavailable, StartRefused
from core.jobs.database import open_database
from core.jobs.signal_texts import SignalTexts
from core.objects.opening import open_store
from core.settings import Settings

# "default" also keeps the framework from promising its own 422, which never comes
_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorOut, "description": "Refused, in OpenAI's error body."}
}
#: how long a request waits for a carbon provider: requests share a few threads, and a provider that
#: is silent must not keep them all; its answer counts once it comes
SIGNAL_PATIENCE = timedelta(seconds=5)
# Job requests are small; metadata at its largest is under 10 KiB.
MAX_JSON_BYTES = 1024**2


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for ``settings``; None reads them from the environment (uvicorn --factory).

    Opens no connection: each is made when first used, so the process starts with the database or
    the broker away and says so in ``/health/ready``.

    Raises:
        InvalidInput, StartRefused: a setting names no place, signal or zone.
    """
    settings = settings or Settings()
    queue = CeleryQueue(settings.resolved_broker_url)
    database = open_database(settings.resolved_database_url)
    limiter = _limiter(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()
        if limiter is not None:
            limiter.close()
        database.dispose()

    # the documentation's scripts come from this server: no CDN is asked, none need be reachable
    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs/assets",
        title="greentune",
        version=version("greentune"),
        summary="Carbon-aware fine-tuning behind an OpenAI-compatible API.",
        lifespan=lifespan,
        # a redirect's address has the scheme that this process sees, http behind a TLS proxy
        redirect_slashes=False,
    )
    signal = open_signal(
        settings.carbon_signal,
        settings.carbon_traces,
        speed=settings.carbon_trace_speed,
        anchor=settings.carbon_trace_anchor,
        live=LiveOptions(
            **settings.carbon_access, store=SignalTexts(database), patience=SIGNAL_PATIENCE
        ),
    )
    _check_own_zone(settings, signal)
    app.state.services = Services(
        settings=settings,
        database=database,
        objects=open_store(**settings.objects_access),
        queue=queue,
        limiter=limiter,
        signal=signal,
        clock=system_clock,
    )
    for room in (files, uploads, jobs, models, carbon, reports, health):
        app.include_router(room.router, responses=_ERRORS)
    errors.install(app)
    app.add_middleware(BodyLimit, limit_bytes=_body_limit(settings))
    app.add_middleware(RateHeaders)
    app.add_middleware(RequestIdentity)
    # outermost: no refusal that others make has a body either
    app.add_middleware(HeadAsGet)
    return app


def _check_own_zone(settings: Settings, signal: IntensitySignal) -> None:
    """Live providers are not asked here: their zones are known only to them.

    Raises:
        StartRefused: this host's zone is none of the signal's.
    """
    if settings.zone is None or settings.carbon_signal not in ("static", "trace"):
        return
    try:
        with suppress(SignalUnavailable):
            signal.at(settings.zone, system_clock())
    except InvalidInput as error:
        raise StartRefused(f"GREENTUNE_ZONE is wrong: {error.message}") from error


def _limiter(settings: Settings) -> RequestLimiter | None:
    if settings.requests_per_minute == 0:
        return None
    return RequestLimiter(settings.resolved_broker_url, settings.requests_per_minute)


def _body_limit(settings: Settings) -> Callable[[str], int]:
    def limit(path: str) -> int:
        # a slash too many is answered with 404, not with the cap of other bodies
        path = path.rstrip("/")
        if path == "/v1/files":
            return settings.max_file_bytes + FORM_OVERHEAD_BYTES
        if uploads.takes_a_part(path):
            return MAX_PART_BYTES + FORM_OVERHEAD_BYTES
        return MAX_JSON_BYTES

    return limit
