"""Losses and accuracies that a job tells, in three places, against a loop that knows none of us."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F  # noqa: N812

from core.jobs import store
from core.jobs.lifecycle import Status
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.desk import Desk

N_EXAMPLES, N_HELD_OUT, N_EPOCHS, RATE = 12, 5, 3, 1e-2
#: in the CSV, in events and checkpoints
NAMES = {
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}


class Naive:
    """One sample at a time, the whole file a step."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=0)

    def measure(self, lines: bytes) -> tuple[float, float]:
        """Mean over label tokens: loss, whose gradients are left behind, and accuracy."""
        self._model.zero_grad()
        losses, n_right, n_labels = [], 0, 0
        for line in lines.splitlines():
            ids, labels = self._sample(json.loads(line)["messages"])
            logits = self._model(input_ids=torch.tensor([ids])).logits[0, :-1]
            target = torch.tensor(labels[1:])
            has_loss = target != -100
            losses.append(F.cross_entropy(logits, target, reduction="sum"))
            n_right += int((logits.argmax(-1) == target)[has_loss].sum())
            n_labels += int(has_loss.sum())
        loss = torch.stack(losses).sum() / n_labels
        loss.backward()
        return loss.item(), n_right / n_labels

    def step(self) -> None:
        self._optimiser.step()

    def _sample(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for message in messages:
            head = self._encode(f"<|im_start|>{message['role']}\n")
            said = self._encode(f"{message['content']}<|im_end|>")
            end = self._encode("\n")
            ids += [*head, *said, *end]
            is_learned = message["role"] == "assistant"
            labels += [-100] * len(head) + (said if is_learned else [-100] * len(said))
            labels += [-100] * len(end)
        return ids, labels

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_they_are_what_a_naive_loop_finds(
    accumulation: int, desk: Desk, tiny_model: Path, chat_lines: Callable[[int], bytes]
) -> None:
    lines = chat_lines(N_EXAMPLES + N_HELD_OUT).splitlines(keepends=True)
    training, held_out = b"".join(lines[:N_EXAMPLES]), b"".join(lines[N_EXAMPLES:])
    made = desk.submit(
        training,
        validation=held_out,
        green={"method": "full", "rho": 1.0},
        n_epochs=N_EPOCHS,
        batch_size=N_EXAMPLES // accumulation,
        gradient_accumulation=accumulation,
        learning_rate=RATE,
        schedule="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1e6,
        precision="fp32",
    )
    job = desk.carry_out(made)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)

    naive = Naive(tiny_model)
    expected: dict[int, dict[str, float]] = {}
    for step in range(N_EPOCHS + 1):
        if step:
            loss, accuracy = naive.measure(training)
            naive.step()
            expected[step] = {"train_loss": loss, "train_mean_token_accuracy": accuracy}
        loss, accuracy = naive.measure(held_out)
        expected.setdefault(step, {}).update(valid_loss=loss, valid_mean_token_accuracy=accuracy)

    rows = list(csv.DictReader(io.StringIO(desk.result_file(job.result_files[0]).decode())))
    assert list(rows[0])[:5] == ["step", *NAMES]
    in_csv = {
        int(row["step"]): {NAMES[name]: float(row[name]) for name in NAMES if row[name]}
        for row in rows
    }
    in_events: dict[int, dict[str, Any]] = {}
    for event in desk.events(job.id):
        if event.type == "metrics" and event.data is not None:
            in_events.setdefault(event.data["step"], {}).update(event.data)
    with desk.database.read() as session:
        checkpoints = store.list_checkpoints(session, TENANT, job.id).items
    assert len(checkpoints) == N_EPOCHS
    in_checkpoints = {each.step: dict(each.metrics) for each in checkpoints}

    for step, wanted in expected.items():
        near = pytest.approx(wanted, rel=1e-3)
        assert in_csv[step] == near
        full = {f"full_{name}": wanted[name] for name in wanted if name.startswith("valid")}
        for told in (in_events, in_checkpoints) if step else (in_events,):
            assert {name: told[step][name] for name in wanted} == near
            assert {name: told[step][name] for name in full} == pytest.approx(full, rel=1e-3)
