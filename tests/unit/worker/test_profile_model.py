"""`greentune profile`: figures from a config alone."""

import io

import pytest
from rich.console import Console

from core.errors import InvalidInput, ModelUnavailable, RhoInfeasible
from core.settings import Settings
from core.training.models import load_model
from core.training.pricing import profile_shape
from worker.profile_model import print_profile, profile_model


def _profile(name, *, batch=2, tokens=32, labels=None, rho=None):
    return profile_model(
        str(name), batch=batch, tokens=tokens, labels=labels, rho=rho, settings=Settings()
    )


def test_the_config_alone_gives_what_the_weights_would(tiny_model, tmp_path):
    found = _profile(tiny_model / "config.json", labels=5, rho=0.6)
    model = load_model("mine", folder=tiny_model, cache=tmp_path).model
    assert found.profile == profile_shape(model, (2, 32, 0, 10))
    assert found.n_parameters == sum(p.numel() for p in model.parameters())
    shown = found.to_dict()
    assert shown["plan"]["flops_share"] <= 0.6
    assert shown["plan"]["importance"] == "uniform per parameter"
    assert 1 / 3 < shown["rho_min"] < 0.6


def test_the_table_names_the_parts_of_the_plan(tiny_model):
    out = io.StringIO()
    print_profile(_profile(tiny_model, rho=0.9), Console(file=out, width=120))
    assert "feasible rho" in out.getvalue()
    assert "model.layers.1" in out.getvalue()
    assert "equally important" in out.getvalue()


def test_what_cannot_be_is_refused(tiny_model, monkeypatch):
    with pytest.raises(RhoInfeasible):
        _profile(tiny_model, rho=0.1)
    with pytest.raises(InvalidInput, match="at most 128 tokens"):
        _profile(tiny_model, tokens=129)
    monkeypatch.setattr("core.training.models.hub_answers", lambda: False)
    with pytest.raises(ModelUnavailable, match="nobody/nothing"):
        _profile("nobody/nothing")
