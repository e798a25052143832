"""`greentune profile`: figures from a config alone."""

import io
import json

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

from core.errors import (
    GreentuneError,
    InvalidInput,
    ModelUnavailable,
    ModelUnsupported,
    RhoInfeasible,
)
from core.settings import Settings
from core.spec import ADAPTER_METHODS, MethodOptions
from core.training import memory
from core.training.adapters import add_adapters
from core.training.memory import estimate
from core.training.models import load_model
from core.training.pricing import profile_shape
from worker.__main__ import cli
from worker.profile_model import print_profile, profile_model


def _profile(name, *, batch=2, tokens=32, labels=None, rho=None, method=None, precision="fp32"):
    return profile_model(
        str(name),
        batch=batch,
        tokens=tokens,
        labels=labels,
        rho=rho,
        method=method,
        precision=precision,
        settings=Settings(),
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
    assert found.full_memory == estimate(model, found.profile.trainable, (2, 32, 0, 10))
    assert found.plan_memory == estimate(
        model,
        shown["plan"]["names"],
        (2, 32, 0, 10),
        probe=(2, 32, 0, 10),
        candidates=found.profile.trainable,
    )
    memory = shown["plan"]["memory"]
    assert memory["peak_bytes"] == found.plan_memory.peak_bytes
    assert memory["moments_bytes"] < shown["full_memory"]["moments_bytes"]


def test_memory_is_float32s_whatever_the_config_says(tiny_model, tmp_path):
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert _profile(tmp_path).full_memory == _profile(tiny_model).full_memory


@pytest.mark.parametrize(
    ("method", "rho"), [("lora", None), ("green_lora", 0.6), ("last_k", 0.7), ("prefix", None)]
)
def test_a_methods_plan_is_what_its_model_would_take(method, rho, tiny_model, tmp_path):
    found = _profile(tiny_model, labels=5, rho=rho, method=method, precision="bf16")
    model = load_model("mine", folder=tiny_model, cache=tmp_path).model
    if method in ADAPTER_METHODS:
        model = add_adapters(model, method, MethodOptions(), base_name="mine", seed=0)
    plan, shape = found.to_dict()["plan"], (2, 32, 0, 10)
    assert (plan["method"], found.precision) == (method, "bf16")
    assert plan["flops_share"] <= (rho or 1)
    assert plan["names"]
    own = profile_shape(model, shape)
    assert plan["flops_share"] == own.step_flops(plan["names"]) / found.profile.full_flops
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ranks = method == "green_lora"
    assert found.plan_memory == estimate(
        model,
        plan["names"],
        shape,
        autocast_dtype=torch.bfloat16,
        probe=shape if ranks else None,
        candidates=names if ranks else (),
        lowers_frozen=True,
    )
    assert found.plan_memory.weights_bytes < found.full_memory.weights_bytes
    assert (plan["selecting_bytes"] is not None) is ranks
    if ranks:
        at_most, least = plan["selecting_bytes"].values()
        assert 0 < least < at_most == found.plan_memory.selecting_bytes
    assert found.n_parameters == _profile(tiny_model).n_parameters
    out = io.StringIO()
    print_profile(found, Console(file=out, width=120))
    assert f"Plan for {method}" in out.getvalue()
    assert "GiB in bfloat16 autocast" in out.getvalue()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "green"}, "give --rho"),
        ({"method": "lora", "rho": 0.5}, "leave --rho out"),
        ({"method": "lorra"}, "must be one of full, green"),
        ({"precision": "int8"}, "must be one of auto, fp32, bf16"),
        ({"rho": 1.5}, "above 0 and at most 1"),
    ],
)
def test_what_no_plan_can_be_of_is_refused(given, said, tiny_model):
    with pytest.raises(GreentuneError, match=said):
        _profile(tiny_model, **given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int8"], "--precision must be one of auto, fp32, bf16"),
        (["--method", "lorra"], "--method must be one of full, green"),
        (["--rho", "1.5"], "--rho must be a number above 0"),
        (["--method", "green"], "What green trains is a question of rho: give --rho."),
    ],
)
def test_the_command_speaks_of_its_options(words, said, tiny_model):
    done = CliRunner().invoke(cli, ["profile", str(tiny_model), *words])
    assert isinstance(done.exception, GreentuneError)
    assert done.exception.message.startswith(said)


