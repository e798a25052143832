"""Pages, cursors, tenants, labels, and how many queries they cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from core.errors import InvalidInput, ModelNotFound, NotFound
from core.jobs import service, store
from core.jobs.database import Database
from core.jobs.lifecycle import Release
from tests.integration.jobs.engine import Engine, checkpoint, sample


def walk(engine: Engine, query, *args: object, limit: int, between=lambda: None, **words) -> list:
    seen, after = [], None
    while True:
        page = engine.read(query, *args, after=after, limit=limit, **words)
        seen += page.items
        assert len(page.items) <= limit
        if not page.has_more:
            return seen
        after = page.items[-1].id
        between()


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_rest) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    event.listen(database._engine, "before_cursor_execute", note)
    yield statements
    event.remove(database._engine, "before_cursor_execute", note)


def test_jobs_newest_first_and_stable_while_more_come_in(engine):
    made = []
    for number in range(7):
        made.append(engine.submit().id)
        # some at the very same moment
        engine.wait(number % 2)

    def submit_later() -> None:
        engine.wait(1)
        engine.submit()

    seen = [job.id for job in walk(engine, store.list_jobs, "acme", limit=2, between=submit_later)]
    assert sorted(seen) == sorted(made)
    created = [engine.read(store.get_job, "acme", job_id).created_at for job_id in seen]
    assert created == sorted(created, reverse=True)


def test_events_and_checkpoints_page_by_page(engine):
    job = engine.submit()
    claim = engine.running()
    for step in range(1, 6):
        engine.do(service.record_checkpoint, claim, checkpoint(step))
    events = walk(engine, store.list_events, "acme", job.id, limit=3)
    assert [one.seq for one in events] == list(range(9, 0, -1))
    steps = [c.step for c in walk(engine, store.list_checkpoints, "acme", job.id, limit=2)]
    assert steps == [5, 4, 3, 2, 1]


def test_files_both_ways_and_past_a_deleted_one(engine):
    made = []
    for _ in range(5):
        made.append(engine.upload())
        engine.wait(1)
    engine.upload(purpose="fine-tune-results")
    words = {"now": engine.now, "purpose": "fine-tune"}
    up = walk(engine, store.list_files, "acme", limit=2, order="asc", **words)
    assert [file.id for file in up] == made
    assert len(engine.read(store.list_files, "acme", now=engine.now).items) == 6

    page = engine.read(store.list_files, "acme", limit=2, **words)
    assert [file.id for file in page.items] == made[:-3:-1]
    with engine.database.transaction() as session:
        service.delete_file(session, tenant="acme", file_id=made[3], now=engine.now)
    rest = engine.read(store.list_files, "acme", limit=9, after=made[3], **words)
    assert [file.id for file in rest.items] == made[2::-1]
    assert not rest.has_more


@pytest.mark.parametrize("after", ["ftjob-" + "0" * 24, "file-" + "0" * 24, "x", "\x00", ""])
def test_a_cursor_that_nobody_gave_out_is_refused(engine, after):
    job = engine.submit()
    queries = [
        (store.list_jobs, ("acme",), {}),
        (store.list_events, ("acme", job.id), {}),
        (store.list_checkpoints, ("acme", job.id), {}),
        (store.list_files, ("acme",), {"now": engine.now}),
    ]
    for query, args, words in queries:
        with pytest.raises(InvalidInput) as caught:
            engine.read(query, *args, after=after, **words)
        assert caught.value.param == "after"


def test_a_limit_below_one_is_refused(engine):
    with pytest.raises(InvalidInput) as caught:
        engine.read(store.list_jobs, "acme", limit=0)
    assert caught.value.param == "limit"


def test_no_tenant_sees_anothers_objects(engine):
    job = engine.submit(tenant="other")
    claim = engine.running()
    engine.do(service.record_checkpoint, claim, checkpoint(1))
    done = engine.succeed(claim)
    file_id = job.spec.training_file
    for query, args, words in (
        (store.get_job, (job.id,), {}),
        (store.list_events, (job.id,), {}),
        (store.list_checkpoints, (job.id,), {}),
        (store.get_file, (file_id,), {"now": engine.now}),
        (store.get_model, (done.fine_tuned_model,), {}),
    ):
        engine.read(query, "other", *args, **words)
        with pytest.raises(NotFound):
            engine.read(query, "acme", *args, **words)
    assert engine.read(store.list_jobs, "acme").items == ()
    assert engine.read(store.list_models, "acme") == ()
    assert engine.read(store.list_files, "acme", now=engine.now).items == ()
    for query, after in ((store.list_jobs, job.id), (store.list_files, file_id)):
        words = {"now": engine.now} if query is store.list_files else {}
        with pytest.raises(InvalidInput):
            engine.read(query, "acme", after=after, **words)
    for use_case, words in (
        (service.delete_file, {"file_id": file_id}),
        (service.delete_model, {"model_id": done.fine_tuned_model}),
    ):
        with pytest.raises(NotFound), engine.database.transaction() as session:
            use_case(session, tenant="acme", now=engine.now, **words)


@pytest.mark.parametrize(
    "labels",
    [
        {"team": "a"},
        {'quo"te': "it's"},
        {"a.b[0]": "$.x"},
        {"dollar$": "100%"},
        {"ключ": "значение 🌱"},
        {"": ""},
        {"back\\slash": "\\"},
        {"team": "a", "run": "7"},
    ],
)
def test_labels_find_their_jobs_whatever_they_are(engine, labels):
    wanted = engine.submit(metadata={**labels, "more": "x"})
    engine.submit(metadata={key: value + "!" for key, value in labels.items()})
    engine.submit()
    found = engine.read(store.list_jobs, "acme", metadata=labels).items
    assert [job.id for job in found] == [wanted.id]
    assert found[0].metadata == {**labels, "more": "x"}


def test_labels_that_cannot_exist_find_nothing_and_none_finds_the_unlabelled(engine):
    engine.submit(metadata={"a": "b"})
    plain = engine.submit()
    assert engine.read(store.list_jobs, "acme", metadata={"a\x00": "b"}).items == ()
    found = engine.read(store.list_jobs, "acme", metadata={}).items
    assert [job.id for job in found] == [plain.id]
    assert len(engine.read(store.list_jobs, "acme").items) == 2


def test_a_list_costs_the_same_however_long_it_is(engine):
    first = engine.submit()
    engine.do(service.release, engine.running(), reason=Release.SHUTDOWN, max_attempts=9)

    def cost() -> list[int]:
        costs = []
        for query, args, words in (
            (store.list_jobs, ("acme",), {"limit": 100}),
            (store.list_jobs, ("acme",), {"limit": 100, "after": first.id}),
            (store.list_jobs, ("acme",), {"limit": 100, "metadata": {"a": "b"}}),
            (store.list_files, ("acme",), {"now": engine.now}),
            (store.list_events, ("acme", first.id), {"limit": 100}),
            (store.list_checkpoints, ("acme", first.id), {"limit": 100}),
            (store.list_models, ("acme",), {}),
            (store.list_energy, (first.id,), {}),
            (store.list_attempts, (first.id,), {}),
        ):
            with counted(engine.database) as statements:
                engine.read(query, *args, **words)
            costs.append(len(statements))
        return costs

    short = cost()
    claim = engine.running()
    for step in range(1, 6):
        engine.do(service.record_checkpoint, claim, checkpoint(step))
        engine.do(service.record_energy, claim, [sample(5 * step)], timeless=True)
        engine.submit(metadata={"a": "b"})
    engine.succeed(claim)
    assert cost() == short
    assert max(short) <= 2


def test_models_are_listed_got_and_deleted(engine):
    engine.submit()
    done = engine.succeed(engine.running())
    engine.wait(1)
    engine.submit()
    newer = engine.succeed(engine.running())
    names = [model.id for model in engine.read(store.list_models, "acme")]
    assert names == [newer.fine_tuned_model, done.fine_tuned_model]
    with engine.database.transaction() as session:
        gone = service.delete_model(
            session, tenant="acme", model_id=done.fine_tuned_model, now=engine.now
        )
    assert gone.prefix == f"jobs/{done.id}/result"
    for model_id in (done.fine_tuned_model, "ft:\x00", "org/none"):
        with pytest.raises(ModelNotFound):
            engine.read(store.get_model, "acme", model_id)
    assert len(engine.read(store.list_models, "acme")) == 1


def test_the_lowest_profile_counts(engine):
    assert engine.read(store.get_profile_minimum, "m") is None
    for rho_min in (0.42, 0.39, 0.45):
        with engine.database.transaction() as session:
            store.put_profile_minimum(session, "m", rho_min, now=engine.now)
    assert engine.read(store.get_profile_minimum, "m") == 0.39


def test_workers_come_go_and_are_forgotten(engine):
    def touch(name: str, slots: int = 1) -> None:
        with engine.database.transaction() as session:
            store.touch_worker(session, name, now=engine.now, slots=slots)

    def live() -> list[str]:
        return [w.name for w in engine.read(store.live_workers, now=engine.now, within_s=30)]

    touch("a")
    started = engine.now
    engine.wait(20)
    touch("b")
    assert live() == ["a", "b"]
    engine.wait(20)
    assert live() == ["b"]
    touch("a", slots=2)
    found = engine.read(store.live_workers, now=engine.now, within_s=1)
    assert [(w.name, w.slots, w.started_at) for w in found] == [("a", 2, started)]
    with engine.database.transaction() as session:
        store.forget_worker(session, "a")
    assert live() == ["b"]
    engine.wait(90_000)
    engine.sweep()
    assert engine.read(store.live_workers, now=engine.now, within_s=1e6) == ()
