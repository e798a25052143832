"""Which tokens of a text that is too long are kept.

A causal model's prompt loses its oldest tokens: what stands next to the answer matters most, and a
beginning-of-text token stays. An encoder's input loses what comes last, but neither the tokenizer's
special tokens around it nor the words that a template ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.formats import Example

Ids = npt.NDArray[np.int32]


def bos_id(tokenizer: Any) -> int | None:
    """The beginning-of-text token where this tokenizer puts one by default."""
    ids = tokenizer("a")["input_ids"]
    has_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return int(ids[0]) if has_bos else None


def kept_of_prompt(ids: Ids, limit: int, bos: int | None) -> npt.NDArray[np.int64]:
    """Positions of the ``limit`` (>= 1) tokens that stay of a causal prompt."""
    n_head = int(bos is not None and len(ids) > 0 and ids[0] == bos and limit > 1)
    n_cut = max(0, len(ids) - limit)
    return np.concatenate([np.arange(n_head), np.arange(n_head + n_cut, len(ids))])


def kept_of_input(n_tokens: int, limit: int, n_ending: int) -> npt.NDArray[np.int64]:
    """Positions of the ``limit`` tokens that stay of an encoder's input.

    ``n_ending``: tokens at its end that stay too (`input_endings`).
    """
    if n_tokens <= limit:
        return np.arange(n_tokens)
    n_tail = min(n_ending, limit)
    return np.concatenate([np.arange(limit - n_tail), np.arange(n_tokens - n_tail, n_tokens)])


def input_endings(examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """For each example's encoder input, how many tokens at its end are never cut: the special ones
    that the tokenizer adds there, and those of the example's ``prompt_end``.
    """
    texts = {example.prompt_end for example in examples if example.prompt_end}
    plain = tokenizer(["a", *texts], add_special_tokens=False)["input_ids"]
    n_special = _specials_after(tokenizer("a")["input_ids"], plain[0])
    n_ending = dict(zip(texts, map(len, plain[1:]), strict=True))
    return [n_special + n_ending.get(example.prompt_end, 0) for example in examples]


def _specials_after(decorated: list[int], plain: list[int]) -> int:
    """How many tokens ``decorated`` has after ``plain``."""
    for start in range(len(decorated) - len(plain) + 1):
        if decorated[start : start + len(plain)] == plain:
            return len(decorated) - len(plain) - start
    return 0
