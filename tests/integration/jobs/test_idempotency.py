"""One effect for a request that is sent twice."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from core.errors import IdempotencyInProgress, InvalidInput
from core.jobs import service
from core.jobs.records import StoredReply
from core.jobs.service.idempotency import IDEMPOTENCY_TTL_S, IN_PROGRESS_S
from core.jobs.tables import Idempotency
from tests.integration.jobs.engine import Engine

REPLY = StoredReply(status_code=200, body='{"id": "ftjob-1"}')


def begin(engine: Engine, key: str = "k", body: str = "a", **words: object) -> StoredReply | None:
    where = {"tenant": "acme", "route": "POST /v1/files"} | words
    with engine.database.transaction() as session:
        return service.begin_idempotent(
            session, **where, key=key, body_sha256=body * 64, now=engine.now
        )


def finish(engine: Engine, key: str = "k", reply: StoredReply = REPLY) -> None:
    with engine.database.transaction() as session:
        service.finish_idempotent(
            session,
            tenant="acme",
            route="POST /v1/files",
            key=key,
            status_code=reply.status_code,
            body=reply.body,
        )


def test_the_first_reply_is_given_again_for_a_day(engine):
    assert begin(engine) is None
    finish(engine)
    engine.wait(IDEMPOTENCY_TTL_S - 1)
    assert begin(engine) == REPLY
    engine.wait(1)
    assert begin(engine) is None


def test_other_routes_and_tenants_have_keys_of_their_own(engine):
    assert begin(engine) is None
    assert begin(engine, tenant="other") is None
    assert begin(engine, route="POST /v1/uploads") is None
    assert begin(engine, key="K") is None


def test_another_body_under_the_same_key_is_an_error(engine):
    begin(engine)
    with pytest.raises(InvalidInput) as caught:
        begin(engine, body="b")
    assert caught.value.code == "idempotency_key_reused"


def test_a_request_under_way_shuts_out_its_double_until_it_must_be_dead(engine):
    begin(engine)
    engine.wait(IN_PROGRESS_S - 1)
    with pytest.raises(IdempotencyInProgress):
        begin(engine)
    engine.wait(1)
    assert begin(engine) is None
    with pytest.raises(IdempotencyInProgress):
        begin(engine)


def test_a_request_that_says_it_is_no_retry_takes_the_key_over(engine):
    assert begin(engine, replay=False) is None
    finish(engine)
    assert begin(engine, body="b", replay=False) is None
    with pytest.raises(IdempotencyInProgress):
        begin(engine, body="b")
    newer = StoredReply(status_code=200, body="newer")
    finish(engine, reply=newer)
    assert begin(engine, body="b") == newer


def test_a_failed_transaction_leaves_no_key(engine):
    def fails() -> None:
        with engine.database.transaction() as session:
            service.begin_idempotent(
                session,
                tenant="acme",
                route="POST /v1/files",
                key="k",
                body_sha256="a" * 64,
                now=engine.now,
            )
            raise InvalidInput("no")

    with pytest.raises(InvalidInput, match="no"):
        fails()
    assert begin(engine) is None


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00", "\ud800"])
def test_keys_that_cannot_be_kept_are_refused(engine, key):
    with pytest.raises(InvalidInput) as caught:
        begin(engine, key=key)
    assert caught.value.param == "Idempotency-Key"


def test_the_sweeper_clears_old_keys(engine):
    begin(engine, key="old")
    engine.wait(IDEMPOTENCY_TTL_S)
    begin(engine, key="new")
    engine.sweep()
    with engine.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Idempotency)) == 1
