"""What is asked is what training showed before the reply, token for token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.formats import Example, Message
from core.data.questions import questions
from core.data.tokens import IGNORED, tokenize, tokenize_pairs
from core.errors import DataInvalid, InvalidInput
from tests.unit.data.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer(bos="<|bos|>")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)


def conversation(*turns: tuple[str, str], line: int = 1) -> Example:
    messages = [
        message
        for asked, replied in turns
        for message in (
            Message(role="user", content=asked),
            Message(role="assistant", content=replied, is_trained=True),
        )
    ]
    return Example(line=line, messages=tuple(messages))


def asked(example: Example, **options: object) -> tuple[list[int], tuple[str, ...]]:
    settings_ = {"is_pair": False, "context": None, "max_new_tokens": 8} | options
    found = questions([example], TOKENIZER, **settings_)
    return list(found.prompts[0]), found.references[0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.booleans())
def test_a_question_is_what_precedes_the_reply_in_training(
    turns: list[tuple[str, str]], is_chat: bool
):
    if is_chat:
        example = conversation(*turns)
    else:
        example = Example(line=1, prompt=turns[0][0], completion=turns[-1][1])
    prompt, references = asked(example)
    sample = tokenize([example], TOKENIZER, context=None)[0]
    ids, trained = sample.input_ids.tolist(), sample.labels != IGNORED
    reply = len(TOKENIZER(turns[-1][1], add_special_tokens=False)["input_ids"]) + 1
    assert prompt == ids[: len(ids) - reply]
    assert trained[len(prompt) :].all()
    assert references == (turns[-1][1].strip(),)


@settings(deadline=None, max_examples=50)
@given(st.text("ab", min_size=1, max_size=20), st.integers(1, 25), st.booleans())
def test_a_long_prompt_is_cut_as_training_cuts_it(prompt: str, limit: int, is_pair: bool):
    example = Example(line=1, prompt=prompt, prompt_end=prompt[-2:], completion="x")
    found = questions(
        [example],
        TOKENIZER,
        is_pair=is_pair,
        context=None,
        max_new_tokens=5,
        max_input_tokens=limit,
    )
    encode = tokenize_pairs if is_pair else tokenize
    sample = encode([example], TOKENIZER, context=None, max_input_tokens=limit)[0]
    ids = sample.input_ids.tolist()
    assert list(found.prompts[0]) == (ids if is_pair else ids[:-2])
    assert found.n_cut == (len(TOKENIZER(prompt)["input_ids"]) > limit)


def test_prompt_and_answer_fit_the_context_together():
    example = Example(line=1, prompt="0123456789", completion="x")
    prompt, _ = asked(example, context=12, max_new_tokens=5)
    assert TOKENIZER.decode(prompt) == "<|bos|>456789"
    whole, _ = asked(example, context=12, max_new_tokens=5, is_pair=True)
    assert TOKENIZER.decode(whole) == "<|bos|>0123456789"
    with pytest.raises(InvalidInput, match=r"^green\.eval\.max_new_tokens 12 leaves no room"):
        asked(example, context=12, max_new_tokens=12)


def test_all_references_count():
    example = Example(line=1, prompt="q", completion=" a", references=("a", "b"))
    assert asked(example)[1] == ("a", "b")
    assert asked(Example(line=1, prompt="q", completion=" a "))[1] == ("a",)


def test_only_the_last_trained_reply_is_asked_for():
    example = conversation(("q1", "a1"), ("q2", "a2"))
    prompt, references = asked(example)
    assert TOKENIZER.decode(prompt).endswith(
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert references == ("a2",)
    pair, _ = asked(example, is_pair=True)
    assert TOKENIZER.decode(pair) == "<|bos|>user: q1\nassistant: a1\nuser: q2"


def test_an_example_without_prompt_is_refused_by_line():
    tokenizer = byte_tokenizer()
    with pytest.raises(DataInvalid, match="line 4: there is no prompt"):
        questions(
            [Example(line=4, prompt="", completion="x")],
            tokenizer,
            is_pair=False,
            context=None,
            max_new_tokens=4,
        )
