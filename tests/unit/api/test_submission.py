"""Defaults, precedence and refusals between a request and a spec."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.schemas import CreateJob
from api.submission import check_rho, spec_of
from core.errors import GreentuneError, InvalidInput, MissingParameter, RhoInfeasible
from core.spec import RHO_FLOOR, SEED_MAX, JobSpec
from tests.fixtures.specs import stored_and_read


def spec(zone: str | None = None, **fields: Any) -> JobSpec:
    request = CreateJob.model_validate({"model": "m", "training_file": "file-1", **fields})
    return spec_of(request, default_zone=zone)


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_defaults() -> None:
    made = spec()
    assert (made.green.method, made.green.rho, made.green.zone) == ("green", 0.7, None)
    assert 0 <= made.seed <= SEED_MAX
    assert made.training.n_epochs is None
    assert {spec().seed for _ in range(5)} != {made.seed}


@pytest.mark.parametrize(
    ("green", "default_zone", "rho", "zone"),
    [
        (None, None, 0.7, None),
        (None, "FR", "auto", "FR"),
        ({}, "FR", "auto", "FR"),
        ({"zone": "SE"}, "FR", "auto", "SE"),
        ({"zone": "SE"}, None, "auto", "SE"),
        ({"rho": None, "zone": None}, None, 0.7, None),
        ({"rho": 0.5}, "FR", 0.5, "FR"),
        ({"rho": "auto"}, "FR", "auto", "FR"),
        ({"rho": 1}, None, 1, None),
        ({"method": "full"}, "FR", 1.0, "FR"),
        ({"method": "full", "rho": 1}, None, 1.0, None),
        ({"method": "lora", "options": {"r": 4}}, "FR", 1.0, "FR"),
        ({"method": "green_lora"}, "FR", "auto", "FR"),
        ({"method": "last_k", "rho": 0.6}, None, 0.6, None),
        ({"method": "last_k", "options": {"k": 2}}, None, 1.0, None),
    ],
)
def test_rho_and_zone(green: Any, default_zone: str | None, rho: Any, zone: str | None) -> None:
    made = spec(default_zone, green=green)
    assert (made.green.rho, made.green.zone) == (rho, zone)


def test_auto_without_a_zone_is_refused() -> None:
    with pytest.raises(MissingParameter) as caught:
        spec(green={"rho": "auto"})
    assert caught.value.param == "green.zone"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"method": {"type": "dpo", "dpo": {}}}, "unsupported_method", "method.type"),
        ({"method": {"type": "reinforcement"}}, "unsupported_method", "method.type"),
        ({"green": {"method": "lore"}}, "unsupported_method", "green.method"),
        ({"green": {"method": "full", "rho": 0.5}}, "invalid_value", "green.rho"),
        ({"green": {"method": "lora", "rho": 0.5}}, "invalid_value", "green.rho"),
        ({"green": {"options": {"r": 0}}}, "invalid_value", "green.options.r"),
        ({"green": {"importance": "best"}}, "invalid_value", "green.importance"),
        (
            {"green": {"method": "prefix", "options": {"merge": True}}},
            "invalid_value",
            "green.options.merge",
        ),
        ({"green": {"rho": 0}}, "invalid_value", "green.rho"),
        ({"green": {"rho": 1.01}}, "invalid_value", "green.rho"),
        ({"green": {"currency": "euros"}}, "invalid_value", "green.currency"),
        ({"green": {"currency": "joules", "method": "lora"}}, "invalid_value", "green.currency"),
        (
            {"green": {"currency": "seconds", "carbon_budget_g": 5}},
            "invalid_value",
            "green.currency",
        ),
        ({"green": {"training": {"loss_on": "user"}}}, "invalid_value", "green.training.loss_on"),
        ({"green": {"training": {"max_steps": 0}}}, "invalid_value", "green.training.max_steps"),
        (
            {"green": {"training": {"weight_decay": 1e300}}},
            "invalid_value",
            "green.training.weight_decay",
        ),
        ({"green": {"max_hold_s": 1e300}}, "invalid_value", "green.max_hold_s"),
        ({"integrations": [{"type": "wandb"}]}, "unsupported_integration", "integrations"),
        ({"suffix": "a b"}, "invalid_value", "suffix"),
        ({"suffix": "x" * 65}, "invalid_value", "suffix"),
        ({"seed": -1}, "invalid_value", "seed"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e9}},
            "invalid_hyperparameter",
            "hyperparameters.learning_rate_multiplier",
        ),
        (
            {"method": supervised(learning_rate_multiplier=1e9)},
            "invalid_hyperparameter",
            "method.supervised.hyperparameters.learning_rate_multiplier",
        ),
        (
            {"hyperparameters": {"n_epochs": 2}, "method": supervised(n_epochs=3)},
            "invalid_hyperparameter",
            "hyperparameters",
        ),
        (
            {
                "hyperparameters": {"learning_rate_multiplier": 2.0},
                "green": {"training": {"learning_rate": 1e-4}},
            },
            "invalid_value",
            "green.training.learning_rate",
        ),
    ],
)
def test_refusals(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("green", "param", "needed"),
    [
        ({"on_budget": "fail"}, "green.on_budget", "green.carbon_budget_g"),
        ({"on_budget": "pause", "schedule": "green"}, "green.on_budget", "green.energy_budget_wh"),
        ({"max_hold_s": 60}, "green.max_hold_s", "green.schedule"),
        ({"max_hold_s": 60, "schedule": "now"}, "green.max_hold_s", "green.schedule"),
        ({"max_hold_s": 60, "carbon_budget_g": 9}, "green.max_hold_s", "green.schedule"),
    ],
)
def test_a_wish_about_what_was_not_asked_for_is_refused(
    green: dict[str, Any], param: str, needed: str
) -> None:
    """They were taken and had no effect: nobody was told that there is no budget, or no wait."""
    with pytest.raises(InvalidInput) as refused:
        spec("FR", green=green)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)
    assert needed in refused.value.message
    assert "leave it out" in refused.value.message


def test_a_wish_about_what_was_asked_for_is_taken() -> None:
    spent = spec("FR", green={"on_budget": "fail", "energy_budget_wh": 5, "max_hold_s": None})
    assert (spent.green.on_budget, spent.green.energy_budget_wh) == ("fail", 5)
    held = spec("FR", green={"max_hold_s": 60, "schedule": "green", "on_budget": None})
    assert (held.green.max_hold_s, held.green.on_budget) == (60, "pause")


def test_method_hyperparameters_come_first() -> None:
    made = spec(method=supervised(n_epochs=3, batch_size="auto"))
    assert (made.training.n_epochs, made.training.batch_size) == (3, None)
    same = spec(method=supervised(n_epochs=3), hyperparameters={"n_epochs": 3})
    assert same.training.n_epochs == 3
    assert spec(hyperparameters={"n_epochs": 4}).training.n_epochs == 4
    assert (
        spec(method={"type": "supervised"}, hyperparameters={"batch_size": 2}).training.batch_size
        == 2
    )


def test_own_training_options_arrive() -> None:
    own = {
        "learning_rate": 1e-4,
        "max_input_tokens": 10,
        "max_output_tokens": 20,
        "loss_on": "all",
        "gradient_accumulation": 2,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
        "max_steps": 7,
        "selection_interval": 0.5,
        "checkpoint_every_s": 60.0,
        "prefix_reuse": "on",
        "precision": "fp32",
        "gradient_checkpointing": True,
        "early_stopping_patience": 2,
    }
    made = spec(green={"training": own}, validation_file="file-v").training
    assert {name: getattr(made, name) for name in own} == own


@pytest.mark.parametrize(
    ("rho", "profiled", "rho_min"),
    [(0.05, None, RHO_FLOOR), (0.33, None, RHO_FLOOR), (0.4, 0.42, 0.42), (0.2, 0.1, RHO_FLOOR)],
)
def test_infeasible_rho_names_the_minimum(
    rho: float, profiled: float | None, rho_min: float
) -> None:
    training = {"prefix_reuse": "off"}
    with pytest.raises(RhoInfeasible) as caught:
        check_rho(
            spec(green={"rho": rho, "training": training}),
            profiled_minimum=profiled,
            n_examples=None,
        )
    assert caught.value.rho_min == rho_min
    offered = float(caught.value.message.partition(" is ")[2].partition(",")[0])
    check_rho(
        spec(green={"rho": offered, "training": training}),
        profiled_minimum=profiled,
        n_examples=None,
    )
    assert caught.value.param == "green.rho"


@pytest.mark.parametrize(
    ("training", "epochs", "passes"),
    [
        ({}, 3, 3),
        ({"selection_interval": 2}, 3, 2),
        ({"selection_interval": 1}, 3, 1),
        ({}, 1, 1),
    ],
)
def test_passes_that_share_a_forward_pass_lower_the_minimum(
    training: dict[str, Any], epochs: int, passes: int
) -> None:
    def asked(rho: float) -> JobSpec:
        return spec(green={"rho": rho, "training": training}, hyperparameters={"n_epochs": epochs})

    with pytest.raises(RhoInfeasible) as caught:
        check_rho(asked(0.05), profiled_minimum=0.42, n_examples=None)
    assert caught.value.rho_min == pytest.approx(0.42 / passes)
    check_rho(asked(0.42 / passes), profiled_minimum=0.42, n_examples=None)


@pytest.mark.parametrize(
    ("green", "param"),
    [
        ({"method": "lora"}, "green.rho"),
        ({"method": "last_k"}, "green.rho"),
        ({"importance": "fisher"}, "green.importance"),
    ],
)
def test_efficient_needs_a_method_that_weighs_loss_drops(green: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec(green={"rho": "efficient", **green})
    assert caught.value.param == param
    assert spec(green={"rho": "efficient"}).green.fixed_rho == 1


def test_feasible_rho_passes() -> None:
    check_rho(spec(green={"rho": 0.34}), profiled_minimum=None, n_examples=None)
    check_rho(spec(green={"rho": 0.42}), profiled_minimum=0.42, n_examples=None)
    check_rho(spec("FR"), profiled_minimum=0.42, n_examples=None)
    check_rho(spec(green={"method": "full"}), profiled_minimum=0.42, n_examples=None)
    # what a step costs in seconds is measured before training, not known here
    check_rho(
        spec(green={"rho": 0.05, "currency": "seconds"}), profiled_minimum=0.42, n_examples=None
    )


@given(
    st.dictionaries(
        st.sampled_from(["rho", "zone", "method", "training"]),
        st.none() | st.floats() | st.text("aFR", max_size=3) | st.just("auto") | st.just("full"),
    ),
    st.none() | st.just("FR"),
)
def test_nothing_but_our_errors_comes_out(green: dict[str, Any], zone: str | None) -> None:
    try:
        made = spec(zone, green=green)
    except (GreentuneError, ValidationError):
        return
    assert made == stored_and_read(made)


def test_a_methods_options_reach_the_spec() -> None:
    asked = {"method": "green_lora", "options": {"r": 4, "merge": True}, "importance": "fisher"}
    green = spec(green=asked).green
    assert (green.options.r, green.options.merge, green.options.alpha) == (4, True, 32.0)
    assert green.importance == "fisher"


def test_questions_reach_the_spec_and_need_a_validation_file() -> None:
    asked = {"eval": {"metrics": ["rougeL", "rouge1"], "max_examples": 5, "decoding": None}}
    made = spec(green=asked, validation_file="file-2")
    assert made.eval is not None
    assert (made.eval.metrics, made.eval.max_examples) == (("rougeL", "rouge1"), 5)
    assert spec().eval is None
    with pytest.raises(InvalidInput) as refused:
        spec(green=asked)
    assert refused.value.param == "green.eval"
    with pytest.raises(InvalidInput) as unknown:
        spec(green={"eval": {"metrics": ["bleu"]}}, validation_file="file-2")
    assert unknown.value.param == "green.eval.metrics"
