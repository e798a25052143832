"""The whole application on a migrated SQLite database and a folder; the broker is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.client import Client
from api.main import create_app
from core.jobs import keys
from core.jobs.database import Database
from core.settings import Settings
from migrations import upgrade

TENANT = "acme"
OTHER = "rival"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    made = Settings(home=home, models=("tiny", "org/base"), max_file_bytes=2 * 1024**2)
    upgrade(made.resolved_database_url)
    return made


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def http(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def database(app: FastAPI) -> Database:
    held: Database = app.state.services.database
    return held


@pytest.fixture
def new_key(database: Database) -> Callable[..., str]:
    def create(tenant: str = TENANT, **options: object) -> str:
        with database.transaction() as session:
            return keys.create(
                session, tenant=tenant, name="test", now=datetime.now(UTC), **options
            )

    return create


@pytest.fixture
def client(http: TestClient, new_key: Callable[..., str]) -> openai.OpenAI:
    return _client(http, new_key())


@pytest.fixture
def rival(http: TestClient, new_key: Callable[..., str]) -> openai.OpenAI:
    return _client(http, new_key(OTHER))


@pytest.fixture
def server(client: openai.OpenAI, http: TestClient) -> Callable[[], AbstractContextManager[Client]]:
    """Stands for `api.edge.server`: a command's HTTP goes to the application in this process."""

    @contextmanager
    def connected() -> Iterator[Client]:
        asked = Client("http://testserver", client.api_key)
        http.headers["authorization"] = f"Bearer {client.api_key}"
        asked._http = http
        yield asked

    return connected


def _client(http: TestClient, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://testserver/v1",
        api_key=key,
        http_client=http,
        max_retries=0,
        _strict_response_validation=True,
    )
