"""Answers do not depend on who shares the batch, stop where they end, and cost what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig

from core.errors import InvalidInput
from core.spec import MethodOptions
from core.training.adapters import add_adapters
from core.training.answers import evaluate_answers, generation_flops
from core.training.generation import Decoding, decoding_named, generate
from core.training.pricing import price_steps
from tests.fixtures.tiny_models import CAUSAL, PAIRS, tiny_model

PROMPTS = [[7, 8, 9, 5, 11], [12, 13], [20, 21, 22, 23, 24, 25, 26, 30]]
GREEDY = Decoding(max_new_tokens=6)
PAPER = decoding_named("beam", max_new_tokens=6)
MODES = pytest.mark.parametrize("decoding", [GREEDY, PAPER], ids=["greedy", "paper"])
ONE_OF_EACH = pytest.mark.parametrize("model", ["llama", "t5"], indirect=True)


class Tokens:
    """A tokenizer whose texts are its ids."""

    def __init__(self, eos: int | None = None, pad: int | None = 0) -> None:
        self.eos_token_id = eos
        self.pad_token_id = pad

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        kept = (str(token) for token in ids if token not in (self.eos_token_id, self.pad_token_id))
        return " " + " ".join(kept) + "\n"


def model_of(kind: str) -> Any:
    """Eager attention: `FlopCounterMode` does not see the fused CPU kernel."""
    model = tiny_model(kind, seed=2)
    model.set_attn_implementation("eager")
    # the base's ids of a large vocabulary would not be among these 97
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    model.generation_config.forced_eos_token_id = None
    with torch.no_grad():
        # sharper than random weights are: answers differ, and no two tokens tie
        for matrix in (weight for weight in model.parameters() if weight.dim() > 1):
            matrix.mul_(12 if kind == "bart" else 3)
    return model


@pytest.fixture(scope="module", params=[*CAUSAL, *PAIRS, "deep_t5"])
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(request.param)


@MODES
def test_a_batch_answers_as_each_prompt_alone(model: Any, decoding: Decoding):
    alone = [generate(model, Tokens(), [prompt], decoding).texts[0] for prompt in PROMPTS]
    together = generate(model, Tokens(), PROMPTS, decoding)
    assert list(together.texts) == alone
    assert len(set(alone)) > 1
    assert all(text == text.strip() for text in alone)


@pytest.mark.parametrize("model", ["llama", "gpt2", "t5", "deep_t5", "bart"], indirect=True)
@MODES
def test_answers_are_those_of_transformers_with_these_settings(model: Any, decoding: Decoding):
    model.eval()
    prompt = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=decoding.num_beams,
            repetition_penalty=decoding.repetition_penalty,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            # it makes too small a cache for a decoder deeper than its encoder
            use_cache=False,
        )
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    expected = " ".join(str(token) for token in output[0, start:].tolist() if token)
    assert generate(model, Tokens(), PROMPTS[:1], decoding).texts[0] == expected


#: of other modes, other shapes of what comes back, other ends, other words
OTHERWISE: list[dict[str, Any]] = [
    *({"return_dict_in_generate": True}, {"output_scores": True}),
    *({"num_return_sequences": 2, "do_sample": True}, {"temperature": 0.3, "do_sample": True}),
    *({"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}, {"use_mtp": True}),
    *({"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "high"}),
    *({"force_words_ids": [[5]]}, {"constraints": ["a"]}),
    {"num_beam_groups": 2, "diversity_penalty": 0.5},
    *({"stop_strings": ["a"]}, {"max_time": 1e-9}, {"max_length": 4}, {"min_length": 30}),
    *({"no_repeat_ngram_size": 1}, {"guidance_scale": 3.0}, {"length_penalty": -9.0}),
]


@pytest.mark.parametrize("settings", OTHERWISE, ids=lambda settings: next(iter(settings)))
@MODES
def test_a_models_own_settings_do_not_change_how_it_is_asked(
    settings: dict[str, Any], decoding: Decoding
):
    model = model_of("llama")
    # an end token for minimum lengths to forbid
    eos = int(generate(model, Tokens(), PROMPTS, decoding).texts[0].split()[3])
    expected = generate(model, Tokens(eos), PROMPTS, decoding)
    assert expected.n_tokens < 6 * len(PROMPTS)
    # as they are read from a folder's generation_config.json
    own = GenerationConfig.from_dict(model.generation_config.to_dict() | settings)
    model.generation_config = own
    assert generate(model, Tokens(eos), PROMPTS, decoding) == expected
    assert model.generation_config is own


@pytest.mark.parametrize("model", ["t5", "bart"], indirect=True)
@MODES
def test_what_a_vocabulary_asks_for_is_heeded(
    model: Any, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
):
    """NLLB's first token is the language that it answers in; Marian never says its padding."""
    plain = generate(model, Tokens(), PROMPTS, decoding).texts
    unsaid = int(plain[0].split()[0])
    for name, value in {"forced_bos_token_id": 11, "bad_words_ids": [[unsaid]]}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    for text in generate(model, Tokens(), PROMPTS, decoding).texts:
        assert text.split()[0] == "11"
        assert str(unsaid) not in text.split()


