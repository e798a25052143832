"""How many jobs of one tenant may be under way."""

from __future__ import annotations

import pytest

from core.errors import LimitExceeded
from core.jobs import service, store
from core.spec import JobSpec
from tests.integration.jobs.engine import Engine
from tests.integration.jobs.test_races import at_once

ROUNDS = 3


def test_a_tenant_has_so_many_unfinished_jobs_and_no_more(engine: Engine) -> None:
    running, queued = engine.submit(most_active=2), engine.submit(most_active=2)
    engine.running(job_id=running.id)
    engine.ask(service.pause, engine.running(job_id=queued.id).job_id)
    with pytest.raises(LimitExceeded, match="2 jobs of this organization") as refused:
        engine.submit(most_active=2)
    assert refused.value.code == "insufficient_quota"
    # another tenant's do not count, and what has ended does not
    assert engine.submit(tenant="rival", most_active=1).id
    other = engine.submit(most_active=3)
    engine.ask(service.cancel, other.id)
    with pytest.raises(LimitExceeded):
        engine.submit(most_active=2)
    assert engine.submit(most_active=3).id


def test_submitted_at_once_no_more_than_so_many_are_accepted(engine: Engine) -> None:
    for number in range(ROUNDS):
        tenant = f"tenant-{number}"
        spec = JobSpec(model="m", training_file=engine.upload(tenant))
        answers = at_once(
            *(lambda s=spec, t=tenant: engine.submit(s, tenant=t, most_active=3) for _ in range(8))
        )
        assert sum(isinstance(answer, LimitExceeded) for answer in answers) == 5
        assert len(engine.read(store.list_jobs, tenant).items) == 3
