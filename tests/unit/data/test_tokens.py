"""Loss on the assistant's tokens and no others; nothing cut unless asked, nothing unreported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from core.data.formats import Example, Message
from core.data.tokens import IGNORED, Sample, tokenize, tokenize_pairs
from core.errors import DataInvalid, ModelUnsupported
from tests.unit.data.byte_tokenizer import CHATML, FORGETFUL, MARKED, STRICT, byte_tokenizer

TOKENIZER = byte_tokenizer()


def encoder_tokenizer() -> Any:
    """As T5's and BART's: an input stands between special tokens."""
    tokenizer = byte_tokenizer(bos="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("<|im_end|>", tokenizer.eos_token_id)],
    )
    return tokenizer


ENCODER = encoder_tokenizer()


def user(content: str) -> Message:
    return Message(role="user", content=content)


def reply(content: str, *, is_trained: bool = True) -> Message:
    return Message(role="assistant", content=content, is_trained=is_trained)


def chat(*messages: Message, line: int = 1) -> Example:
    return Example(line=line, messages=messages)


def learned(sample: Sample, tokenizer: Any = TOKENIZER) -> list[str]:
    """The texts of the unbroken runs of labels."""
    runs: list[list[int]] = []
    previous = IGNORED
    for label in sample.labels.tolist():
        if label != IGNORED:
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return [tokenizer.decode(run) for run in runs]


def text(sample: Sample, tokenizer: Any = TOKENIZER) -> str:
    return tokenizer.decode(sample.input_ids.tolist())


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_assistant_is_learned_end_token_included(template: str):
    tokenizer = byte_tokenizer(template)
    example = chat(user("hi"), reply("one"), user("more"), reply("two"))
    sample = tokenize([example], tokenizer, context=None)[0]
    assert learned(sample, tokenizer) == ["one<|im_end|>", "two<|im_end|>"]
    assert text(sample, tokenizer).endswith("assistant\ntwo<|im_end|>")
    kept = sample.labels != IGNORED
    assert (sample.labels[kept] == sample.input_ids[kept]).all()


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_weight_0_is_context_only(template: str):
    tokenizer = byte_tokenizer(template)
    example = chat(user("a"), reply("one", is_trained=False), user("b"), reply("two"))
    sample = tokenize([example], tokenizer, context=None)[0]
    assert learned(sample, tokenizer) == ["two<|im_end|>"]
    last = chat(user("a"), reply("one"), user("b"), reply("two", is_trained=False))
    sample = tokenize([last], tokenizer, context=None)[0]
    assert learned(sample, tokenizer) == ["one<|im_end|>"]
    assert text(sample, tokenizer).endswith("one<|im_end|>")  # the rest would only cost


def test_the_templates_own_system_message_is_kept_and_not_learned():
    sample = tokenize([chat(user("hi"), reply("ho"))], TOKENIZER, context=None)[0]
    assert text(sample).startswith("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nhi")


def test_a_conversation_may_open_with_the_assistant():
    example = chat(reply("Hello?"), user("hi"), reply("ho"))
    sample = tokenize([example], TOKENIZER, context=None)[0]
    assert learned(sample) == ["Hello?<|im_end|>", "ho<|im_end|>"]


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CONTENT, CONTENT, st.booleans()), min_size=1, max_size=3))
def test_any_text_is_learned_to_the_byte(turns: list[tuple[str, str, bool]]):
    turns = [*turns, ("q", "last", True)]
    messages = [m for q, a, w in turns for m in (user(q), reply(a, is_trained=w))]
    sample = tokenize([chat(*messages)], TOKENIZER, context=None)[0]
    assert learned(sample) == [a + "<|im_end|>" for _, a, is_trained in turns if is_trained]
    whole = TOKENIZER.apply_chat_template([m.to_template() for m in messages], tokenize=False)
    assert text(sample) == whole.removesuffix("\n")


def test_many_examples_of_both_formats_keep_their_order():
    examples = [
        chat(user("q"), reply(f"r{n}"), line=n)
        if n % 3
        else Example(line=n, prompt="q", completion=f"r{n}")
        for n in range(1100)
    ]
    dataset = tokenize(examples, TOKENIZER, context=None)
    assert [learned(sample) for sample in dataset] == [[f"r{n}<|im_end|>"] for n in range(1100)]
    assert dataset.lengths.tolist() == [len(sample.input_ids) for sample in dataset]


def test_completion_is_prompt_completion_end_with_the_boundary_kept():
    tokenizer = byte_tokenizer(bos="<|bos|>")
    example = Example(line=1, prompt="TL;DR:", completion=" a cat")
    sample = tokenize([example], tokenizer, context=None)[0]
    assert text(sample, tokenizer) == "<|bos|>TL;DR: a cat<|im_end|>"
    assert learned(sample, tokenizer) == [" a cat<|im_end|>"]
    # the prompt's ids are the ones that generation will start from
    n_prompt = len(tokenizer("TL;DR:")["input_ids"])
    assert sample.input_ids[:n_prompt].tolist() == tokenizer("TL;DR:")["input_ids"]


def test_loss_on_all_learns_every_token_but_the_first():
    sample = tokenize([chat(user("a"), reply("b"))], TOKENIZER, context=None, loss_on="all")[0]
    assert sample.labels[0] == IGNORED
    assert (sample.labels[1:] == sample.input_ids[1:]).all()


def test_cutting_keeps_the_prompts_end_and_the_replys_beginning_and_is_counted():
    tokenizer = byte_tokenizer(bos="<|bos|>")
    examples = [
        Example(line=1, prompt="0123456789", completion="abcdef"),
        Example(line=2, prompt="01", completion="a"),
    ]
    dataset = tokenize(examples, tokenizer, context=9, max_input_tokens=5, max_output_tokens=3)
    assert text(dataset[0], tokenizer) == "<|bos|>6789abc"
    assert learned(dataset[0], tokenizer) == ["abc"]
    assert text(dataset[1], tokenizer) == "<|bos|>01a<|im_end|>"
    assert dataset.report.n_truncated == 1


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30), st.integers(1, 30))
def test_cut_samples_are_as_long_as_allowed(max_in: int, max_out: int, n_in: int, n_out: int):
    example = Example(line=1, prompt="p" * n_in, completion="c" * n_out)
    limits = {"max_input_tokens": max_in, "max_output_tokens": max_out}
    if n_in == 0 and max_out == 1:
        with pytest.raises(DataInvalid, match="no token to learn"):
            tokenize([example], TOKENIZER, context=None, **limits)
        return
    dataset = tokenize([example], TOKENIZER, context=None, **limits)
    assert dataset.lengths[0] == min(n_in, max_in) + min(n_out + 1, max_out)
    assert dataset.report.n_truncated == (n_in > max_in or n_out + 1 > max_out)


def test_over_long_examples_are_refused_by_line():
    examples = [
        Example(line=3, prompt="p", completion="c"),
        Example(line=4, prompt="p" * 20, completion="c"),
        Example(line=9, prompt="p" * 30, completion="c"),
    ]
    with pytest.raises(DataInvalid) as failure:
        tokenize(examples, TOKENIZER, context=10)
    assert failure.value.code == "context_length_exceeded"
    assert failure.value.message.endswith(
        "with green.training.max_input_tokens and green.training.max_output_tokens."
    )
    assert str(failure.value).startswith(
        "line 4: the example has 22 tokens, but the model's context is 10 (1 more are too long)"
    )


def test_the_report_counts_what_is_there():
    examples = [Example(line=n, prompt="p" * n, completion="c" * 3) for n in range(1, 101)]
    dataset = tokenize(examples, TOKENIZER, context=None)
    report = dataset.report
    assert report.n_examples == len(dataset) == 100
    assert report.n_tokens == sum(len(sample.input_ids) for sample in dataset)
    assert report.n_label_tokens == sum(int((s.labels != IGNORED).sum()) for s in dataset) == 400
    assert (report.length_min, report.length_p50, report.length_max) == (5, 54, 104)
    assert (report.length_p90, report.length_p99) == (94, 103)
    assert sum(count for _, count in report.histogram) == 100
    assert report.histogram[0] == (8, 4)  # 5, 6, 7 and 8 tokens


def test_a_template_that_rewrites_the_past_is_refused_unless_only_the_end_is_trained():
    tokenizer = byte_tokenizer(FORGETFUL)
    example = chat(user("a"), reply("one"), user("b"), reply("two"), line=12)
    with pytest.raises(ModelUnsupported, match=r"line 12: .*messages\[1\].*weight 0"):
        tokenize([example], tokenizer, context=None)
    last_only = chat(user("a"), reply("one", is_trained=False), user("b"), reply("two"))
    sample = tokenize([last_only], tokenizer, context=None)[0]
    assert learned(sample, tokenizer) == ["<think></think>two<|im_end|>"]


def test_a_template_that_refuses_is_quoted_with_the_line():
    example = chat(Message(role="system", content="x"), user("a"), reply("b"), line=5)
    with pytest.raises(DataInvalid, match=r"line 5: .*System role not supported"):
        tokenize([example], byte_tokenizer(STRICT), context=None)


def test_no_template_no_chat():
    tokenizer = byte_tokenizer(None)
    with pytest.raises(ModelUnsupported, match="no chat template"):
        tokenize([chat(user("a"), reply("b"))], tokenizer, context=None)
    assert (
        len(tokenize([Example(line=1, prompt="a", completion="b")], tokenizer, context=None)) == 1
    )


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataInvalid, match="no example"):
        tokenize([], TOKENIZER, context=None)


def test_pairs_keep_prompt_and_reply_apart():
    examples = [
        Example(line=1, prompt="in", completion="out"),
        chat(user("q"), reply("a"), line=2),
        chat(user("q"), reply("a"), user("r"), reply("b"), line=3),
    ]
    dataset = tokenize_pairs(examples, TOKENIZER, context=None)
    pairs = [(text(s), TOKENIZER.decode(s.labels.tolist())) for s in dataset]
    assert pairs == [
        ("in", "out<|im_end|>"),
        ("q", "a<|im_end|>"),
        ("q", "a<|im_end|>"),
        ("user: q\nassistant: a\nuser: r", "b<|im_end|>"),
    ]
    assert dataset.lengths.tolist() == [len(s.input_ids) + len(s.labels) for s in dataset]
    assert dataset.report.n_label_tokens == sum(len(s.labels) for s in dataset)


def test_pairs_are_cut_and_refused_alike():
    example = Example(line=7, prompt="0123456789", completion="abcdef")
    cut = tokenize_pairs([example], TOKENIZER, context=5, max_input_tokens=5, max_output_tokens=2)
    assert (text(cut[0]), cut[0].labels.tolist()) == ("01234", TOKENIZER("ab")["input_ids"])
    assert cut.report.n_truncated == 1
    with pytest.raises(DataInvalid, match="line 7: the prompt has 10 tokens"):
        tokenize_pairs([example], TOKENIZER, context=8)


def test_a_cut_encoder_input_keeps_special_tokens_and_the_prompts_ending():
    tokenizer = ENCODER
    examples = [
        Example(line=1, prompt="0123456789", completion="r"),
        Example(line=2, prompt="0123456789 TL;DR:", prompt_end=" TL;DR:", completion="r"),
        Example(line=3, prompt="01 TL;DR:", prompt_end=" TL;DR:", completion="r"),
    ]
    dataset = tokenize_pairs(examples, tokenizer, context=None, max_input_tokens=12)
    assert [text(sample, tokenizer) for sample in dataset] == [
        "<s>0123456789<|im_end|>",
        "<s>012 TL;DR:<|im_end|>",
        "<s>01 TL;DR:<|im_end|>",
    ]
    assert dataset.report.n_truncated == 1


@given(st.integers(1, 40), st.text("ab", min_size=1, max_size=30), st.integers(0, 8))
def test_a_cut_input_is_its_own_beginning_and_its_ending(limit: int, prompt: str, n_end: int):
    tokenizer = ENCODER
    ending = prompt[len(prompt) - min(n_end, len(prompt)) :]
    example = Example(line=1, prompt=prompt, prompt_end=ending, completion="r")
    sample = tokenize_pairs([example], tokenizer, context=None, max_input_tokens=limit)[0]
    whole = tokenizer(prompt)["input_ids"]
    ids = sample.input_ids.tolist()
    assert len(ids) == min(limit, len(whole))
    n_tail = min(len(ending) + 1, limit) if len(whole) > limit else 0
    assert ids == whole[: len(ids) - n_tail] + (whole[-n_tail:] if n_tail else [])


def test_samples_are_compact():
    dataset = tokenize([Example(line=1, prompt="a", completion="b")], TOKENIZER, context=None)
    assert dataset[0].input_ids.dtype == dataset[0].labels.dtype == np.int32
    with pytest.raises(IndexError):
        dataset[1]
