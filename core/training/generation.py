"""Answers of a model to tokenised prompts, in batches, and what they cost.

Decoder-only prompts are padded on the left, so that every row goes on where its prompt ends;
encoder inputs on the right, as in training (absolute positions must not shift). Padding changes no
answer: it is masked, and the repetition penalty does not count it as said.

The repetition penalty is that of Keskar et al. 2019 as `transformers` applies it: it counts the
tokens of a decoder-only prompt too, end tokens inside it included.

A model folder's generation_config.json says how its authors like it to speak: by chance, in several
answers, at least so long, up to a stop string. None of it is followed but the ids of special and
unsayable tokens: every model is asked alike, and training teaches the end token, no stop string.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.cache_utils import CacheLayerMixin

from core.errors import InvalidInput
from core.training.adapters import is_adapted, n_virtual_tokens
from core.training.cpu_attention import CpuAttention
from core.training.numerics import autocast_dtype_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen; never by chance. The default is greedy.

    ``batch_size``: rows that the model sees at once, beams included.
    """

    max_new_tokens: int = 64
    num_beams: int = 1
    repetition_penalty: float = 1.0
    batch_size: int = 8


#: the GreenTrainer paper's (GREENTRAINER section 2): beam search with a repetition penalty
PAPER_BEAMS, PAPER_PENALTY = 4, 2.5


def decoding_named(name: str, *, max_new_tokens: int) -> Decoding:
    """``greedy``, or ``beam`` with the paper's settings.

    Raises:
        InvalidInput: any other name.
    """
    if name == "greedy":
        return Decoding(max_new_tokens=max_new_tokens)
    if name == "beam":
        return Decoding(
            max_new_tokens=max_new_tokens,
            num_beams=PAPER_BEAMS,
            repetition_penalty=PAPER_PENALTY,
            batch_size=8 * PAPER_BEAMS,
        )
    raise InvalidInput(f"There is no decoding {name!r}; there are: greedy, beam.")


