"""Random lives of jobs: workers that work, freeze, die and come back, callers that change their
minds, sweepers that sweep; after every step the invariants hold, and in the end every job ends.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from core.errors import InvalidInput, InvalidTransition, LeaseLost
from core.jobs import service, store
from core.jobs.lifecycle import Release, Status
from core.jobs.records import AttemptRecord, Claim, EventRecord, JobRecord, Page
from core.jobs.tables import Base
from tests.integration.jobs.engine import (
    HYPERPARAMETERS,
    LEASE_S,
    MAX_ATTEMPTS,
    Engine,
    checkpoint,
    sample,
)

ENDED = {"succeeded", "failed", "cancelled"}


class Lives(RuleBasedStateMachine):
    claims = Bundle("claims")

    def __init__(self, database) -> None:
        super().__init__()
        with database.transaction() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        self.engine = Engine(database)
        self.seen: dict[str, JobRecord] = {}
        self.n_events: dict[str, int] = {}
        self.submitted: list[str] = []
        self.newest: dict[str, int] = {}

    # what callers do

    @initialize()
    def first(self) -> None:
        self.submit(priority=0)

    @rule(priority=st.integers(-1, 1))
    def submit(self, priority: int) -> None:
        self.submitted.append(self.engine.submit(priority=priority).id)

    @rule(data=st.data(), use_case=st.sampled_from([service.cancel, service.pause, service.resume]))
    def order(self, data, use_case) -> None:
        job_id = data.draw(st.sampled_from(self.submitted))
        before = self.job(job_id)
        try:
            after = self.engine.ask(use_case, job_id)
        except InvalidTransition:
            assert before.status in ENDED
        except InvalidInput:
            assert use_case is service.pause
            assert before.status not in ("queued", "running") or before.cancel_requested_at
        else:
            # repeating it at once changes nothing
            if use_case is not service.resume or after.status != "queued":
                assert self.engine.ask(use_case, job_id) == after

    # what workers do

    @rule(target=claims, data=st.data(), named=st.booleans())
    def claim(self, data, named: bool):
        job_id = data.draw(st.sampled_from(self.submitted)) if named else None
        claim = self.engine.claim("w", job_id)
        if claim is None:
            return multiple()
        assert claim.fence == self.newest.get(claim.job_id, 0) + 1
        self.newest[claim.job_id] = claim.fence
        return claim

    @rule(
        claim=claims,
        step=st.integers(1, 6),
        deed=st.sampled_from(
            ["heartbeat", "validated", "started", "event", "energy", "checkpoint", "progress"]
        ),
    )
    def work(self, claim: Claim, step: int, deed: str) -> None:
        engine = self.engine
        deeds = {
            "heartbeat": lambda: engine.do(service.heartbeat, claim, lease_s=LEASE_S),
            "validated": lambda: engine.do(service.validated, claim),
            "started": lambda: engine.do(service.started, claim, hyperparameters=HYPERPARAMETERS),
            "event": lambda: engine.do(service.append_event, claim, level="info", message="m"),
            "energy": lambda: engine.do(
                service.record_energy, claim, [sample(step)], timeless=True
            ),
            "checkpoint": lambda: engine.do(service.record_checkpoint, claim, checkpoint(step)),
            "progress": lambda: engine.do(service.set_baseline, claim, None, timeless=True),
        }
        self.judged(claim, deeds[deed])

    @rule(
        claim=consumes(claims),
        ending=st.sampled_from(["succeed", "fail", "cancelled", "paused", "raised", *Release]),
    )
    def end(self, claim: Claim, ending: str) -> None:
        engine = self.engine
        if isinstance(ending, Release):
            words = {"reason": ending, "max_attempts": MAX_ATTEMPTS}
            after = self.judged(claim, lambda: engine.do(service.release, claim, **words))
        elif ending == "succeed":
            after = self.judged(claim, lambda: engine.succeed(claim))
        elif ending == "raised":
            words = {"failure": "ValueError", "may_pass": False, "max_attempts": MAX_ATTEMPTS}
            after = self.judged(claim, lambda: engine.do(service.raised, claim, **words))
        elif ending == "fail":
            after = self.judged(
                claim, lambda: engine.do(service.fail, claim, code="nan_loss", message="NaN")
            )
        else:
            after = self.judged(claim, lambda: engine.do(getattr(service, ending), claim))
        if isinstance(after, JobRecord):
            assert not after.is_owned

    def judged(self, claim: Claim, deed):
        """Refused exactly when the claim is not the living one, or the state forbids it."""
        before = self.job(claim.job_id)
        owner = before.is_owned and before.fence == claim.fence
        try:
            after = deed()
        except LeaseLost:
            assert not owner
            assert self.job(claim.job_id) == before
            return None
        except InvalidTransition:
            assert owner
            assert self.job(claim.job_id) == before
            return None
        assert owner
        return after

    # what the world does

    @rule(seconds=st.sampled_from([1, 5, LEASE_S - 1, LEASE_S + 1, 1000]))
    def wait(self, seconds: float) -> None:
        self.engine.wait(seconds)

    @rule()
    def sweep(self) -> None:
        for job_id in self.engine.sweep():
            job = self.job(job_id)
            assert job.status in ("validating_files", "queued")
            assert not job.is_owned

    # what must always be true

    def job(self, job_id: str) -> JobRecord:
        return self.engine.read(store.get_job, "acme", job_id)

    @invariant()
    def lives_obey_the_law(self) -> None:
        with self.engine.database.read() as session:
            for job in store.list_jobs(session, "acme", limit=100).items:
                before = self.seen.get(job.id)
                if before is not None:
                    assert job.fence >= before.fence
                    assert job.energy_j >= before.energy_j
                    if before.status in ENDED:
                        assert job == before
                self.check_state(job)
                self.check_attempts(job, store.list_attempts(session, job.id))
                self.check_history(job, store.list_events(session, "acme", job.id, limit=1000))
                self.seen[job.id] = job

    def check_state(self, job: JobRecord) -> None:
        assert (job.finished_at is not None) == (job.status in ENDED)
        assert (job.worker is not None) == job.is_owned
        if job.is_owned:
            assert job.status in ("validating_files", "queued", "running")
            assert job.not_before is None
        else:
            assert job.status != Status.RUNNING
            assert job.pause_requested_at is None
            assert job.cancel_requested_at is None or job.status in ENDED
        assert (job.fine_tuned_model is not None) == (job.status == "succeeded")
        assert (job.error is not None) == (job.status == "failed")

    def check_attempts(self, job: JobRecord, attempts: tuple[AttemptRecord, ...]) -> None:
        """At most one is alive, and it is the owner's."""
        assert [attempt.number for attempt in attempts] == list(range(1, job.fence + 1))
        alive = [attempt.number for attempt in attempts if attempt.ended_at is None]
        assert alive == ([job.fence] if job.is_owned else [])
        assert sum(attempt.energy_j for attempt in attempts) == job.energy_j

    def check_history(self, job: JobRecord, page: Page[EventRecord]) -> None:
        """It is only added to, and tells of every state the job was seen to enter."""
        numbers = [event.seq for event in page.items]
        assert numbers == list(range(len(numbers), 0, -1))
        assert len(numbers) >= self.n_events.get(job.id, 0)
        before = self.seen.get(job.id)
        if before is not None and before.status != job.status:
            assert len(numbers) > self.n_events[job.id]
            # several arrows may lie between two looks, but none leaves an end
            assert before.status not in ENDED
        self.n_events[job.id] = len(numbers)

    def teardown(self) -> None:
        """Whatever happened: with honest workers, every job comes to one end."""
        for job_id in self.submitted:
            if self.job(job_id).status == "paused":
                self.engine.ask(service.resume, job_id)
        for _ in range(len(self.submitted) + 1):
            self.engine.wait(1000)
            self.engine.sweep()
            for job_id in self.submitted:
                # a pause order whose worker had gone was carried out just now
                if self.job(job_id).status == "paused":
                    self.engine.ask(service.resume, job_id)
        while (claim := self.engine.claim()) is not None:
            self.engine.do(service.validated, claim)
            self.engine.do(service.started, claim, hyperparameters=HYPERPARAMETERS)
            assert self.engine.succeed(claim).status == "succeeded"
        assert all(self.job(job_id).status in ENDED for job_id in self.submitted)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_random_lives_on_sqlite(database):
    live(database, examples=15)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_random_lives_on_postgres(database):
    live(database, examples=5)


def live(database, *, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Lives(database),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
