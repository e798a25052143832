"""A local server in a provider's place, and the pauses that its clients ask for."""

from collections.abc import Iterator

import pytest

from tests.fixtures.provider_server import ProviderServer


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    running = ProviderServer()
    yield running
    running.close()


@pytest.fixture
def waits() -> list[float]:
    return []
