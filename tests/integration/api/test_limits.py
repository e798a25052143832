"""What one organization may have under way, as the client sees it."""

from __future__ import annotations

import io
from collections.abc import Callable

import openai
import pytest

from core.settings import Settings

Lines = Callable[[int], bytes]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_active_jobs": 2})


def test_jobs_beyond_the_limit_are_a_quota_until_some_end(
    client: openai.OpenAI, rival: openai.OpenAI, chat_lines: Lines
) -> None:
    def submit(by: openai.OpenAI, key: str) -> str:
        file = by.files.create(file=io.BytesIO(chat_lines(12)), purpose="fine-tune")
        headers = {"Idempotency-Key": key}
        job = by.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_headers=headers)
        return job.id

    first, _ = submit(client, "a"), submit(client, "b")
    with pytest.raises(openai.RateLimitError) as refused:
        submit(client, "c")
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert refused.value.param is None
    assert "at most 2" in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert submit(rival, "c")
    client.fine_tuning.jobs.cancel(first)
    assert submit(client, "d")
