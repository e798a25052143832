"""A real job's report: what the worker delivers, what the API says, and what its rows say."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from api.emissions import overheads_in, samples_in
from api.main import create_app
from core.carbon.verify import verify
from core.jobs import keys
from core.settings import Settings
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.test_runner import Desk

G_PER_HOUR = 7.2


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Any:
    before = signal.getsignal(signal.SIGTERM)
    desk = Desk(tmp_path, tiny_model)
    desk.world = replace(desk.world, embodied_g_per_hour=G_PER_HOUR)
    yield desk
    desk.database.dispose()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def ask(desk: Desk, tmp_path: Path) -> Any:
    """GET on an API that shares the worker's database."""
    settings = Settings(
        home=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'jobs.db'}",
        pue=desk.world.pue,
        embodied_g_per_hour=G_PER_HOUR,
    )
    with desk.database.transaction() as session:
        key = keys.create(session, tenant=TENANT, name="t", now=datetime.now(UTC))
    with TestClient(create_app(settings)) as http:
        http.headers["authorization"] = f"Bearer {key}"
        yield http.get


def test_a_real_jobs_report_follows_from_its_rows(
    desk: Desk, ask: Any, chat_lines: Callable[[int], bytes]
) -> None:
    job = desk.carry_out(desk.submit(chat_lines(24)))
    told = ask(f"/v1/fine_tuning/jobs/{job.id}/emissions", params={"include": "samples"}).json()
    rows = samples_in(told["samples"])
    checks = verify(told, rows, overheads_in(told["overhead_times"]))
    assert [check.figure for check in checks if not check.agrees] == []
    # independently of all our code but the rows: joules, PUE and France's yearly average
    joules = sum(Fraction(row["energy_j"]) for row in told["samples"])
    assert {row["method"] for row in told["samples"]} <= {"estimate", "rapl", "nvml_counter"}
    assert float(joules) == pytest.approx(job.energy_j, rel=1e-12)
    assert told["energy_wh"]["total"] == round(float(joules * Fraction(1.2) / 3600), 6)
    [intensity] = {row["intensity_g_per_kwh"] for row in told["samples"]}
    grams = joules * Fraction(1.2) * Fraction(intensity) / 3_600_000
    assert told["co2e_g"] == round(float(grams), 6)
    assert told["overheads"][0]["name"] == "selection"
    assert 0 < told["overheads"][0]["energy_wh"] < told["energy_wh"]["total"]
    assert told["sci"]["embodied_g"] > 0
    assert told["trained_tokens"] == job.progress.trained_tokens

    _, emissions, archive = (desk.result_file(file_id) for file_id in job.result_files)
    delivered = json.loads(emissions)
    # the file was written before its own upload's energy was metered
    assert delivered["co2e_g"] <= told["co2e_g"]
    assert delivered["overheads"][0]["name"] == "selection"
    assert delivered["sci"]["embodied_basis"].startswith("7.2 g per hour of use")
    card = _front_matter(archive)["co2_eq_emissions"]
    # the report shows micrograms, the card significant digits
    assert 0 < card["emissions"] <= delivered["co2e_g"] + 0.5e-6
    assert card["training_type"] == "fine-tuning"
    assert card["geographical_location"] == "FR"
    assert card["source"].startswith("greentune; energy by ")
    assert card["hardware_used"]

    page = ask(f"/v1/fine_tuning/jobs/{job.id}/emissions", params={"format": "html"})
    assert page.status_code == 200
    assert "rho over time" in page.text
    fleet = ask("/v1/green/report", params={"group_by": ["zone", "model"]}).json()
    [line] = fleet["data"]
    assert (line["zone"], line["model"], line["jobs"]) == ("FR", "tiny", 1)
    assert line["co2e_g"] == pytest.approx(float(grams), rel=1e-9)
    assert job.baseline is not None
    assert line["baseline"]["co2e_g"] == pytest.approx(job.baseline.emissions_g)


def _front_matter(archive: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        name = next(name for name in tar.getnames() if name.endswith("/README.md"))
        member = tar.extractfile(name)
        assert member is not None
        front: dict[str, Any] = yaml.safe_load(member.read().decode().split("---")[1])
    return front
