"""The training process's work, run inside the test: what a caller finds in the end."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import LeaseLost, NotFound, OutOfMemory
from core.jobs import service, store
from core.jobs.database import now
from core.jobs.lifecycle import Status
from core.objects.folders import get_folder
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.desk import Desk
from worker import runner
from worker.tidying import tidy


def test_a_job_from_its_file_to_its_model(
    desk: Desk, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    job = desk.carry_out(desk.submit(chat_lines(24)))
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.progress.step == job.progress.total_steps == 6
    # the selection's pair of probes, a sixth of so short a run, is paid out of rho
    assert 0.6 < job.progress.rho_measured <= 0.7
    assert job.energy_j > 0
    assert job.emissions_g > 0
    assert job.baseline is not None
    assert job.baseline.energy_j > job.energy_j

    messages = [event.message for event in desk.events(job.id)]
    in_order = [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.spec.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Checkpoint created at step 6",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert [m for m in messages if m in in_order] == in_order
    assert sum(message.startswith("Step ") for message in messages) == 6
    (start,) = [e for e in desk.events(job.id) if (e.data or {}).get("kind") == "start"]
    assert start.data is not None
    assert start.data["memory_estimate_bytes"] > 0

    metrics, emissions, archive = (desk.result_file(file_id) for file_id in job.result_files)
    rows = list(csv.DictReader(io.StringIO(metrics.decode())))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[-1]["train_loss"]) == job.progress.train_loss
    report = json.loads(emissions)
    assert report["job_id"] == job.id
    assert report["pue"] == 1.2
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert any(name.endswith("/model.safetensors") for name in tar.getnames())

    from transformers import AutoModelForCausalLM

    with desk.database.read() as session:
        assert job.fine_tuned_model is not None
        record = store.get_model(session, TENANT, job.fine_tuned_model)
    folder = tmp_path / "tuned"
    get_folder(desk.objects, record.prefix, folder)
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert "co2_eq_emissions" in (folder / "README.md").read_text()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_job_that_over_trains_ends_early_with_its_best_weights(
    desk: Desk, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    # at this rate the model forgets more than it learns, the longer the more
    options = {"n_epochs": 30, "learning_rate": 0.05, "schedule": "constant", "rho": 0.9}
    lines = chat_lines(24).splitlines(keepends=True)
    training, validation = b"".join(lines[:12]), b"".join(lines[12:])
    made = desk.submit(training, validation=validation, early_stopping_patience=2, **options)
    job = desk.carry_out(made)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    told = [event.data or {} for event in desk.events(job.id)]
    losses = {row["step"]: row["valid_loss"] for row in told if row.get("valid_loss") is not None}
    del losses[0]
    best = min(losses, key=lambda step: losses[step])
    (kept,) = [row for row in told if row.get("kind") == "early_stopping"]
    assert job.progress.step == kept["step"] == best + 2 * 3 < job.progress.total_steps
    assert (kept["kept_step"], kept["loss"]) == (best, losses[best])
    assert job.held_out.validation_loss == job.progress.valid_loss == losses[best]
    with desk.database.read() as session:
        assert job.fine_tuned_model is not None
        record = store.get_model(session, TENANT, job.fine_tuned_model)
    folder = tmp_path / "tuned"
    get_folder(desk.objects, record.prefix, folder)
    assert f"of step {best}, where validation loss was lowest" in (folder / "README.md").read_text()


def test_a_fine_tuned_model_and_its_checkpoint_are_bases(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    """The last checkpoint is the finished model: tuning either on gives the same weights."""
    first = desk.carry_out(desk.submit(chat_lines(12)))
    assert first.fine_tuned_model is not None
    with desk.database.read() as session:
        checkpoint = store.list_checkpoints(session, TENANT, first.id).items[0]
    assert checkpoint.step == first.progress.step
    # what only a resumed job would have needed is gone, twice the weights
    assert tidy(desk.database, desk.objects) > 0
    with pytest.raises(NotFound):
        desk.objects.get(f"{checkpoint.prefix}/optimizer.safetensors")
    losses = []
    for model in (first.fine_tuned_model, checkpoint.model):
        job = desk.carry_out(desk.submit(chat_lines(12), model=model))
        assert (job.status, job.error) == (Status.SUCCEEDED, None)
        losses.append(job.progress.train_loss)
    assert losses[0] == losses[1] != first.progress.train_loss


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"line": b'{"messages": []}\n'}, "invalid_training_file", "line 13: "),
        ({"line": b"not json\n"}, "invalid_training_file", "line 13: "),
        ({"count": 4}, "invalid_n_examples", "Training file has 4 example(s)"),
        ({"rho": 0.34}, "rho_infeasible", "rho must be at least 0."),
        ({"model": "unknown"}, "model_not_found", "unknown"),
        (
            {"rho": 1.0, "learning_rate": 1e5, "max_grad_norm": 1e30, "precision": "fp32"},
            "nan_loss",
            "became",
        ),
    ],
)
def test_what_cannot_work_fails_at_once_and_says_why(
    desk: Desk,
    chat_lines: Callable[[int], bytes],
    change: dict[str, Any],
    code: str,
    said: str,
) -> None:
    lines = chat_lines(change.pop("count", 12)) + change.pop("line", b"")
    job = desk.carry_out(desk.submit(lines, **change))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert said in job.error.message
    assert job.fence == 1
    if code == "rho_infeasible":
        assert job.error.param == "green.rho"
        assert "Fine-tuning job started" not in [e.message for e in desk.events(job.id)]
        with desk.database.read() as session:
            minimum = store.get_profile_minimum(session, "tiny")
        assert minimum is not None
        assert 0.34 < minimum < 1


def test_rho_auto_follows_the_grid_and_says_so(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    job = desk.carry_out(desk.submit(chat_lines(12), rho="auto"))
    assert job.status is Status.SUCCEEDED
    (said,) = [e for e in desk.events(job.id) if (e.data or {}).get("kind") == "rho"]
    assert said.data is not None
    assert said.data["zone"] == "FR"
    assert job.progress.rho_requested == said.data["rho"]


def test_memory_that_does_not_suffice_halves_the_micro_batch(
    desk: Desk, chat_lines: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = runner.train, []

    def train(prepared, **arguments):
        sizes.append((prepared.training.batch_size, prepared.training.gradient_accumulation))
        if prepared.training.batch_size > 1:
            raise OutOfMemory("Not enough memory.")
        return real(prepared, **arguments)

    monkeypatch.setattr(runner, "train", train)
    job = desk.carry_out(desk.submit(chat_lines(12)))
    assert job.status is Status.SUCCEEDED
    assert sizes == [(4, 1), (2, 2), (1, 4)]
    assert job.progress.total_steps == 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_job_that_cannot_fit_ends_before_it_trains_unless_it_can_be_split(
    batch_size: int,
    desk: Desk,
    chat_lines: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.room.device_bytes", lambda _device: 1000)
    job = desk.carry_out(desk.submit(chat_lines(12), batch_size=batch_size))
    events = desk.events(job.id)
    told = [e for e in events if (e.data or {}).get("kind") == "memory"]
    steps = [e for e in events if e.message.startswith("Step ")]
    if batch_size == 1:
        assert job.status is Status.FAILED
        assert job.error is not None
        assert job.error.code == "out_of_memory"
        assert "gradient_checkpointing" in job.error.message
        assert (told, steps) == ([], [])
    else:
        assert job.status is Status.SUCCEEDED
        assert [event.level for event in told] == ["warn"]
        assert len(steps) == 3


def test_an_object_store_that_lost_the_file_is_tried_again_later(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    job_id = desk.submit(chat_lines(12))
    key = f"files/{desk.job(job_id).spec.training_file}"
    desk.objects.put(key, [b"something else"])
    job = desk.carry_out(job_id)
    assert (job.status, job.retries) == (Status.VALIDATING_FILES, 1)
    assert job.not_before is not None


def test_cancelled_before_it_began(desk: Desk, chat_lines: Callable[[int], bytes]) -> None:
    job_id = desk.submit(chat_lines(12))
    claim = desk.claim(job_id)
    with desk.database.transaction() as session:
        service.cancel(session, tenant=TENANT, job_id=job_id, now=now(session))
    desk.train(claim)
    job = desk.job(job_id)
    assert job.status is Status.CANCELLED
    assert job.energy_j > 0, "cancelled work is accounted for too"


def test_a_successor_makes_the_old_training_stop_without_a_word(
    desk: Desk, chat_lines: Callable[[int], bytes]
) -> None:
    job_id = desk.submit(chat_lines(12))
    claim = desk.claim(job_id)
    with desk.database.transaction() as session:
        later = now(session).replace(year=now(session).year + 1)
        successor = service.claim(
            session, worker="x", now=later, lease_s=60, max_attempts=3, job_id=job_id
        )
    assert successor is not None
    with pytest.raises(LeaseLost):
        desk.train(claim)
    job = desk.job(job_id)
    assert (job.status, job.fence, job.worker) == (Status.VALIDATING_FILES, 2, "x")
