"""A real job's report: what the worker delivers, what the API says, and what its rows say."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from api.main import create_app
from core.carbon.evidence import Evidence
from core.carbon.trace import Trace, TraceSignal
from core.carbon.verify import verify
from core.jobs import keys, store
from core.jobs.records import Claim, CostRecord
from core.settings import Settings
from core.spec import EvalOptions
from core.training.hooks import Hook, StepRecord
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.desk import Desk
from tests.integration.worker.recomputed import G_PER_HOUR, GRID, numbers, recomputed
from worker import runner
from worker.hardware import hardware_and_device

GAP_S = 30


class Late(Desk):
    """A worker that takes ``GAP_S`` to begin metering the job that it has claimed."""

    def claim(self, job_id: str) -> Claim:
        moment = datetime.now(UTC) - timedelta(seconds=GAP_S)
        return super().claim(job_id, moment=moment, lease_s=600)


class StopOnce(Hook):
    """Asks the training to give the job back after its third step, the first time."""

    def on_step(self, record: StepRecord) -> None:
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    before = signal.getsignal(signal.SIGTERM)
    desk = Late(tmp_path, tiny_model)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
    trace = Trace(
        zone="FR",
        start=start,
        step=timedelta(milliseconds=500),
        values_g_per_kwh=GRID,
        files=("test",),
    )
    desk.world = replace(
        desk.world,
        embodied_g_per_hour=G_PER_HOUR,
        signal=TraceSignal({"FR": trace}),
        # readings where they are asked for: few enough rows that reports show each of them, also
        # on a slow machine
        meter_interval_s=3600.0,
    )
    real = runner.train

    def train(prepared: Any, *, hooks: list[Hook], **rest: Any) -> Any:
        return real(prepared, hooks=[*hooks, StopOnce()], **rest)

    monkeypatch.setattr(runner, "train", train)
    yield desk
    desk.database.dispose()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def ask(desk: Desk, tmp_path: Path) -> Any:
    """GET on an API that shares the worker's database and its grid."""
    settings = Settings(
        home=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'jobs.db'}",
        pue=desk.world.pue,
        embodied_g_per_hour=G_PER_HOUR,
    )
    with desk.database.transaction() as session:
        key = keys.create(session, tenant=TENANT, name="t", now=datetime.now(UTC))
    app = create_app(settings)
    with TestClient(app) as http:
        app.state.services = replace(app.state.services, signal=desk.world.signal)
        http.headers["authorization"] = f"Bearer {key}"
        yield http.get


def carry_out_in_two(desk: Desk, lines: bytes) -> Any:
    """The first attempt gives the job back after three steps; the second goes on from there."""
    job_id = desk.submit(lines)
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step, job.fence) == ("queued", 3, 1)
    job = desk.carry_out(job_id)
    assert (job.status, job.error, job.fence) == ("succeeded", None, 2)
    return job


def remember_full_cost(desk: Desk) -> None:
    """An earlier job has run full fine-tuning on this machine."""
    cost = CostRecord(
        model="tiny",
        hardware=hardware_and_device()[0],
        rho=1.0,
        s_per_token=0.0123,
        j_per_token=0.4567,
        updated_at=datetime.now(UTC),
    )
    with desk.database.transaction() as session:
        store.put_cost(session, cost)