#: of the model's own settings, those that belong to its vocabulary: NLLB is told its language by
#: the first token, Marian kept from saying its padding
_OWN_TOKENS: Final = (
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass: ``rows`` of ``n_new`` tokens each, which look at ``n_seen`` (themselves
    included, padding too; the mean over the layers) and at ``n_encoded`` of the encoder.
    """

    rows: int
    n_new: int
    n_seen: float
    n_encoded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """``texts`` in the prompts' order; ``n_tokens``: theirs, end tokens included. ``encoded``: rows
    and tokens of each pass through an encoder; ``passes``: of those through the decoder.
    """

    texts: tuple[str, ...]
    n_tokens: int
    n_beams: int
    encoded: tuple[tuple[int, int], ...]
    passes: tuple[Pass, ...]


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> Generated:
    """An answer to each prompt: without special tokens, stripped, up to the first end token (the
    model's or the tokenizer's) or ``max_new_tokens``. The model's mode and settings are restored.

    Raises:
        InvalidInput: an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise InvalidInput("A model cannot answer an empty prompt.")
    was_training = model.training
    base = model.get_base_model() if is_adapted(model) else model
    # adapters sit inside of the base model, a prefix is what PEFT's wrapper puts before the prompt
    answerer = model if n_virtual_tokens(model) else base
    settings = _settings(base, tokenizer, decoding)
    model.eval()
    # prompts of like length share a batch
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    size = max(1, decoding.batch_size // decoding.num_beams)
    answers: dict[int, list[int]] = {}
    encoded: list[tuple[int, int]] = []
    passes: list[Pass] = []
    dtype = autocast_dtype_on(model.device)
    attention = CpuAttention(dtype) if model.device.type == "cpu" else nullcontext()
    try:
        with _counted(base, passes), _set(base, settings), attention:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                found = _answer(answerer, settings, [prompts[at] for at in part], decoding)
                answers.update(zip(part, found, strict=True))
                if model.config.is_encoder_decoder:
                    encoded.append((len(part), len(prompts[part[-1]])))
    finally:
        model.train(was_training)
    texts = [
        tokenizer.decode(answers[at], skip_special_tokens=True).strip()
        for at in range(len(prompts))
    ]
    return Generated(
        texts=tuple(texts),
        n_tokens=sum(map(len, answers.values())),
        n_beams=decoding.num_beams,
        encoded=tuple(encoded),
        passes=tuple(passes),
    )


def _settings(model: Any, tokenizer: Any, decoding: Decoding) -> GenerationConfig:
    """``decoding``, and what the model's vocabulary asks for."""
    end_ids = _end_ids(model, tokenizer)
    own = {name: getattr(model.generation_config, name) for name in _OWN_TOKENS}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        do_sample=False,
        pad_token_id=next((i for i in (tokenizer.pad_token_id, *end_ids) if isinstance(i, int)), 0),
        eos_token_id=end_ids or None,
        **own,
    )


@contextmanager
def _set(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Inside, ``settings`` are the model's own: `generate` fills in from those what it is not told,
    and what has no default (stop strings, other modes) cannot be told to stay unset.
    """
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _answer(
    model: Any, settings: GenerationConfig, prompts: list[Sequence[int]], decoding: Decoding
) -> list[list[int]]:
    """New tokens of each prompt, the end token included where there is one."""
    is_pair = bool(model.config.is_encoder_decoder)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if is_pair else slice(width - len(prompt), width)
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    processors = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        n_padding = torch.zeros(len(prompts), dtype=torch.long) if is_pair else width - mask.sum(1)
        processors.append(
            RepetitionPenaltyLogitsProcessor(
                decoding.repetition_penalty,
                prompt_ignore_length=n_padding.repeat_interleave(decoding.num_beams),
            )
        )
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings,
        # its own repetition penalty would count padding
        logits_processor=processors,
        **_own_cache(model),
    )
    # a decoder starts from a token of its own
    fresh = output[:, 1 if is_pair else width :].tolist()
    return [_upto_end(row, settings.eos_token_id or []) for row in fresh]


def _own_cache(model: Any) -> dict[str, Any]:
    """What `generate` must be given where the cache that it would make is too small: T5's
    configuration tells it the encoder's depth, and a deeper decoder runs out of it. Ours grows.
    """
    depth = getattr(model.config, "num_decoder_layers", None) or 0
    if depth <= model.config.get_text_config(decoder=True).num_hidden_layers:
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _upto_end(ids: list[int], end_ids: list[int]) -> list[int]:
    ends = (at for at, token in enumerate(ids) if token in end_ids)
    return ids[: next(ends, len(ids)) + 1]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token is what training teaches; the model may know others besides."""
    own = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(token for token in found if isinstance(token, int)))


@contextmanager
def _counted(model: Any, passes: list[Pass]) -> Iterator[None]:
    """Write down every forward pass of ``model``, as its arguments tell it."""

    def count(_module: torch.nn.Module, _args: Any, given: dict[str, Any]) -> None:
        ids = given.get("decoder_input_ids", given.get("input_ids"))
        cache, encoder = given.get("past_key_values"), given.get("encoder_outputs")
        assert ids is not None, "generate calls a model by token ids"
        rows, n_new = ids.shape
        passes.append(
            Pass(
                rows=rows,
                n_new=n_new,
                n_seen=_n_seen(cache, n_new),
                n_encoded=encoder[0].shape[1] if encoder is not None else 0,
            )
        )

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _n_seen(cache: Any, n_new: int) -> float:
    """Mean number of tokens that the layers' attention runs over: behind a sliding window a layer
    keeps no more than that, which its part of the cache knows.
    """
    if cache is None:
        return n_new
    layers = getattr(cache, "self_attention_cache", cache).layers
    found = [
        layer.get_mask_sizes(n_new)[0] for layer in layers if isinstance(layer, CacheLayerMixin)
    ]
    # layers that are made when they are first used have kept nothing yet
    return sum(found) / len(found) if found else n_new
