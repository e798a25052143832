"""`greentune report` against the application itself, with rows as workers leave them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from typer.testing import CliRunner, Result

from api import report_command
from api.cli import app
from api.client import Client
from core.jobs.database import Database
from core.jobs.tables import EnergySample
from core.settings import Settings
from tests.integration.api.farm import Farm, samples

NOW = datetime(2026, 5, 1, 8, tzinfo=UTC)


@pytest.fixture
def farm(client: openai.OpenAI, database: Database, chat_lines: Callable[[int], bytes]) -> Farm:
    uploaded = client.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune")
    return Farm(client, database, uploaded.id)


@pytest.fixture
def greentune(
    server: Callable[..., object], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs one command."""
    monkeypatch.setattr(report_command, "server", server)
    monkeypatch.setenv("GREENTUNE_HOME", str(settings.home))
    monkeypatch.delenv("GREENTUNE_DATABASE_URL", raising=False)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_verify_says_what_agrees_and_fails_on_what_does_not(
    farm: Farm, greentune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = farm.job(samples(NOW, 12), samples(NOW + timedelta(hours=1), 3, joules=12.3456))
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 0, told.output
    lines = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines() if line}
    assert lines["co2e_g"][2] == "agrees"
    assert lines["co2e_g"][0] == lines["co2e_g"][1]
    assert "Figures of single intervals that agree: 60 of 60." in told.stdout
    assert f"of {job_id} agree, within the rounding to six digits, with 30 samples" in told.stdout

    honest = Client.get

    def forged(self: Client, path: str, **params: object) -> dict[str, object]:
        body = honest(self, path, **params)
        return body | {"co2e_g": body["co2e_g"] + 2e-6} if "co2e_g" in body else body

    monkeypatch.setattr(Client, "get", forged)
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 1
    wrong = [line.split()[0] for line in told.stdout.splitlines() if "DISAGREES" in line]
    assert wrong == ["co2e_g"]
    assert "do not follow from the samples: co2e_g" in str(told.exception)


@pytest.mark.parametrize("changed", ["energy_j", "intensity_g_per_kwh"])
def test_verify_finds_a_sample_that_was_changed_since(
    farm: Farm, greentune: Callable[..., Result], database: Database, changed: str
) -> None:
    job_id = farm.job(samples(NOW, 12), samples(NOW + timedelta(hours=1), 3))
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 0, told.output
    assert "Sums kept with the job and its attempts that agree: 6 of 6." in told.stdout

    with database.transaction() as session:
        row = session.scalars(
            select(EnergySample).where(EnergySample.job_id == job_id, EnergySample.attempt == 2)
        ).first()
        assert row is not None
        setattr(row, changed, 0.9 * getattr(row, changed))
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 1
    wrong = {line.split()[0] for line in told.stdout.splitlines() if "DISAGREES" in line}
    parts = ["energy_wh", "co2e_g"] if changed == "energy_j" else ["co2e_g"]
    assert wrong == {f"kept.{name}.{part}" for name in ("job", "attempts.2") for part in parts}


def test_verify_compares_the_delivered_file(
    farm: Farm,
    greentune: Callable[..., Result],
    client: openai.OpenAI,
    http: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = farm.job(samples(NOW, 12))
    told = greentune("report", job_id, "--verify")
    assert "No emissions.json was delivered" in told.stdout
    key = {"authorization": f"Bearer {client.api_key}"}
    delivered = http.get(f"/v1/fine_tuning/jobs/{job_id}/emissions", headers=key).json()
    honest = Client.get

    def with_file(self: Client, path: str, **params: object) -> dict[str, object]:
        if path.endswith("/content"):
            return delivered
        if path.startswith("/v1/files"):
            return {"filename": "emissions.json"}
        body = honest(self, path, **params)
        return body | {"result_files": ["file-1"]} if path.endswith(job_id) else body

    monkeypatch.setattr(Client, "get", with_file)
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 0, told.output
    assert "Figures of the delivered emissions.json that agree: 7" in told.stdout
    delivered["devices"][0]["energy_wh"] -= 0.001
    told = greentune("report", job_id, "--verify")
    assert told.exit_code == 1
    assert "delivered.devices.cpu.energy_wh" in str(told.exception)


def test_forms_to_files(farm: Farm, greentune: Callable[..., Result], tmp_path: Path) -> None:
    job_id = farm.job(samples(NOW, 12))
    page, table = tmp_path / "a.html", tmp_path / "a.csv"
    told = greentune("report", job_id, "--html", str(page), "--csv", str(table))
    assert told.exit_code == 0, told.output
    assert "Plotly" in page.read_text()
    assert len(list(csv.DictReader(io.StringIO(table.read_text())))) == 1
    assert job_id in greentune("report", job_id).stdout
    told = greentune("report", job_id, "--html", str(tmp_path / "no" / "folder.html"))
    assert told.exit_code == 1
    assert "cannot be written" in str(told.exception)
    missing = tmp_path / "b.html"
    told = greentune("report", "ftjob-" + "0" * 24, "--html", str(missing))
    assert told.exit_code == 1
    assert not missing.exists()


def test_fleets(
    farm: Farm, greentune: Callable[..., Result], rival: openai.OpenAI, database: Database
) -> None:
    farm.job(samples(NOW, 12))
    uploaded = rival.files.create(
        file=io.BytesIO(b'{"messages":[{"role":"assistant","content":"x"}]}\n' * 12),
        purpose="fine-tune",
    )
    Farm(rival, database, uploaded.id).job(samples(NOW, 12, zone="DE"))
    span = ("--start", "2026-05-01T00:00Z", "--end", "2100-01-01T00:00Z")
    own = greentune("report", "--fleet", *span)
    assert own.exit_code == 0, own.output
    assert "FR" in own.stdout
    assert "DE" not in own.stdout
    told = greentune("report", "--fleet", "--all-tenants", "--json", *span)
    assert told.exit_code == 0, told.output
    lines = json.loads(told.stdout)["data"]
    assert {(line["tenant"], line["zone"]) for line in lines} == {("acme", "FR"), ("rival", "DE")}
    month = greentune("report", "--fleet", "--all-tenants", "--json", "--end", "2026-05-20T00:00Z")
    assert month.exit_code == 0, month.output
    assert json.loads(month.stdout)["start"] == "2026-04-20T00:00:00Z"
    dawn = greentune("report", "--fleet", "--all-tenants", "--end", "0001-01-05T00:00Z")
    assert dawn.exit_code == 0, dawn.output
    by_model = greentune("report", "--fleet", "--group-by", "model", *span)
    assert "tiny" in by_model.stdout
    assert "0.1500" in by_model.stdout  # 12 x 450 J at 100 g/kWh
    for wrong in (
        ("--fleet", "--group-by", "colour"),
        ("--fleet", "--all-tenants", "--start", "-1d", "--group-by", "colour"),
        ("--fleet", "ftjob-x"),
        (),
    ):
        assert greentune("report", *wrong).exit_code == 1, wrong