@pytest.mark.parametrize("basis", ["modelled", "calibrated"])
def test_every_number_of_a_real_report_follows_from_its_rows(
    desk: Desk, ask: Any, chat_lines: Callable[[int], bytes], basis: str
) -> None:
    """Two attempts with a suspension between them, each with a gap in its record."""
    if basis == "calibrated":
        remember_full_cost(desk)
    job = carry_out_in_two(desk, chat_lines(24))
    path = f"/v1/fine_tuning/jobs/{job.id}/emissions"
    told = ask(path, params={"include": "samples"}).json()
    evidence = told.pop("evidence")
    assert told["baseline"]["basis"] == basis
    assert len({row["intensity_g_per_kwh"] for row in evidence["samples"]}) > 1
    reasons = [(gap["reason"], len(gap["devices"])) for gap in told["unaccounted"]["gaps"]]
    devices = len(told["devices"])
    assert reasons.count(("before the first sample", devices)) == 2
    assert told["attribution"]["scope"] == "machine"
    kinds = {line["name"] for line in told["overheads"]}
    assert kinds == {"preparation", "selection", "checkpoint", "delivery"}

    stated, exact = numbers(told), recomputed(told, evidence)
    assert stated.keys() == exact.keys()
    off = {
        path: (value, float(exact[path]))
        for path, value in stated.items()
        if abs(Fraction(value) - exact[path]) > Fraction(1, 2_000_000) + Fraction(1, 10**10)
    }
    assert off == {}
    checks = verify(told, Evidence.from_dict(evidence))
    assert [check.figure for check in checks if not check.agrees] == []

    # the delivered file and the job's own object say the same, to the last digit
    delivered = json.loads(desk.result_file(job.result_files[1]))
    figures = numbers(delivered)
    assert figures == {path: stated[path] for path in figures}
    assert stated.keys() - figures.keys() == set()
    green = ask(f"/v1/fine_tuning/jobs/{job.id}").json()["green"]
    for name in ("energy_wh", "co2e_g", "baseline", "savings"):
        assert green[name] == told[name], name


def test_the_card_the_page_and_the_fleet_tell_of_the_same_job(
    desk: Desk, ask: Any, chat_lines: Callable[[int], bytes]
) -> None:
    job = carry_out_in_two(desk, chat_lines(24))
    told = ask(f"/v1/fine_tuning/jobs/{job.id}/emissions").json()
    card = _front_matter(desk.result_file(job.result_files[2]))["co2_eq_emissions"]
    # the card is written before its own upload; the report shows micrograms, it significant digits
    assert 0 < card["emissions"] <= told["co2e_g"] + 0.5e-6
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
    assert line["co2e_g"] == pytest.approx(told["co2e_g"], abs=1e-6)
    assert line["baseline"]["co2e_g"] == pytest.approx(told["baseline"]["co2e_g"], abs=1e-6)


def test_grams_stand_beside_what_they_bought(
    desk: Desk, ask: Any, chat_lines: Callable[[int], bytes]
) -> None:
    """Held-out figures of the base model outlive the suspension; the later ones are the end's."""
    evaluation = EvalOptions(metrics=("f1", "rougeL"), max_examples=2, max_new_tokens=4)
    job_id = desk.submit(chat_lines(24), validation=chat_lines(10), evaluation=evaluation)
    path = f"/v1/fine_tuning/jobs/{job_id}/emissions"
    assert ask(path).json()["quality"] is None
    assert desk.carry_out(job_id).progress.step == 3
    halfway = ask(path).json()["quality"]
    job = desk.carry_out(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    told = ask(path, params={"include": "samples"}).json()

    said = [e.data for e in desk.events(job_id) if e.data is not None]
    losses = {data["step"]: data["full_valid_loss"] for data in said if "full_valid_loss" in data}
    scores = {
        data["step"]: {name: data[f"eval_{name}"] for name in evaluation.metrics}
        for data in said
        if "eval_examples" in data
    }
    assert losses.keys() == scores.keys() == {0, 6}
    assert losses[6] < losses[0]
    assert halfway == {
        "validation_loss": {"before": losses[0], "after": None},
        "scores": {"before": scores[0], "after": None},
    }
    assert told["quality"] == {
        "validation_loss": {"before": losses[0], "after": losses[6]},
        "scores": {"before": scores[0], "after": scores[6]},
    }
    assert json.loads(desk.result_file(job.result_files[1]))["quality"] == told["quality"]
    page = ask(path, params={"format": "html"}).text
    assert f"validation loss {losses[0]:.4f} before training, {losses[6]:.4f} after" in page
    checks = verify(told, Evidence.from_dict(told.pop("evidence")))
    assert [check.figure for check in checks if not check.agrees] == []


def _front_matter(archive: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        name = next(name for name in tar.getnames() if name.endswith("/README.md"))
        member = tar.extractfile(name)
        assert member is not None
        front: dict[str, Any] = yaml.safe_load(member.read().decode().split("---")[1])
    return front
