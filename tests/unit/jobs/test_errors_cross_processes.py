"""Errors of the engine are raised in one process and judged in another."""

from __future__ import annotations

import pickle

import pytest

from core import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.GreentuneError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling_whole(kind):
    extra = {"rho_min": 0.41} if kind is errors.RhoInfeasible else {"code": "own_code"}
    error = kind("what, where, what to do", param="green.rho", **extra)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert copy.args == error.args == ("what, where, what to do",)
    assert (copy.code, copy.param) == (error.code, "green.rho")
