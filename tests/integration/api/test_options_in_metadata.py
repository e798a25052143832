"""Options in ``metadata`` through the unmodified openai client: merged, echoed, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import openai
import pytest
from fastapi.testclient import TestClient

Lines = Callable[[int], bytes]


def test_metadata_carries_options_for_clients_without_extra_body(
    client: openai.OpenAI, http: TestClient, chat_lines: Lines
) -> None:
    file_id = client.files.create(file=chat_lines(12), purpose="fine-tune").id
    submit = partial(client.fine_tuning.jobs.create, model="tiny", training_file=file_id)
    metadata = {"team": "a", "green.rho": "0.5", "green.training.learning_rate": "1e-4"}
    metadata["green.currency"] = "seconds"
    job = submit(metadata=metadata, extra_body={"green": {"zone": "FR"}})
    assert job.metadata == metadata
    assert (job.green["rho"], job.green["zone"]) == (0.5, "FR")
    again = client.fine_tuning.jobs.retrieve(job.id)
    assert (again.green["rho"], again.green["currency"]) == (0.5, "seconds")
    assert [found.id for found in client.fine_tuning.jobs.list(metadata=metadata)] == [job.id]
    # judged by the schema, by the spec, by the signal, by the model's costs, by the plan
    for key, text, code in (
        ("green.rho", "half", "invalid_value"),
        ("green.rho", "2", "invalid_value"),
        ("green.currency", "euros", "invalid_value"),
        ("green.zone", "FRANCE-1", "invalid_value"),
        ("green.rho", "0.03", "rho_infeasible"),
        ("green.deadline", "2020-01-01T00:00:00Z", "deadline_unreachable"),
        ("green.deadlin", "x", "unknown_parameter"),
        ("green.training.learning_rate", "5e-324", "invalid_value"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            submit(metadata={key: text})
        assert (caught.value.code, caught.value.param) == (code, f"metadata.{key}")
    with pytest.raises(openai.BadRequestError) as elsewhere:
        submit(metadata={"suffix": "a", "green.rho": "1"}, suffix="a b")
    assert elsewhere.value.param == "suffix"
    body = {"model": "tiny", "training_file": file_id, "metadata": {"green.x": "1"}}
    assert http.post("/v1/fine_tuning/jobs", json=body).status_code == 401


def test_a_rate_that_rounds_to_nothing_is_refused(client: openai.OpenAI, chat_lines: Lines) -> None:
    """Such jobs were accepted, and failed in a division by the rate of a step, 0."""
    file_id = client.files.create(file=chat_lines(12), purpose="fine-tune").id
    submit = partial(client.fine_tuning.jobs.create, model="tiny", training_file=file_id)
    with pytest.raises(openai.BadRequestError) as own:
        submit(extra_body={"green": {"training": {"learning_rate": 1e-13}}})
    assert own.value.param == "green.training.learning_rate"
    with pytest.raises(openai.BadRequestError, match="greater than or equal to") as scaled:
        submit(hyperparameters={"learning_rate_multiplier": 5e-324})
    assert scaled.value.param == "hyperparameters.learning_rate_multiplier"
    assert scaled.value.code == "invalid_hyperparameter"