def test_a_step_that_two_figures_share_is_traced_once(tiny_model, tmp_path, monkeypatch):
    """The plan's step was run again for selecting with blocks that run again."""
    traces = []

    class Counted(memory.HighWater):
        def __init__(self):
            super().__init__()
            traces.append(self)

    monkeypatch.setattr(memory, "HighWater", Counted)
    found = _profile(tiny_model, labels=5, rho=0.6)
    # two steps, full fine-tuning's and the plan's; two ways of selecting
    assert len(traces) == 4
    shape = (2, 32, 0, 10)
    assert found.saving_memory == estimate(
        load_model("mine", folder=tiny_model, cache=tmp_path).model,
        found.choice.names,
        shape,
        probe=shape,
        candidates=found.profile.trainable,
        probe_recomputes=True,
    )


def test_the_table_names_the_parts_of_the_plan(tiny_model):
    out = io.StringIO()
    print_profile(_profile(tiny_model, rho=0.9), Console(file=out, width=120))
    assert "feasible rho" in out.getvalue()
    assert "model.layers.1" in out.getvalue()
    assert "equally important" in out.getvalue()
    assert "peak of training" in out.getvalue()
    assert "peak of selecting" in out.getvalue()
    assert "blocks run again" in out.getvalue()


@pytest.mark.parametrize(("method", "rho"), [("green", 1.0), ("green_lora", 0.99)])
def test_where_rho_pays_for_everything_no_memory_of_selecting_is_told(tiny_model, method, rho):
    """Jobs measure nothing then."""
    found, out = _profile(tiny_model, rho=rho, method=method), io.StringIO()
    assert found.choice.importance is None
    assert found.to_dict()["plan"]["selecting_bytes"] is None
    assert found.plan_memory.selecting_bytes == 0
    print_profile(found, Console(file=out, width=120))
    assert "selecting" not in out.getvalue()


def test_a_large_model_is_told_in_gib_without_its_weights(tmp_path):
    transformers.OPTConfig(
        hidden_size=2560, ffn_dim=10240, num_attention_heads=32, num_hidden_layers=4
    ).save_pretrained(tmp_path)
    found, out = _profile(tmp_path, batch=4, tokens=512), io.StringIO()
    print_profile(found, Console(file=out, width=120))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["weights", f"{4 * found.n_parameters / 2**30:.2f}"] in rows
    assert ["AdamW's", "moments", f"{8 * found.n_parameters / 2**30:.2f}"] in rows
    assert not any(row[:3] == ["peak", "of", "selecting,"] for row in rows)


def test_what_depends_on_weights_is_said_and_the_rest_is_told(tmp_path):
    transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).save_pretrained(tmp_path)
    found, out = _profile(tmp_path), io.StringIO()
    print_profile(found, Console(file=out, width=120))
    assert "Memory cannot be told" in out.getvalue()


def test_a_decoder_without_a_start_is_refused_as_by_run(tmp_path):
    """Its steps were priced, and `greentune run` could take none of them."""
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1}
    transformers.T5Config(**sizes, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="has no decoder_start_token_id"):
        _profile(tmp_path)
    transformers.T5Config(**sizes, num_heads=2, decoder_start_token_id=0).save_pretrained(tmp_path)
    assert _profile(tmp_path).profile.full_flops > 0


def test_what_cannot_be_is_refused(tiny_model, monkeypatch):
    with pytest.raises(RhoInfeasible):
        _profile(tiny_model, rho=0.1)
    with pytest.raises(InvalidInput, match="at most 128 tokens"):
        _profile(tiny_model, tokens=129)
    monkeypatch.setattr("core.training.models.hub_answers", lambda: False)
    with pytest.raises(ModelUnavailable, match="nobody/nothing"):
        _profile("nobody/nothing")
