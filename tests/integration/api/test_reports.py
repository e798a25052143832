"""Reports of jobs and of fleets over REST, from rows as workers leave them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from api.main import create_app
from core.carbon.evidence import Evidence
from core.carbon.report import CSV_COLUMNS
from core.carbon.verify import verify
from core.jobs.database import Database
from core.settings import Settings
from tests.integration.api.farm import STEP, Farm, samples

Lines = Callable[[int], bytes]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"pue": 1.5, "embodied_g_per_hour": 36.0})


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def farm(client: openai.OpenAI, database: Database, chat_lines: Lines) -> Farm:
    uploaded = client.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune")
    return Farm(client, database, uploaded.id)


@pytest.fixture
def ask(client: openai.OpenAI, http: TestClient) -> Callable[..., Any]:
    def get(path: str, headers: dict[str, str] | None = None, **params: Any) -> Any:
        key = {"authorization": f"Bearer {client.api_key}"}
        return http.get(path, params=params, headers=key | (headers or {}))

    return get


def emissions_path(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/emissions"


def test_every_figure_follows_from_the_samples_that_come_along(
    farm: Farm, ask: Callable[..., Any]
) -> None:
    now = datetime.now(UTC)
    later = now + timedelta(minutes=10)
    job_id = farm.job(samples(now, 12), samples(later, 7, joules=123.456))
    body = ask(emissions_path(job_id), include="samples").json()
    evidence = Evidence.from_dict(body["evidence"])
    assert len(evidence.samples) == 38
    checks = verify(body, evidence)
    assert [check.figure for check in checks if not check.agrees] == []
    assert {c.figure for c in checks} >= {
        "co2e_g",
        "savings.share",
        "baseline.co2e_g",
        "overheads.selection.energy_wh",
        "sci.g_per_1k_trained_tokens",
        "attempts.2.co2e_g",
    }
    fewer = replace(evidence, samples=evidence.samples[:-1])
    assert any(not check.agrees for check in verify(body, fewer))
    # by hand: 12 x 450 J and 7 x 185.184 J, half as much again for the building
    joules = 12 * 450 + 7 * 185.184
    assert body["energy_wh"]["total"] == pytest.approx(joules * 1.5 / 3600, abs=1e-6)
    assert body["co2e_g"] == pytest.approx(joules * 1.5 / 3.6e6 * 100, abs=1e-6)
    # selection: 4 of 5 s of the first interval of both attempts
    assert body["overheads"][0]["energy_wh"] == pytest.approx(0.8 * 635.184 / 3600, abs=1e-6)
    # M: 95 s at 36 g an hour
    assert body["sci"]["embodied_g"] == pytest.approx(0.95)
    assert body["sci"]["g_per_model"] == pytest.approx(body["co2e_g"] + 0.95, abs=1e-6)
    assert body["sci"]["g_per_1k_trained_tokens"] == pytest.approx(
        body["sci"]["g_per_model"] / 64, abs=1e-6
    )
    assert body["attribution"]["scope"] == "machine"
    assert [attempt["attribution"] for attempt in body["attempts"]] == ["machine", "machine"]
    assert "evidence" not in ask(emissions_path(job_id)).json()


def test_a_job_that_was_not_metered_all_the_time_says_so(
    farm: Farm, ask: Callable[..., Any]
) -> None:
    now = datetime.now(UTC)
    rows = samples(now, 12)
    job_id = farm.job([row for row in rows if (row.device, row.started_at) != ("ram", now + STEP)])
    body = ask(emissions_path(job_id)).json()
    [gap] = body["unaccounted"]["gaps"]
    assert (gap["devices"], gap["reason"]) == (["ram"], "between samples")
    assert any("not metered" in note for note in body["notes"])


def test_lists_and_jobs_keep_kinds_of_intensity_apart(farm: Farm, ask: Callable[..., Any]) -> None:
    now = datetime.now(UTC)
    marginal = samples(now + timedelta(minutes=10), 4, intensity_kind="marginal")
    job_id = farm.job(samples(now, 12), marginal)
    [listed] = ask("/v1/fine_tuning/jobs").json()["data"]
    # 450 J at 100 g/kWh each, half as much again for the building
    grams = 450 * 1.5 / 3.6e6 * 100
    for green in (listed["green"], ask(f"/v1/fine_tuning/jobs/{job_id}").json()["green"]):
        assert green["co2e_g"] == pytest.approx(12 * grams, abs=1e-6)
        assert green["co2e_kind"] == "average"
        kinds = {"average": 12 * grams, "marginal": 4 * grams}
        assert green["co2e_g_by_kind"] == pytest.approx(kinds)


def test_csv_with_codecarbons_columns(farm: Farm, ask: Callable[..., Any]) -> None:
    now = datetime.now(UTC)
    job_id = farm.job(samples(now, 12), samples(now + timedelta(hours=1), 12))
    answer = ask(emissions_path(job_id), format="csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert job_id in answer.headers["content-disposition"]
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert list(lines[0]) == CSV_COLUMNS
    body = ask(emissions_path(job_id)).json()
    kg = sum(float(line["emissions"]) for line in lines)
    assert kg * 1000 == pytest.approx(body["co2e_g"], abs=1e-6)
    kwh = sum(float(line["energy_consumed"]) for line in lines)
    assert kwh * 1000 == pytest.approx(body["energy_wh"]["total"], abs=1e-6)


def test_the_page_carries_all_it_needs_and_nobodys_markup(
    farm: Farm, ask: Callable[..., Any]
) -> None:
    now = datetime.now(UTC)
    job_id = farm.job(samples(now, 12, intensity_source="</script><b>x"), carbon_budget_g=1.0)
    answer = ask(emissions_path(job_id), format="html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    charts = page[page.rindex("<script>") :]
    assert all(title in page for title in ("Energy and intensity over time", "rho over time"))
    assert "w&lt;b&gt;" in page
    assert "w<b>" not in page
    assert "</script><b>x" not in page
    assert "budget (g)" in charts
    assert "not running" not in charts
    assert "src=" not in page.replace(page[page.index("<script>") : page.rindex("<script>")], "")


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("text/*;q=0.5, application/json;q=0.4", "text/csv"),
        ("application/json;q=0, text/html;q=0.1", "text/html"),
        ("image/png", "application/json"),
        (";;q=,,q=9", "application/json"),
    ],
)
def test_the_form_follows_the_accept_header(
    farm: Farm, ask: Callable[..., Any], accept: str | None, media: str
) -> None:
    job_id = farm.job(samples(datetime.now(UTC), 1))
    headers = {} if accept is None else {"accept": accept}
    answer = ask(emissions_path(job_id), headers)
    assert answer.headers["content-type"].split(";")[0] == media
    assert answer.headers["vary"] == "accept"
    explicit = ask(emissions_path(job_id), headers, format="json")
    assert explicit.headers["content-type"] == "application/json"


def test_reports_of_jobs_without_any_energy(farm: Farm, ask: Callable[..., Any]) -> None:
    job_id = farm.job()
    for form in ("json", "csv", "html"):
        assert ask(emissions_path(job_id), format=form).status_code == 200
    body = ask(emissions_path(job_id), include="samples").json()
    assert (body["evidence"]["samples"], body["co2e_g"]) == ([], 0.0)
    assert all(check.agrees for check in verify(body, Evidence.from_dict(body["evidence"])))
    assert ask(emissions_path(job_id), format="pdf").status_code == 400


def test_a_fleet_by_zone_and_kind(farm: Farm, ask: Callable[..., Any]) -> None:
    now = datetime.now(UTC)
    first = farm.job(samples(now, 12))
    farm.job(samples(now, 12, zone="DE", intensity_g_per_kwh=400.0), model="org/base")
    farm.job(samples(now, 12, zone="DE", intensity_kind="marginal"), model="org/base")
    unknown = dict.fromkeys(("intensity_g_per_kwh", "intensity_kind", "zone"))
    farm.job(samples(now, 12, **unknown))
    whole = {"start": (now - STEP).isoformat(), "end": (now + timedelta(hours=1)).isoformat()}
    body = ask("/v1/green/report", **whole).json()
    lines = {(line["zone"], line["kind"]): line for line in body["data"]}
    assert set(lines) == {
        ("FR", "average"),
        ("DE", "average"),
        ("DE", "marginal"),
        (None, None),
    }
    french = lines["FR", "average"]
    assert french["energy_wh"] == pytest.approx(5400 * 1.5 / 3600)
    assert french["co2e_g"] == pytest.approx(5400 * 1.5 / 3.6e6 * 100)
    assert french["measured_share"] == pytest.approx(2 / 3)
    assert french["baseline"] == {"jobs": 1, "co2e_g": pytest.approx(0.5)}
    assert french["savings"]["co2e_g"] == pytest.approx(0.5 - 0.225)
    # the stored baseline is of average grams: no comparison with marginal ones
    assert lines["DE", "marginal"]["savings"] is None
    assert lines[None, None]["co2e_g"] is None
    totals = {line["kind"]: line for line in body["totals"]}
    assert totals["average"]["jobs"] == 2
    assert totals["average"]["co2e_g"] == pytest.approx(0.225 + 0.9)
    assert totals["marginal"]["co2e_g"] == pytest.approx(0.225)
    assert totals["average"]["savings"]["co2e_g"] == pytest.approx(1.0 - 1.125)

    by_model = ask("/v1/green/report", group_by=["model", "zone"], **whole).json()["data"]
    assert [(line["model"], line["zone"]) for line in by_model] == [
        ("org/base", "DE"),
        ("org/base", "DE"),
        ("tiny", None),
        ("tiny", "FR"),
    ]
    by_job = ask("/v1/green/report", group_by="job", **whole).json()["data"]
    assert first in {line["job"] for line in by_job}
    assert len(by_job) == 4


def test_a_range_counts_the_parts_of_samples_that_lie_in_it(
    farm: Farm, ask: Callable[..., Any]
) -> None:
    now = datetime.now(UTC)
    farm.job(samples(now, 12))
    whole_j = 12 * 450
    cut = now + 2 * STEP + STEP / 4
    edges = [now - STEP, cut, now + 7 * STEP, now + timedelta(minutes=5)]
    parts = [
        ask("/v1/green/report", start=a.isoformat(), end=b.isoformat()).json()["totals"][0]
        for a, b in pairwise(edges)
    ]
    assert parts[0]["energy_wh"] == pytest.approx(2.25 * 450 * 1.5 / 3600)
    assert sum(part["energy_wh"] for part in parts) == pytest.approx(whole_j * 1.5 / 3600)
    assert sum(part["co2e_g"] for part in parts) == pytest.approx(0.225)
    assert sum(part["baseline"]["co2e_g"] for part in parts) == pytest.approx(0.5)
    after = ask("/v1/green/report", start=edges[3].isoformat(), end="2100-01-01").json()
    assert (after["data"], after["totals"]) == ([], [])
    for wrong in ({"start": "2030-01-01", "end": "2020-01-01"}, {"group_by": "colour"}):
        assert ask("/v1/green/report", **wrong).status_code == 400


def test_tenants_see_their_own_only(farm: Farm, rival: openai.OpenAI, http: TestClient) -> None:
    job_id = farm.job(samples(datetime.now(UTC), 12))
    headers = {"authorization": f"Bearer {rival.api_key}"}
    assert http.get("/v1/green/report", headers=headers).json()["data"] == []
    for params in ({}, {"format": "html"}, {"include": "samples"}):
        answer = http.get(emissions_path(job_id), params=params, headers=headers)
        assert answer.status_code == 404
        assert json.loads(answer.text)["error"]["code"] == "not_found"


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_c: object, _x: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_number_of_queries_does_not_grow(
    farm: Farm, ask: Callable[..., Any], database: Database
) -> None:
    now = datetime.now(UTC)
    job_id = farm.job(samples(now, 2))
    with database.read() as session:
        engine = session.get_bind()
    assert isinstance(engine, Engine)

    def queries(path: str, **params: Any) -> int:
        with counted(engine) as statements:
            assert ask(path, **params).status_code == 200
        return sum(statement.lstrip().upper().startswith("SELECT") for statement in statements)

    few = queries("/v1/green/report")
    alone = queries(emissions_path(job_id), include="samples")
    for _ in range(5):
        long = farm.job(samples(now, 50), samples(now + timedelta(hours=1), 50))
    assert queries("/v1/green/report") == few
    assert queries(emissions_path(long), include="samples") == alone
    # one of them finds the key
    assert (few, alone) == (4, 5)
