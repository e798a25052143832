"""Every endpoint through the unmodified openai client in strict mode, with no worker about."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from core.jobs import service, store
from core.jobs.database import Database
from core.jobs.records import NewCheckpoint, NewFile
from tests.integration.api.farm import PROGRESS, RESOLVED, samples, take_up

Lines = Callable[[int], bytes]


def upload(client: openai.OpenAI, data: bytes, **options: Any) -> Any:
    return client.files.create(file=io.BytesIO(data), purpose="fine-tune", **options)


def submit(client: openai.OpenAI, file_id: str, **options: Any) -> Any:
    return client.fine_tuning.jobs.create(model="tiny", training_file=file_id, **options)


def test_file_life(client: openai.OpenAI, chat_lines: Lines) -> None:
    data = chat_lines(12)
    made = upload(client, data)
    assert (made.bytes, made.status, made.purpose) == (len(data), "processed", "fine-tune")
    assert made.validation["n_examples"] == 12
    assert client.files.retrieve(made.id).to_dict() == made.to_dict()
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.content(made.id).read() == data
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.code == "not_found"


def test_bad_content_is_reported_not_refused(client: openai.OpenAI, chat_lines: Lines) -> None:
    lines = chat_lines(12).splitlines()
    lines[6] = b'{"messages": [{"role": "user", "content": null}]}'
    made = upload(client, b"\n".join(lines))
    assert made.status == "error"
    assert made.status_details.startswith("line 7: ")
    assert made.validation["problems"][0]["line"] == 7
    assert upload(client, b"").status == "error"


@pytest.mark.parametrize("name", ["../../etc/passwd", 'a"b\r\nx: y.jsonl', "名前.jsonl", "x" * 255])
def test_file_names_are_data(client: openai.OpenAI, chat_lines: Lines, name: str) -> None:
    made = client.files.create(file=(name, chat_lines(10)), purpose="fine-tune")
    answer = client.files.content(made.id)
    assert "\n" not in answer.response.headers["content-disposition"]
    assert answer.read() == chat_lines(10)


def test_upload_refusals(client: openai.OpenAI, http: TestClient, chat_lines: Lines) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"{}", purpose="batch")
    assert (caught.value.code, caught.value.param) == ("invalid_file_purpose", "purpose")
    with pytest.raises(openai.APIStatusError) as large:
        upload(client, b"x" * (3 * 1024**2))
    assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    with pytest.raises(openai.APIStatusError) as larger_than_form:
        upload(client, b"x" * (2 * 1024**2 + 1))
    assert larger_than_form.value.param == "file"
    with pytest.raises(openai.BadRequestError) as expiry:
        upload(client, chat_lines(10), expires_after={"anchor": "created_at", "seconds": 3599})
    assert expiry.value.param == "expires_after.seconds"
    made = upload(client, chat_lines(10), expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at - made.created_at == 3600
    headers = {"authorization": f"Bearer {client.api_key}"}
    assert http.post("/v1/files", json={}, headers=headers).json()["error"]["param"] == "file"
    broken = {**headers, "content-type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/files", content=b"--y", headers=broken).status_code == 400


def test_job_is_accepted_while_the_broker_is_away(
    client: openai.OpenAI, chat_lines: Lines, http: TestClient
) -> None:
    file_id = upload(client, chat_lines(12)).id
    job = submit(
        client,
        file_id,
        suffix="demo",
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"green": {"rho": 0.5, "zone": "FR", "training": {"max_steps": 3}}},
    )
    assert (job.status, job.training_file, job.organization_id) == (
        "validating_files",
        file_id,
        "acme",
    )
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert job.metadata == {"team": "a"}
    assert job.green["rho_requested"] == 0.5
    assert job.green["zone"] == "FR"
    assert job.green["state"] == "planned"
    assert job.green["training"]["max_steps"] == 3
    assert job.result_files == []
    again = client.fine_tuning.jobs.retrieve(job.id)
    assert (again.id, again.seed) == (job.id, job.seed)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages[-1].startswith("Created fine-tuning job")
    assert messages[0].startswith("Validating training file")
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    live = http.get("/health/live")
    assert live.json() == {"status": "ok"}
    ready = http.get("/health/ready")
    assert ready.status_code == 503
    assert "broker" in ready.json()["error"]["message"]
    assert "worker" in ready.json()["error"]["message"]
    assert "database" not in ready.json()["error"]["message"]


def test_every_optional_may_be_null(client: openai.OpenAI, chat_lines: Lines) -> None:
    file_id = upload(client, chat_lines(12)).id
    names = (
        "suffix",
        "seed",
        "validation_file",
        "metadata",
        "method",
        "hyperparameters",
        "integrations",
    )
    job = submit(client, file_id, extra_body={**dict.fromkeys(names), "green": None})
    assert job.green["rho"] == 0.7


def test_a_job_tells_the_questions_that_it_was_given(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    file_id = upload(client, chat_lines(12)).id
    assert submit(client, file_id).green["eval"] is None
    asked = {"green": {"eval": {"metrics": ["f1"], "max_examples": 7}}}
    job = submit(client, file_id, validation_file=file_id, extra_body=asked)
    told = {"metrics": ["f1"], "max_examples": 7, "decoding": "greedy", "max_new_tokens": None}
    assert job.green["eval"] == told
    assert client.fine_tuning.jobs.retrieve(job.id).green["eval"] == told


def test_job_refusals(client: openai.OpenAI, rival: openai.OpenAI, chat_lines: Lines) -> None:
    file_id = upload(client, chat_lines(12)).id
    foreign = upload(rival, chat_lines(12)).id
    table = client.files.create(file=("rows.csv", b"a,b\n1,2\n"), purpose="fine-tune").id
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"training_file": foreign}, 404, "not_found", "training_file"),
        ({"training_file": "../x"}, 404, "not_found", "training_file"),
        ({"training_file": "file-\x00"}, 404, "not_found", "training_file"),
        ({"validation_file": foreign}, 404, "not_found", "validation_file"),
        ({"training_file": table}, 400, "invalid_value", "training_file"),
        ({"validation_file": table}, 400, "invalid_value", "validation_file"),
        ({"training_file": table, "validation_file": foreign}, 404, "not_found", "validation_file"),
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"model": "ft:tiny:acme::12345678"}, 404, "model_not_found", "model"),
        ({"model": "/etc/passwd"}, 404, "model_not_found", "model"),
        ({"extra_body": {"green": {"rho": 0.01}}}, 400, "rho_infeasible", "green.rho"),
        ({"extra_body": {"green": {"zone": "FRANCE-1"}}}, 400, "invalid_value", "green.zone"),
        ({"extra_body": {"green": {"zone": "FR\x00"}}}, 400, "invalid_value", "green.zone"),
        (
            {"extra_body": {"green": {"rho": "auto"}}},
            400,
            "missing_required_parameter",
            "green.zone",
        ),
        ({"extra_body": {"green": {"deadlin": "x"}}}, 400, "unknown_parameter", "green.deadlin"),
        ({"extra_body": {"green": {"deadline": "x"}}}, 400, "invalid_value", "green.deadline"),
        ({"metadata": {"a": "\x00"}}, 400, "invalid_value", "metadata"),
    ]
    for options, status, code, param in cases:
        arguments = {"model": "tiny", "training_file": file_id, **options}
        with pytest.raises(openai.APIStatusError) as caught:
            client.fine_tuning.jobs.create(**arguments)
        raised = caught.value
        assert (raised.status_code, raised.code) == (status, code), (options, raised.message)
        assert raised.param is not None, options
        assert raised.param.startswith(param), options
    assert list(client.fine_tuning.jobs.list()) == []


def test_stored_profile_minimum_refuses(
    client: openai.OpenAI, chat_lines: Lines, database: Database
) -> None:
    with database.transaction() as session:
        store.put_profile_minimum(session, "tiny", 0.41, now=datetime.now(UTC))
    file_id = upload(client, chat_lines(12)).id
    in_full = {"rho": 0.4, "training": {"prefix_reuse": "off"}}
    with pytest.raises(openai.BadRequestError, match=r"0\.41") as caught:
        submit(client, file_id, extra_body={"green": in_full})
    assert caught.value.code == "rho_infeasible"
    # three passes that share a forward pass may cost less
    assert submit(client, file_id, extra_body={"green": {"rho": 0.4}}).status == "validating_files"
    assert submit(client, file_id, extra_body={"green": {"rho": 0.42}}).status == "validating_files"


def test_pages_stay_whole_while_rows_arrive(client: openai.OpenAI, chat_lines: Lines) -> None:
    file_id = upload(client, chat_lines(12)).id
    made = [submit(client, file_id, metadata={"n": str(n)}).id for n in range(7)]
    seen = []
    for n, job in enumerate(client.fine_tuning.jobs.list(limit=3)):
        seen.append(job.id)
        if n == 3:
            submit(client, file_id)
    assert seen == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "4"})] == [made[4]]
    labelled = {job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})}
    assert labelled
    assert not labelled & set(made)
    events = client.fine_tuning.jobs.list_events(made[0], limit=1)
    assert (len(events.data), events.has_more) == (1, True)
    for after in ("ftjob-" + "0" * 24, "x", "\x00"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.list(after=after)
        assert caught.value.param == "after"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.list(limit=0)


def test_a_finished_job_end_to_end(
    client: openai.OpenAI, rival: openai.OpenAI, chat_lines: Lines, database: Database, app: Any
) -> None:
    """The worker's part is played here, through the calls that the worker makes."""
    file_id = upload(client, chat_lines(12)).id
    job_id = submit(client, file_id).id
    stored = app.state.services.objects.put(
        "jobs/x/steps.csv", io.BytesIO(b"step,train_loss\n1,2.0\n")
    )
    _finish(database, job_id, stored)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.trained_tokens) == ("succeeded", PROGRESS.trained_tokens)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:acme::")
    assert job.hyperparameters.to_dict() == {
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
        "n_epochs": RESOLVED.n_epochs,
    }
    assert job.green["state"] == "done"
    assert job.green["energy_wh"]["total"] == pytest.approx(1.0)  # 3,600 J
    assert job.green["measured"] == {"cpu": "rapl", "ram": "estimate"}
    assert job.green["co2e_g"] == pytest.approx(0.1)
    assert job.green["baseline"]["energy_wh"] == pytest.approx(2.0)
    [listed_job] = client.fine_tuning.jobs.list()
    assert listed_job.green["energy_wh"]["total"] == pytest.approx(1.0)
    emissions: Any = client.get(f"/fine_tuning/jobs/{job_id}/emissions", cast_to=object)
    assert len(emissions["intervals"]) == 24
    assert emissions["co2e_g"] == job.green["co2e_g"]
    assert emissions["attempts"][0]["energy_wh"] == pytest.approx(1.0)
    assert emissions["measured_share"] == pytest.approx(2 / 3)
    assert job.green["attempts"][0]["reason"] == "succeeded"
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job_id)
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (9, 1.5)
    assert checkpoint.fine_tuned_model_checkpoint.endswith(":ckpt-step-9")
    name = checkpoint.fine_tuned_model_checkpoint
    assert client.models.retrieve(name).id == name
    assert name not in [model.id for model in client.models.list()]
    content = client.files.content(job.result_files[0])
    assert content.text.startswith("step,train_loss")
    assert content.response.headers["content-type"].startswith("text/csv")
    assert client.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"

    assert client.models.retrieve(job.fine_tuned_model).owned_by == "acme"
    listed = [model.id for model in client.models.list()]
    assert listed == ["tiny", "org/base", job.fine_tuned_model]
    assert client.models.retrieve("org/base").id == "org/base"
    tuned_further = client.fine_tuning.jobs.create(
        model=job.fine_tuned_model, training_file=file_id
    )
    assert tuned_further.model == job.fine_tuned_model
    with pytest.raises(openai.NotFoundError):
        rival.models.retrieve(job.fine_tuned_model)
    with pytest.raises(openai.ConflictError) as caught:
        client.fine_tuning.jobs.cancel(job_id)
    assert caught.value.code == "invalid_state_transition"
    with pytest.raises(openai.ConflictError) as in_use:
        client.files.delete(file_id)
    assert in_use.value.code == "file_in_use"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("org/base")
    with pytest.raises(openai.ConflictError) as needed:
        client.models.delete(job.fine_tuned_model)
    assert (needed.value.code, needed.value.param) == ("model_in_use", "model")
    assert tuned_further.id in needed.value.message
    client.fine_tuning.jobs.cancel(tuned_further.id)
    assert client.models.delete(job.fine_tuned_model).deleted
    assert client.fine_tuning.jobs.checkpoints.list(job_id).data == []
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(job.fine_tuned_model)


