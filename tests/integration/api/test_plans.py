"""Wishes on the wire, refusals that name ways out, and estimates before submission."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from core.carbon.slot_cache import Known
from core.jobs import keys, service, store
from core.jobs.database import Database
from core.jobs.records import CostRecord
from core.jobs.signal_texts import SignalTexts
from core.settings import Settings
from core.training_options import auto_epochs
from tests.fixtures.provider_server import ProviderServer
from tests.integration.api.farm import take_up

Lines = Callable[[int], bytes]
HOUR = timedelta(hours=1)
#: no moments in UTC
FIRST = "0001-01-01T00:00:00+14:00"
LAST = "9999-12-31T23:59:59-12:00"


def upload(client: openai.OpenAI, lines: bytes) -> str:
    return client.files.create(file=("t.jsonl", io.BytesIO(lines)), purpose="fine-tune").id


def submit(client: openai.OpenAI, lines: bytes, **green: Any) -> Any:
    return client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, lines),
        hyperparameters={"n_epochs": 3},
        extra_body={"green": {"zone": "FR", **green}},
    )


@pytest.fixture
def measured(database: Database) -> None:
    """The model costs a second and 100 J per token at full effort."""
    with database.transaction() as session:
        for rho in (0.5, 1.0):
            cost = CostRecord(
                model="tiny",
                hardware="here",
                rho=rho,
                s_per_token=rho,
                j_per_token=100 * rho,
                updated_at=datetime.now(UTC),
            )
            store.put_cost(session, cost)


def test_wishes_make_a_round_trip(client: openai.OpenAI, chat_lines: Lines) -> None:
    deadline = datetime.now(UTC).replace(microsecond=0) + 24 * HOUR
    start = int((datetime.now(UTC) + HOUR).timestamp())
    job = submit(
        client,
        chat_lines(12),
        schedule="green",
        deadline=deadline.isoformat(),
        earliest_start=start,
        carbon_budget_g=100,
        on_budget="stop_and_save",
        max_hold_s=None,
    )
    assert job.green["deadline"] == deadline.timestamp()
    assert job.green["earliest_start"] == start
    assert (job.green["schedule"], job.green["on_budget"]) == ("green", "stop_and_save")
    assert job.green["budget"] == {"energy_wh_left": None, "co2e_g_left": 100}
    assert client.fine_tuning.jobs.retrieve(job.id).green["deadline"] == deadline.timestamp()


@pytest.mark.parametrize(
    ("green", "param", "code"),
    [
        ({"deadline": "2020-01-01T00:00:00Z"}, "green.deadline", "deadline_unreachable"),
        ({"deadline": "2030-01-01T00:00:00"}, "green.deadline", "invalid_value"),
        ({"deadline": 1e300}, "green.deadline", "invalid_value"),
        (
            {"deadline": "2030-01-01T00:00:00Z", "earliest_start": "2030-01-02T00:00:00Z"},
            "green.deadline",
            "invalid_value",
        ),
        ({"schedule": "soon"}, "green.schedule", "invalid_value"),
        ({"on_budget": "shrug"}, "green.on_budget", "invalid_value"),
        ({"carbon_budget_g": 0}, "green.carbon_budget_g", "invalid_value"),
        ({"energy_budget_wh": -1}, "green.energy_budget_wh", "invalid_value"),
        ({"schedule": "green", "zone": None}, "green.zone", "missing_required_parameter"),
        *(
            ({name: moment}, f"green.{name}", "invalid_value")
            for name in ("deadline", "earliest_start")
            for moment in (FIRST, LAST, "9999-12-31T23:00:00Z", 253402300799)
        ),
        ({"schedule": "green", "max_hold_s": 1e300}, "green.max_hold_s", "invalid_value"),
    ],
)
@pytest.mark.usefixtures("measured")
def test_wishes_that_make_no_sense_are_refused(
    client: openai.OpenAI, chat_lines: Lines, green: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        submit(client, chat_lines(12), **green)
    assert (refused.value.param, refused.value.code) == (param, code)
    if {FIRST, LAST, 1e300} & set(green.values()):
        assert "100 years" in refused.value.message


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["deadline", "earliest_start", "max_hold_s"])
def test_a_wish_of_decades_is_accepted(client: openai.OpenAI, chat_lines: Lines, name: str) -> None:
    years = timedelta(days=99 * 365)
    far: Any = years.total_seconds()
    if name != "max_hold_s":
        far = (datetime.now(UTC) + years).isoformat()
    assert submit(client, chat_lines(12), rho=0.7, schedule="green", **{name: far}).id


@pytest.mark.usefixtures("measured")
def test_a_plan_for_a_file_that_is_not_there_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.fine_tuning.jobs.create(
            model="tiny",
            training_file=f"file-{'0' * 24}",
            extra_body={"green": {"zone": "FR", "schedule": "green"}},
        )
    assert refused.value.param == "training_file"


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("green", "param", "code", "offered"),
    [
        ({"rho": 1.0}, "green.deadline", "deadline_unreachable", ("Train ", "Allow until ")),
        (
            {"rho": 1.0, "carbon_budget_g": 4.0, "deadline": None},
            "green.carbon_budget_g",
            "carbon_budget_exhausted",
            ("Train ", "Raise the budget", "Lower rho"),
        ),
        (
            {"energy_budget_wh": 45.0, "deadline": None},
            "green.energy_budget_wh",
            "carbon_budget_exhausted",
            ("Train ", "Raise the budget"),
        ),
    ],
)
def test_a_wish_that_measurements_rule_out_names_what_is_missing_and_ways_out(
    client: openai.OpenAI,
    chat_lines: Lines,
    green: dict[str, Any],
    param: str,
    code: str,
    offered: tuple[str, ...],
) -> None:
    wish = {"deadline": (datetime.now(UTC) + HOUR / 4).isoformat()} | green
    with pytest.raises(openai.BadRequestError) as refused:
        submit(client, chat_lines(60), **wish)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert all(words in refused.value.message for words in offered), refused.value.message


def test_nobody_is_refused_on_an_assumption(client: openai.OpenAI, chat_lines: Lines) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert submit(client, chat_lines(12), deadline=soon.isoformat()).status == "validating_files"


def estimate(client: openai.OpenAI, **body: Any) -> dict[str, Any]:
    answer: Any = client.post("/green/estimate", body={"model": "tiny", **body}, cast_to=object)
    return dict(answer)


@pytest.mark.usefixtures("measured")
def test_an_estimate_is_made_of_measured_costs(client: openai.OpenAI) -> None:
    made = estimate(
        client, n_tokens=3600, n_epochs=1, zone="FR", rho=[0.5, 1.0], start_hours=[0, 6]
    )
    assert made["basis"]["cost"] == "stored"
    assert made["basis"]["hardware"] == "here"
    options = {(o["rho"], o["schedule"], o["start"]): o for o in made["options"]}
    assert len(options) == 6
    assert made["full_now"]["energy_wh"] == pytest.approx(100.0, rel=0.05)
    now = [o for o in made["options"] if o["schedule"] == "now" and o["rho"] == 0.5]
    assert now[0]["energy_wh"] == pytest.approx(50.0, rel=0.05)
    # a flat grid: the earliest of each rho, and nothing else, is worth choosing
    front = {o["rho"] for o in made["options"] if o["is_pareto"]}
    assert front == {0.5, 1.0}
    late = [o for o in made["options"] if o["schedule"] == "now"][1]
    assert not late["is_pareto"]


def test_an_estimate_expects_the_quality_that_the_latest_job_measured(
    client: openai.OpenAI, rival: openai.OpenAI, database: Database, chat_lines: Lines
) -> None:
    asked = {"n_tokens": 3600, "n_epochs": 1, "zone": "FR", "rho": [0.5], "start_hours": [0]}
    before = estimate(client, **asked)
    assert before["basis"]["quality"]["basis"] == "assumed"
    assert before["options"][0]["quality"] == pytest.approx(0.5**0.25)
    curve = [[0.4, 0.7], [0.6, 0.9], [1.0, 1.0]]
    _finish(database, submit(client, chat_lines(12)).id, curve)
    after = estimate(client, **asked)
    assert after["basis"]["quality"] == {"basis": "stored", "n_selections": 1, "points": curve}
    assert after["options"][0]["quality"] == pytest.approx(0.8)
    assert estimate(rival, **asked)["basis"]["quality"]["basis"] == "assumed"


def _finish(database: Database, job_id: str, curve: list[list[float]]) -> None:
    """Plays the worker of a job with one selection."""
    now = datetime.now(UTC)
    with database.transaction() as session:
        own = take_up(session, job_id, now=now)
        service.append_event(
            *own,
            level="info",
            message="Selected",
            type="message",
            data={"kind": "selection", "rho": 0.5, "quality_curve": curve},
            now=now,
        )
        service.succeed(
            *own, model_prefix=f"jobs/{job_id}", model_bytes=1, result_files=[], now=now
        )


def test_an_estimate_of_a_file_says_what_it_assumes(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    made = estimate(client, training_file=upload(client, chat_lines(12)), zone="FR")
    assert made["basis"]["cost"] == "assumed"
    assert made["basis"]["hardware"] is None
    assert made["basis"]["n_epochs"] == auto_epochs(12)
    assert made["options"]
    assert all(option["co2e_g"] > 0 for option in made["options"])


def test_epochs_that_nobody_asked_for_are_those_that_the_job_would_make(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    tokens = {"n_tokens": 3600, "zone": "FR", "rho": [0.5], "start_hours": [0]}
    assert estimate(client, **tokens)["basis"]["n_epochs"] == 1
    for count in (12, 500):
        file = upload(client, chat_lines(count))
        basis = estimate(client, training_file=file, zone="FR")["basis"]
        assert basis["n_epochs"] == auto_epochs(count)
        assert estimate(client, training_file=file, zone="FR", n_epochs=2)["basis"]["n_epochs"] == 2


@pytest.mark.usefixtures("measured")
def test_epochs_that_nobody_asked_for_decide_what_is_feasible(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    """Hidden states are stored once for several passes: of one, a forward pass is paid in full."""

    def ask(lines: bytes, **hyperparameters: int) -> None:
        client.fine_tuning.jobs.create(
            model="tiny",
            training_file=upload(client, lines),
            hyperparameters=hyperparameters,
            extra_body={"green": {"zone": "FR", "rho": 0.2}},
        )

    ask(chat_lines(12))
    ask(chat_lines(500), n_epochs=3)
    with pytest.raises(openai.BadRequestError, match="every forward pass is paid in full"):
        ask(chat_lines(500))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "n_tokens"),
        ({"n_tokens": 1, "training_file": "file-1"}, "n_tokens"),
        ({"n_tokens": 10, "deadline": "2020-01-01T00:00:00Z"}, "deadline"),
        ({"n_tokens": 10, "zone": "XX-NOWHERE"}, "zone"),
        ({"n_tokens": 10, "rho": [2.0]}, "rho"),
        ({"n_tokens": 10, "rho": [0.5, 0]}, "rho"),
        ({"n_tokens": 10, "rho": [-1]}, "rho"),
        ({"n_tokens": 10, "deadline": FIRST}, "deadline"),
        ({"n_tokens": 10, "deadline": LAST}, "deadline"),
        ({"n_tokens": 10, "deadline": "9999-12-31T23:59:59Z"}, "deadline"),
        ({"n_tokens": 10**13, "n_epochs": 50}, "n_tokens"),
        ({"n_tokens": 10, "deadline": "tomorrow"}, "deadline"),
    ],
)
def test_an_estimate_refuses_what_it_cannot_estimate(
    client: openai.OpenAI, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        estimate(client, **body)
    assert refused.value.param == param
    assert "value error" not in refused.value.message.lower()


def test_an_estimate_of_a_file_that_is_not_there_names_the_field(client: openai.OpenAI) -> None:
    for file_id in (f"file-{'0' * 24}", "x"):
        with pytest.raises(openai.NotFoundError) as refused:
            estimate(client, training_file=file_id)
        assert refused.value.param == "training_file"


def test_an_estimate_has_every_start_that_was_asked_for(client: openai.OpenAI) -> None:
    made = estimate(client, n_tokens=1000, zone="FR", rho=[0.5, 1], start_hours=[336])
    rows = [(o["rho"], o["schedule"]) for o in made["options"]]
    assert rows == [(0.5, "now"), (0.5, "green"), (1.0, "now"), (1.0, "green")]
    assert made["left_out"] == 0
    soon = (datetime.now(UTC) + 300 * HOUR).isoformat()
    bounded = estimate(
        client, n_tokens=1000, zone="FR", rho=[0.5, 1], start_hours=[336], deadline=soon
    )
    assert [o["schedule"] for o in bounded["options"]] == ["green", "green"]
    assert bounded["left_out"] == 2


def test_a_provider_is_asked_before_the_database_is_taken(
    settings: Settings, chat_lines: Lines
) -> None:
    """What it told is stored for everybody; on SQLite nobody can store amid a submission."""
    half_hour = datetime.now(UTC).replace(second=0, microsecond=0)
    row = {"from": half_hour.isoformat(), "intensity": {"forecast": 200, "actual": 200}}
    server = ProviderServer()
    try:
        server.answer("/intensity", {"data": [row]})
        live = settings.model_copy(update={"carbon_signal": "gb", "carbon_url": server.url})
        with TestClient(create_app(live)) as http:
            database: Database = http.app.state.services.database  # type: ignore[attr-defined]
            with database.transaction() as session:
                key = keys.create(session, tenant="acme", name="test", now=datetime.now(UTC))
            client = openai.OpenAI(
                base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0
            )
            deadline = (datetime.now(UTC) + 24 * HOUR).isoformat()
            assert submit(client, chat_lines(12), zone="GB", deadline=deadline).id
        known = Known.from_text(SignalTexts(database).load("intensity/GreatBritain/recent/GB"))
    finally:
        server.close()
    assert server.seen
    assert known.asked_at is not None
    assert known.fetched_at is not None or known.trouble
