"""Answers of a model to tokenised prompts, in batches, and what they cost.

Decoder-only prompts are padded on the left, so that every row goes on where its prompt ends;
encoder inputs on the right, as in training (absolute positions must not shift). Padding changes no
answer: it is masked, and the repetition penalty does not count it as said.

The repetition penalty is that of Keskar et al. 2019 as `transformers` applies it: it counts the
tokens of a decoder-only prompt too, end tokens inside it included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from core.errors import InvalidInput
from core.training.cpu_attention import CpuAttention


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass: ``rows`` of ``n_new`` tokens each, which look at ``n_seen`` (themselves
    included, padding too) and at ``n_encoded`` of the encoder.
    """

    rows: int
    n_new: int
    n_seen: int
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
    model's or the tokenizer's) or ``max_new_tokens``. The model's mode is restored.

    Raises:
        InvalidInput: an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise InvalidInput("A model cannot answer an empty prompt.")
    was_training = model.training
    model.eval()
    # prompts of like length share a batch
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    size = max(1, decoding.batch_size // decoding.num_beams)
    answers: dict[int, list[int]] = {}
    encoded: list[tuple[int, int]] = []
    passes: list[Pass] = []
    attention = CpuAttention(None) if model.device.type == "cpu" else nullcontext()
    try:
        with _counted(model, passes), attention:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                found = _answer(model, tokenizer, [prompts[at] for at in part], decoding)
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


def _answer(
    model: Any, tokenizer: Any, prompts: list[Sequence[int]], decoding: Decoding
) -> list[list[int]]:
    """New tokens of each prompt, the end token included where there is one."""
    is_pair = bool(model.config.is_encoder_decoder)
    end_ids = _end_ids(model, tokenizer)
    pad_id = next((i for i in (tokenizer.pad_token_id, *end_ids) if isinstance(i, int)), 0)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
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
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        do_sample=False,
        # ours counts no padding; what the model's own settings say must not come on top
        repetition_penalty=1.0,
        logits_processor=processors,
        pad_token_id=pad_id,
        eos_token_id=end_ids or None,
        **_own_cache(model),
    )
    # a decoder starts from a token of its own
    fresh = output[:, 1 if is_pair else width :].tolist()
    return [_upto_end(row, end_ids) for row in fresh]


def _own_cache(model: Any) -> dict[str, Any]:
    """What `generate` must be given where the cache that it would make is too small: T5's
    configuration tells it the encoder's depth, and a deeper decoder runs out of it. Ours grows.
    """
    depth = getattr(model.config, "num_decoder_layers", None) or 0
    if depth <= model.config.get_text_config(decoder=True).num_hidden_layers:
        return {}
    return {
        "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "use_cache": True,
    }


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
                n_seen=n_new + (cache.get_seq_length() if cache is not None else 0),
                n_encoded=encoder[0].shape[1] if encoder is not None else 0,
            )
        )

    # adapters wrap the model whose `generate` runs
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
