from __future__ import annotations

import pytest

from core.jobs import ids


@pytest.mark.parametrize("prefix", [ids.JOB, ids.EVENT, ids.CHECKPOINT, ids.FILE, ids.KEY])
def test_new_ids_have_the_shape_that_is_asked_for_and_differ(prefix):
    made = {ids.new_id(prefix) for _ in range(1000)}
    assert len(made) == 1000
    assert all(ids.is_id(prefix, one) for one in made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftjob-",
        "ftjob-" + "a" * 23,
        "ftjob-" + "a" * 25,
        "ftjob-" + "A" * 24,
        "ftjob-" + "g" * 24,
        "file-" + "a" * 24,
        "ftjob-" + "a" * 24 + "\n",
        "ftjob-" + "a" * 23 + "\x00",
        "ftjob-" + "\N{ARABIC-INDIC DIGIT ONE}" * 24,
    ],
)
def test_other_texts_are_no_job_ids(text):
    assert not ids.is_id(ids.JOB, text)


def test_a_model_is_named_after_its_base_its_owner_and_its_job():
    job_id = ids.new_id(ids.JOB)
    name = ids.fine_tuned_model(
        base="org/Smol LM/", tenant="acme & co:1", suffix=None, job_id=job_id
    )
    kind, base, tenant, suffix, tail = name.split(":")
    assert (kind, base, tenant, suffix) == ("ft", "Smol-LM", "acme---co-1", "")
    assert len(tail) == 8
    assert tail.isalnum()
    assert name == ids.fine_tuned_model(
        base="org/Smol LM/", tenant="acme & co:1", suffix=None, job_id=job_id
    )
    assert ids.checkpoint_model(name, 30) == name + ":ckpt-step-30"


def test_models_of_many_jobs_do_not_meet():
    names = {
        ids.fine_tuned_model(base="b", tenant="t", suffix="s", job_id=ids.new_id(ids.JOB))
        for _ in range(5000)
    }
    assert len(names) == 5000
