"""Uploads and API keys."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import select

from core.errors import (
    AuthenticationFailed,
    FileInUse,
    InvalidInput,
    NotFound,
    PermissionRefused,
)
from core.jobs import ids, keys, service, store
from core.jobs.tables import ApiKey, File
from tests.integration.jobs.engine import Engine


def delete(engine: Engine, file_id: str):
    with engine.database.transaction() as session:
        return service.delete_file(session, tenant="acme", file_id=file_id, now=engine.now)


def test_a_file_comes_back_with_its_report(engine):
    report = {"n_examples": 3, "problems": [{"line": 17, "message": "naïve 🌱"}]}
    name = '../../x%0D%0A"<b>.jsonl'
    file_id = engine.upload(
        filename=name, status="error", status_details="line 17: ...", validation=report
    )
    file = engine.read(store.get_file, "acme", file_id, now=engine.now)
    assert (file.filename, file.status, file.status_details) == (name, "error", "line 17: ...")
    assert file.validation == report
    assert file.created_at == engine.now


@pytest.mark.parametrize("name", ["a\x00b", "\ud83d.jsonl"])
def test_a_name_that_no_database_stores_is_refused(engine, name):
    with pytest.raises(InvalidInput) as caught:
        engine.upload(filename=name)
    assert caught.value.param == "file"


def test_a_file_is_held_by_its_jobs_until_they_end(engine):
    job = engine.submit()
    file_id = job.spec.training_file
    with pytest.raises(FileInUse, match=job.id):
        delete(engine, file_id)
    engine.ask(service.cancel, job.id)
    gone = delete(engine, file_id)
    assert gone.object_key == f"files/{file_id}"
    for again in (delete, lambda e, f: e.read(store.get_file, "acme", f, now=e.now)):
        with pytest.raises(NotFound):
            again(engine, file_id)
    with engine.database.read() as session:
        # for whoever looks for objects that were left behind
        assert session.scalars(select(File.deleted_at)).one() == engine.now


def test_a_file_past_its_date_is_gone(engine):
    file_id = engine.upload(expires_at=engine.now + timedelta(seconds=10))
    engine.wait(9)
    assert engine.read(store.get_file, "acme", file_id, now=engine.now)
    engine.wait(1)
    with pytest.raises(NotFound):
        engine.read(store.get_file, "acme", file_id, now=engine.now)
    assert engine.read(store.list_files, "acme", now=engine.now).items == ()


def make_key(engine: Engine, **words: object) -> str:
    with engine.database.transaction() as session:
        return keys.create(session, **({"tenant": "acme", "name": "ci"} | words), now=engine.now)


def test_a_key_opens_its_tenants_door_and_only_its_hash_is_kept(engine):
    plaintext = make_key(engine, scopes=("files", "jobs"))
    assert plaintext.startswith("gt-")
    caller = engine.read(keys.authenticate, plaintext, now=engine.now)
    assert (caller.tenant, caller.name) == ("acme", "ci")
    assert caller.scopes == {"files", "jobs"}
    keys.require(caller, "files")
    with pytest.raises(PermissionRefused, match="models"):
        keys.require(caller, "models")
    admin = engine.read(keys.authenticate, make_key(engine, scopes=("admin",)), now=engine.now)
    keys.require(admin, "models")
    with engine.database.read() as session:
        row = session.get(ApiKey, caller.key_id)
        assert row.sha256 == hashlib.sha256(plaintext.encode()).hexdigest()
        stored = " ".join(str(value) for value in vars(row).values())
    assert plaintext[-43:] not in stored


def test_keys_carry_256_bits_each(engine):
    made = {make_key(engine) for _ in range(20)}
    assert len({key[-43:] for key in made}) == 20


def test_wrong_keys_are_refused_alike(engine):
    good = make_key(engine)
    other_tail = "A" if good[-10] != "A" else "B"
    for bad in (
        "",
        "gt-",
        good[:-1],
        good + "x",
        good.upper(),
        good[:-10] + other_tail + good[-9:],
        "gt-" + "0" * 24 + good[-43:],
        "gt-\x00" + good,
        "\ud800" + good,
        "x" * 100_000,
    ):
        with pytest.raises(AuthenticationFailed) as caught:
            engine.read(keys.authenticate, bad, now=engine.now)
        assert caught.value.code == "invalid_api_key"
        assert good not in str(caught.value)


def test_keys_end_by_date_or_by_hand(engine):
    short = make_key(engine, name="short", expires_at=engine.now + timedelta(seconds=10))
    engine.wait(1)
    other = make_key(engine, name="other")
    listed = engine.read(keys.list_keys, tenant="acme")
    assert [key.name for key in listed] == ["other", "short"]
    engine.wait(9)
    engine.read(keys.authenticate, other, now=engine.now)
    with pytest.raises(AuthenticationFailed):
        engine.read(keys.authenticate, short, now=engine.now)
    for tenant, key_id in (("x", listed[0].id), ("acme", ids.new_id(ids.KEY)), ("acme", "\x00")):
        with pytest.raises(NotFound), engine.database.transaction() as session:
            keys.revoke(session, tenant=tenant, key_id=key_id, now=engine.now)
    for _ in range(2):
        with engine.database.transaction() as session:
            revoked = keys.revoke(session, tenant="acme", key_id=listed[0].id, now=engine.now)
    assert revoked.revoked_at is not None
    with pytest.raises(AuthenticationFailed):
        engine.read(keys.authenticate, other, now=engine.now)


@pytest.mark.parametrize(
    ("param", "words"),
    [
        ("scopes", {"scopes": ["files", "everything"]}),
        ("scopes", {"scopes": []}),
        ("name", {"name": ""}),
        ("name", {"name": "\x00"}),
        ("tenant", {"tenant": "x" * 256}),
    ],
)
def test_senseless_keys_are_not_made(engine, param, words):
    with pytest.raises(InvalidInput) as caught:
        make_key(engine, **words)
    assert caught.value.param == param
