"""How good a model's own answers to held-out questions are, and what asking cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.training.generation import Decoding, Generated, generate
from core.training.hooks import EvaluationRecord
from core.training.metrics import score
from core.training.pricing import Price


def evaluate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str],
    decoding: Decoding,
    forward: Price,
    n_cut: int = 0,
) -> EvaluationRecord:
    """Answer every prompt and score the answers; the record's step and epoch are 0.

    Args:
        references: for each prompt, every answer that counts as right.
        forward: the price of a forward pass (`StepPrices.forward`).
        n_cut: of the prompts, how many were cut.

    Raises:
        InvalidInput: an unknown metric, an empty prompt, or nothing to ask.
    """
    started_s = time.perf_counter()
    generated = generate(model, tokenizer, prompts, decoding)
    return EvaluationRecord(
        step=0,
        epoch=0.0,
        scores=score(metrics, generated.texts, references),
        answers=generated.texts,
        n_cut=n_cut,
        n_tokens=generated.n_tokens,
        flops=generation_flops(model, generated, forward),
        duration_s=time.perf_counter() - started_s,
    )


def generation_flops(model: Any, generated: Generated, forward: Price) -> float:
    """FLOPs of all passes of a generation, padding and dropped beams included, as they were
    computed.

    Beams share their encoder pass, but each makes keys and values of what the encoder gave.
    """
    total = sum(
        forward.cached(one.rows, one.n_new, one.n_seen, one.n_encoded) for one in generated.passes
    )
    total += sum(forward.encoder(rows, n_tokens) for rows, n_tokens in generated.encoded)
    if generated.encoded and generated.n_beams > 1:
        per_token = float(forward.coefficients[0]) - _encoder_flops_per_token(model)
        n_tokens = sum(rows * n_tokens for rows, n_tokens in generated.encoded)
        total += (generated.n_beams - 1) * n_tokens * per_token
    return total


@torch.no_grad()
def _encoder_flops_per_token(model: Any) -> float:
    """The part of an encoder's FLOPs that grows with the tokens, not with their square."""
    counted: list[int] = []
    for n_tokens in (8, 16):
        ids = torch.zeros(1, n_tokens, dtype=torch.long, device=model.device)
        with FlopCounterMode(display=False) as counter:
            model.get_encoder()(input_ids=ids)
        counted.append(counter.get_total_flops())
    short, long = counted
    return (4 * short - long) / 16
