"""The main job through the unmodified openai client: real processes, a tiny model, both set-ups."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fixtures.services import S3Server, fresh_postgres_database, fresh_redis_database
from tests.fixtures.serving import Server, environment_of, run_greentune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Lines = Callable[[int], bytes]
JOB_TIMEOUT_S = 240.0
TERMINAL = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module", params=["embedded", "services"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Server]:
    """`greentune serve`: out of one folder, or on Postgres, Redis and SeaweedFS."""
    settings = {"models": f"tiny={tiny_model}", "organization": "acme", "meter_interval_s": "1"}
    with ExitStack() as stack:
        if request.param == "services":
            s3: S3Server = request.getfixturevalue("seaweedfs")
            settings |= {
                "database_url": stack.enter_context(fresh_postgres_database()),
                "broker_url": stack.enter_context(fresh_redis_database()),
                "objects_url": f"s3://{s3.bucket}/test-{secrets.token_hex(6)}",
                "s3_endpoint": s3.endpoint,
                "s3_region": s3.region,
                "s3_access_key_id": s3.access_key_id,
                "s3_secret_access_key": s3.secret_access_key,
            }
        environment = environment_of(tmp_path_factory.mktemp("home"), **settings)
        running = stack.enter_context(Server(environment))
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=server.url, api_key=server.first_key(), _strict_response_validation=True
    ) as made:
        yield made


def finished(client: openai.OpenAI, job_id: str) -> Any:
    deadline = time.monotonic() + JOB_TIMEOUT_S
    energy_wh = 0.0
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.green["energy_wh"]["total"] >= energy_wh
        energy_wh = job.green["energy_wh"]["total"]
        if job.status in TERMINAL:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.2)


def test_the_main_job(client: openai.OpenAI, chat_lines: Lines) -> None:
    training = client.files.create(file=("train.jsonl", chat_lines(24)), purpose="fine-tune")
    held_out = client.files.create(file=("valid.jsonl", chat_lines(6)), purpose="fine-tune")
    assert client.files.wait_for_processing(training.id).status == "processed"
    made = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training.id,
        validation_file=held_out.id,
        suffix="sums",
        seed=3,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}},
        },
        extra_body={"green": {"rho": 0.7, "zone": "FR", "training": {"learning_rate": 5e-3}}},
    )
    job = finished(client, made.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:acme:sums:")
    assert (job.seed, job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 2, 4)
    assert job.trained_tokens
    assert job.finished_at is not None

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    messages = [event.message for event in reversed(events)]
    expected = [
        "Created fine-tuning job",
        "Validating training file",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "New fine-tuned model created",
        "The job has successfully completed",
    ]
    at = [next(n for n, text in enumerate(messages) if text.startswith(part)) for part in expected]
    assert at == sorted(at)
    steps = [
        event.data["step"]  # type: ignore[index]
        for event in reversed(events)
        if event.type == "metrics" and "train_loss" in (event.data or {})  # type: ignore[operator]
    ]
    assert steps == list(range(1, 13))

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].step_number == 12
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-12"
    assert checkpoints[0].metrics.full_valid_loss is not None

    files = {client.files.retrieve(file_id).filename: file_id for file_id in job.result_files}
    assert len(files) == 3
    table = client.files.content(files["step_metrics.csv"]).text.splitlines()
    assert table[0].startswith("step,train_loss,train_accuracy,valid_loss,")
    assert len(table) >= 13
    emissions: Any = client.get(f"/fine_tuning/jobs/{job.id}/emissions", cast_to=object)
    assert emissions["energy_wh"]["total"] > 0
    assert emissions["zone"] == "FR"
    assert emissions["baseline"]["co2e_g"] > emissions["co2e_g"] > 0
    assert json.loads(client.files.content(files["emissions.json"]).text)["job_id"] == job.id
    assert client.models.retrieve(job.fine_tuned_model).owned_by == "acme"

    again = client.fine_tuning.jobs.create(model=job.fine_tuned_model, training_file=training.id)
    assert client.fine_tuning.jobs.cancel(again.id).status in ("cancelled", "validating_files")
    assert finished(client, again.id).status == "cancelled"


def test_a_file_that_came_in_parts_trains(client: openai.OpenAI, chat_lines: Lines) -> None:
    data = chat_lines(12)
    upload = client.uploads.upload_file_chunked(
        file=data,
        filename="train.jsonl",
        bytes=len(data),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=500,
    )
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == data
    made = client.fine_tuning.jobs.create(
        model="tiny", training_file=upload.file.id, extra_body={"green": {"zone": "FR"}}
    )
    job = finished(client, made.id)
    assert job.status == "succeeded", job.error


def test_early_stopping_saves_the_rest_and_delivers_the_best(
    client: openai.OpenAI, chat_lines: Lines
) -> None:
    lines = chat_lines(24).splitlines(keepends=True)
    files = [
        client.files.create(file=(name, b"".join(part)), purpose="fine-tune").id
        for name, part in (("train.jsonl", lines[:12]), ("valid.jsonl", lines[12:]))
    ]
    # at this rate the model soon forgets more than it learns
    options = {"learning_rate": 0.05, "schedule": "constant", "early_stopping_patience": 1}
    hyperparameters = {"n_epochs": 30, "batch_size": 4}
    wanted: dict[str, Any] = {
        "model": "tiny",
        "training_file": files[0],
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "extra_body": {"green": {"rho": 0.9, "zone": "FR", "training": options}},
    }
    with pytest.raises(openai.BadRequestError, match="give validation_file") as caught:
        client.fine_tuning.jobs.create(**wanted)
    assert caught.value.param == "green.training.early_stopping_patience"

    job = finished(client, client.fine_tuning.jobs.create(**wanted, validation_file=files[1]).id)
    assert job.status == "succeeded", job.error
    told = [event.data or {} for event in client.fine_tuning.jobs.list_events(job.id)]
    (kept,) = [row for row in told if row.get("kind") == "early_stopping"]  # type: ignore[attr-defined]
    assert kept["step"] == kept["kept_step"] + 3 < kept["total_steps"] == 90  # type: ignore[index,operator]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].step_number == kept["step"]  # type: ignore[index]
    assert checkpoints[0].metrics.full_valid_loss == kept["loss"]  # type: ignore[index]


def test_bad_data_fails_with_the_line(client: openai.OpenAI, chat_lines: Lines) -> None:
    lines = chat_lines(12).splitlines()
    lines[6] = b'{"messages": [{"role": "user", "content": null}]}'
    file = client.files.create(file=b"\n".join(lines), purpose="fine-tune")
    assert file.status == "error"
    job = finished(client, client.fine_tuning.jobs.create(model="tiny", training_file=file.id).id)
    assert job.status == "failed"
    assert job.error.code == "invalid_training_file"
    assert job.error.message.startswith("line 7: ")
    assert job.error.param == "training_file"

    few = client.files.create(file=chat_lines(7), purpose="fine-tune")
    job = finished(client, client.fine_tuning.jobs.create(model="tiny", training_file=few.id).id)
    assert (job.status, job.error.code) == ("failed", "invalid_n_examples")
    assert "has 7 example(s), but must have at least 10 examples" in job.error.message


def test_rho_too_low_for_the_model(client: openai.OpenAI, chat_lines: Lines) -> None:
    """Fails before any training, with the minimum; from then on it is refused at submission."""
    file = client.files.create(file=chat_lines(12), purpose="fine-tune")

    def submit(rho: float) -> Any:
        # every forward pass paid in full
        green = {"rho": rho, "training": {"prefix_reuse": "off"}}
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, extra_body={"green": green}
        )

    def refused_at_last() -> None:
        for _ in range(2):
            job = finished(client, submit(0.34).id)
            assert (job.status, job.error.code) == ("failed", "rho_infeasible")
            assert job.trained_tokens == 0

    with pytest.raises(openai.BadRequestError, match="lowest feasible") as caught:
        refused_at_last()
    assert caught.value.code == "rho_infeasible"


def test_async_client(server: Server, client: openai.OpenAI, chat_lines: Lines) -> None:
    async def drive() -> None:
        async with openai.AsyncOpenAI(
            base_url=server.url, api_key=client.api_key, _strict_response_validation=True
        ) as asynchronous:
            file = await asynchronous.files.create(file=chat_lines(10), purpose="fine-tune")
            assert (await asynchronous.files.content(file.id)).read() == chat_lines(10)
            assert [job.id async for job in asynchronous.fine_tuning.jobs.list(limit=1)]
            assert (await asynchronous.files.delete(file.id)).deleted

    asyncio.run(drive())


def test_command_line(
    server: Server, client: openai.OpenAI, chat_lines: Lines, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_bytes(chat_lines(12))
    environment = {
        **server.environment,
        "GREENTUNE_URL": server.url,
        "GREENTUNE_API_KEY": client.api_key,
    }
    key = run_greentune("keys", "create", "ci", environment=environment)
    assert key.returncode == 0, key.stderr
    assert client.with_options(api_key=key.stdout.strip()).models.list().data

    def run(*arguments: str) -> Any:
        return run_greentune(*arguments, environment=environment)

    done = run("submit", str(tmp_path / "train.jsonl"), "--model", "tiny", "--rho", "0.7",
               "--max-steps", "2", "--watch")  # fmt: skip
    assert done.returncode == 0, done.stderr
    job_id, tuned = done.stdout.splitlines()
    assert "step 2/2" in done.stderr
    assert tuned.startswith("Fine-tuned model: ft:tiny:acme:")
    assert job_id in run("jobs").stdout
    report = run("report", job_id)
    assert "full fine-tuning (modelled)" in report.stdout
    assert json.loads(run("report", job_id, "--json").stdout)["job_id"] == job_id
    refused = run("submit", str(tmp_path / "train.jsonl"), "--model", "tiny", "--rho", "0.05")
    assert refused.returncode == 1
    assert "lowest feasible rho" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
