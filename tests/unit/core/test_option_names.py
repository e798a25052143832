"""Mistakes that are told of a request's fields, told of the options that set them."""

from __future__ import annotations

import pytest

from core.errors import GreentuneError, InvalidInput, NotFound
from core.option_names import by_option_names, in_words_of_options


def test_what_is_no_error_is_told_so_too() -> None:
    assert by_option_names("Cut at green.training.max_input_tokens, of 3 tokens.") == (
        "Cut at --max-input-tokens, of 3 tokens."
    )


def told(message: str, param: str | None = None) -> str:
    with pytest.raises(InvalidInput) as refused, in_words_of_options():
        raise InvalidInput(message, param=param)
    assert refused.value.param == param
    assert str(refused.value) == refused.value.message
    return refused.value.message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("green.options.r must be 1..1024; got 0.", "--lora-r must be 1..1024; got 0."),
        ("Leave green.rho out; give validation_file.", "Leave --rho out; give --validation."),
        ("hyperparameters.n_epochs must be 1..50.", "--epochs must be 1..50."),
        ("method.supervised.hyperparameters.batch_size: no.", "--batch-size: no."),
        ("green.eval asks; green.eval.metrics.1: no.", "--eval-metrics asks; --eval-metrics: no."),
    ],
)
def test_dotted_fields_are_told_wherever_they_stand(message: str, expected: str) -> None:
    assert told(message) == expected


def test_a_field_that_is_a_word_too_is_told_where_the_message_begins() -> None:
    assert told("seed must be 0..9; this seed is -1.", "seed") == (
        "--seed must be 0..9; this seed is -1."
    )
    for message in ("seeds must be few.", "model must be one."):
        assert told(message, "seed") == message
    assert told("seed must be 0..9.") == "seed must be 0..9."


@pytest.mark.parametrize(
    "message",
    [
        "green.training.loss_on must be assistant or all.",
        "Leave out hyperparameters.learning_rate_multiplier.",
        "/tmp/green.rho: line 1 is no JSON.",
        "The method is green. Green it is.",
    ],
)
def test_what_no_option_sets_keeps_its_name(message: str) -> None:
    assert told(message) == message


@pytest.mark.parametrize("kind", [GreentuneError, NotFound])
def test_whatever_we_raise_is_told_so(kind: type[GreentuneError]) -> None:
    with pytest.raises(kind, match=r"^--k is 9, but"), in_words_of_options():
        raise kind("green.options.k is 9, but the model has 4 blocks.")
