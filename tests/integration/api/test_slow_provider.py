"""A carbon provider that does not answer costs a caller seconds, not the API its threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from core.settings import Settings
from migrations import upgrade
from tests.fixtures.provider_server import ProviderServer


@pytest.fixture
def provider() -> Iterator[ProviderServer]:
    made = ProviderServer()
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path, provider: ProviderServer) -> Settings:
    made = Settings(
        home=tmp_path,
        models=("tiny",),
        carbon_signal="electricity_maps",
        carbon_token="t",
        carbon_url=provider.url,
    )
    upgrade(made.resolved_database_url)
    return made


def test_nobody_waits_for_a_provider_until_it_gives_up(
    client: openai.OpenAI, provider: ProviderServer
) -> None:
    provider.answer("/carbon-intensity/history", {}, hang_s=600)
    told = client.get("/green/intensity?zone=FR", cast_to=dict[str, object])
    # the provider is still silent: had the answer waited for it, "did not answer in time" it said
    assert not provider.release.is_set()
    assert "has not answered yet" in str(told["source"])
    assert "static average" in str(told["source"])
