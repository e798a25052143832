"""`greentune submit`: what it refuses by itself, and that each of its options has a field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from api.cli import app
from api.schemas import CreateJob
from core.errors import InvalidInput
from core.option_names import option_of

#: of a request, with no option
ONLY_IN_THE_API = {
    "green.training.loss_on",
    "green.training.max_grad_norm",
    "green.training.schedule",
    "green.training.warmup_ratio",
    "green.training.weight_decay",
    "hyperparameters.learning_rate_multiplier",
    "integrations",
    "metadata",
    "method.dpo",
    "method.reinforcement",
    "method.supervised.hyperparameters.learning_rate_multiplier",
    "method.type",
    "training_file",
}


def fields_of(model: type[BaseModel], at: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) if isinstance(kind, type)]
        inner = [kind for kind in kinds if issubclass(kind, BaseModel)]
        for block in inner:
            yield from fields_of(block, f"{at}{name}.")
        if not inner:
            yield at + name


def test_every_option_that_sets_a_field_is_what_that_field_is_told_as() -> None:
    command = typer.main.get_command(app).commands["submit"]  # type: ignore[attr-defined]
    options = {word for param in command.params for word in param.opts} - {"file", "--watch"}
    told = {field: option_of(field) for field in fields_of(CreateJob)}
    assert {field for field, option in told.items() if option is None} == ONLY_IN_THE_API
    assert {option for option in told.values() if option} == options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--columns src", "--columns must be field=column pairs"),
        ("--columns src=a,src=b", "--columns names the field 'src' twice"),
        ("--max-hold 0", "--max-hold must be a number of hours above 0 and at most 876600 (100"),
        ("--max-hold nan", "--max-hold must be a number of hours above 0"),
        ("--max-hold 1e6", "--max-hold must be a number of hours above 0"),
    ],
)
def test_what_cannot_be_sent_is_told_by_its_option(options: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("{}\n")
    refused = CliRunner().invoke(app, ["submit", str(file), *options.split()])
    assert isinstance(refused.exception, InvalidInput), refused.exception
    assert refused.exception.message.startswith(told)