def _finish(database: Database, job_id: str, stored: Any) -> None:
    now = datetime.now(UTC)
    with database.transaction() as session:
        own = take_up(session, job_id, now=now)
        service.record_progress(*own, PROGRESS)
        checkpoint = NewCheckpoint(
            step=9, prefix="jobs/x/checkpoints/9", n_bytes=1, metrics={"train_loss": 1.5}
        )
        service.record_checkpoint(*own, checkpoint, now=now)
        service.record_energy(*own, samples(now, 12, joules=200.0))
        result = NewFile(
            id="file-" + "a" * 24,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            n_bytes=stored.n_bytes,
            sha256=stored.sha256,
            object_key=stored.key,
            status="processed",
        )
        service.succeed(
            *own, model_prefix="jobs/x/result", model_bytes=1, result_files=[result], now=now
        )


def test_pause_and_resume(client: openai.OpenAI, chat_lines: Lines, database: Database) -> None:
    job_id = submit(client, upload(client, chat_lines(12)).id).id
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.pause(job_id)
    assert caught.value.code == "job_not_pausable"
    now = datetime.now(UTC)
    with database.transaction() as session:
        claim = service.claim(session, worker="w", now=now, lease_s=60, max_attempts=3)
        assert claim is not None
        service.validated(session, job_id, claim.fence, now=now)
    paused = client.fine_tuning.jobs.with_raw_response.pause(job_id).http_response.json()
    assert (paused["status"], paused["green"]["state"]) == ("queued", "pausing")
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"


def test_intensity(client: openai.OpenAI) -> None:
    answer: Any = client.get("/green/intensity?zone=fr", cast_to=object)
    assert answer["zone"] == "FR"
    assert 0 < answer["intensity_g_per_kwh"] < 200
    for query, code in (("", "missing_required_parameter"), ("?zone=XX-NONE", "invalid_value")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.get(f"/green/intensity{query}", cast_to=object)
        assert (caught.value.code, caught.value.param) == (code, "zone")
