"""Providers that ask a local server."""

from datetime import UTC, datetime, timedelta

import httpx

from core.carbon.providers.electricity_maps import ElectricityMaps
from core.carbon.providers.fetch import Fetcher
from tests.fixtures.provider_server import ProviderServer

NOW = datetime(2026, 5, 21, 0, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
LATEST = {
    "zone": "DE",
    "carbonIntensity": 322,
    "datetime": "2026-05-21T00:00:00.000Z",
    "updatedAt": "2026-05-20T23:46:00.000Z",
    "isEstimated": False,
    "estimationMethod": None,
    "emissionFactorType": "lifecycle",
}


def fetcher(server: ProviderServer, waits: list[float], name="Provider", **options) -> Fetcher:
    timeout = httpx.Timeout(0.5, connect=2.0)
    return Fetcher(name, server.url, timeout=timeout, sleep=waits.append, **options)


def maps(server, waits) -> ElectricityMaps:
    return ElectricityMaps(
        fetcher(server, waits, "Electricity Maps", headers={"auth-token": "s3cret"})
    )
