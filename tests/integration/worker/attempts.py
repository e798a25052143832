"""A worker whose training processes are killed, each at a point of its own, until one gets through.

Run as ``python attempts.py HOME MODEL DATABASE_URL JOB_ID POINTS``, with the object store in the
settings' environment variables. ``POINTS``: JSON, a list of [pattern of a key, "before" or "after"
its object is stored]; an attempt dies at the first object that its point fits, by SIGKILL.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.jobs import service
from core.jobs.database import open_database
from core.jobs.records import Claim
from core.settings import Settings
from tests.fixtures.deadly_store import DeadlyStore
from worker.reporter import Reporter
from worker.runner import Training
from worker.world import open_world

#: long past: what is due by this clock is due by the database's
BEGIN = datetime.now(UTC) - timedelta(days=5)
LEASE_S = 60.0


def later(n_attempts: int) -> datetime:
    """When so many attempts have begun and lost their leases."""
    return BEGIN + timedelta(hours=2 * n_attempts)


def main(home: Path, model: str, database_url: str, job_id: str, points: list[list[str]]) -> None:
    os.environ |= {
        "GREENTUNE_HOME": str(home),
        "GREENTUNE_DATABASE_URL": database_url,
        "GREENTUNE_MODELS": f"tiny={model}",
        "GREENTUNE_ZONE": "FR",
    }
    for number, (pattern, moment) in enumerate([*points, ["never", "after"]]):
        claim = _claim(database_url, job_id, later(number))
        # forked before any tensor operation: importing torch again for each would take minutes
        pid = os.fork()
        if pid == 0:
            _attempt(claim, pattern, moment)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)


def _claim(database_url: str, job_id: str, now: datetime) -> Claim:
    database = open_database(database_url)
    with database.transaction() as session:
        claim = service.claim(
            session, worker="w", now=now, lease_s=LEASE_S, max_attempts=99, job_id=job_id
        )
    database.dispose()
    assert claim is not None
    return claim


def _attempt(claim: Claim, pattern: str, moment: str) -> None:
    world = open_world(Settings(), shares_host=True)
    world = replace(world, objects=DeadlyStore(world.objects, pattern, moment))
    who = {"tenant": claim.tenant, "job_id": claim.job_id, "fence": claim.fence}
    with Reporter(world.database, **who, patience_s=5.0) as reporter:
        Training(claim, world, reporter).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], json.loads(sys.argv[5]))