@MODES
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "bart"])
@pytest.mark.parametrize("method", ["prefix", "lora"])
def test_an_adapter_answers_too(kind: str, method: str, decoding: Decoding):
    """As PEFT's own `generate` has it: a prefix is before the prompt, and no part of the model."""
    alone = generate(model_of(kind), Tokens(), PROMPTS, decoding).texts
    options = MethodOptions(n_virtual_tokens=4)
    adapted = add_adapters(model_of(kind), method, options, base_name="tiny", seed=1)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, adapted.parameters()):
            parameter.normal_(0, 2)
    found = generate(adapted, Tokens(), PROMPTS, decoding).texts
    assert found != alone
    if decoding == GREEDY:
        own = adapted.eval().generate(input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=6)
        start = 1 if kind in PAIRS else len(PROMPTS[0])
        assert found[0] == " ".join(str(token) for token in own[0, start:].tolist() if token)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_penalty_does_not_count_padding(model: Any):
    said = generate(model, Tokens(), PROMPTS[1:2], PAPER).texts[0]
    padded_with_it = Tokens(pad=int(said.split()[0]))
    alone = generate(model, padded_with_it, PROMPTS[1:2], PAPER)
    assert generate(model, padded_with_it, PROMPTS, PAPER).texts[1] == alone.texts[0]


@ONE_OF_EACH
def test_the_paper_decodes_otherwise_than_greedily(model: Any):
    assert (PAPER.num_beams, PAPER.repetition_penalty) == (4, 2.5)
    greedy, paper = (generate(model, Tokens(), PROMPTS, d).texts for d in (GREEDY, PAPER))
    assert greedy != paper


@ONE_OF_EACH
def test_an_answer_ends_with_its_end_token(model: Any):
    whole = generate(model, Tokens(), PROMPTS, GREEDY)
    words = whole.texts[0].split()
    eos = int(words[2])
    ended = generate(model, Tokens(eos=eos), PROMPTS, GREEDY)
    assert ended.texts[0] == " ".join(words[: words.index(words[2])])
    for before, after in zip(whole.texts, ended.texts, strict=True):
        kept = before.split()
        assert after.split() == kept[: kept.index(words[2]) if words[2] in kept else None]
    assert ended.n_tokens < whole.n_tokens == 6 * len(PROMPTS)


@ONE_OF_EACH
def test_neither_mode_nor_chance_is_touched(model: Any):
    model.train()
    state = torch.random.get_rng_state()
    generate(model, Tokens(), PROMPTS, PAPER)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model._forward_pre_hooks


def test_flops_are_those_that_torch_counts(model: Any):
    check_flops(model)


def check_flops(model: Any) -> None:
    forward = price_steps(model).forward
    for decoding in (GREEDY, PAPER):
        with FlopCounterMode(display=False) as counter:
            generated = generate(model, Tokens(), PROMPTS, decoding)
        priced = generation_flops(model, generated, forward)
        assert priced == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("window", [2, 4, 6, 9, 64])
@pytest.mark.parametrize(
    ("config", "more"),
    [
        (transformers.MistralConfig, {}),
        # every second layer, and all but every sixth
        (transformers.Gemma2Config, {"head_dim": 8}),
        (transformers.Gemma3TextConfig, {"head_dim": 8}),
        (transformers.Qwen2Config, {"use_sliding_window": True, "max_window_layers": 2}),
    ],
    ids=["mistral", "gemma2", "gemma3", "qwen2"],
)
def test_layers_behind_a_window_look_at_no_more_than_it(
    config: Any, more: dict[str, Any], window: int
):
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "sliding_window": window,
        "attn_implementation": "eager",
    }
    model = transformers.AutoModelForCausalLM.from_config(config(**settings | more))
    check_flops(model)


def test_an_evaluation_is_answers_scores_and_cost():
    model = model_of("llama")
    answers = generate(model, Tokens(), PROMPTS, GREEDY).texts
    record = evaluate_answers(
        model,
        Tokens(),
        PROMPTS,
        [[answers[0]], ["none", answers[1]], ["no such answer"]],
        metrics=["exact_match", "f1"],
        decoding=GREEDY,
        forward=price_steps(model).forward,
        n_cut=1,
    )
    assert record.answers == answers
    assert record.scores["exact_match"] == pytest.approx(100 * 2 / 3)
    assert (record.n_examples, record.n_tokens, record.n_cut) == (3, 18, 1)
    assert record.flops > 0
    assert record.duration_s > 0


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(InvalidInput, match="empty prompt"):
        generate(model_of("llama"), Tokens(), [[1], []], GREEDY)
    with pytest.raises(InvalidInput, match="greedy, beam"):
        decoding_named("sampling", max_new_tokens=5)
