"""Learning rates: the peak by method and share of FLOPs, and its course over the run.

The peaks come from equal-time comparisons on SmolLM2-135M (batch 4, AdamW, bf16 autocast): full
fine-tuning did best at 1e-4 among 2e-5 to 2e-4; partial training needs more, the less it trains:
2e-4 at rho .7, 3e-4 at .5, 5e-4 at .4. Between them the logarithm of the rate is linear in rho;
outside the measured range the nearest end holds. Other methods have one rate each, from the
same model: 3e-4 for the last blocks (at rho .5, where 2e-4 and 4e-4 were tried), 2e-3 for LoRA
(2.5e-4 to 4e-3, in runs of 64 to 250 steps), 1e-2 for prefixes (the only one tried; it learns
slowly). LoRA on selected projections has a rule of its own: 1e-3 at rho .7 and 2e-3 at .5 (5e-4 to
2e-3); LoRA on every projection takes it too. Where samples are seen several times each pass wants
its part of the rate: the peak is divided by the number of passes (docs/learning.md, "Samples seen
again"). Prefixes are the exception: they are still far from learnt after two passes and keep their
rate. Another model's rates are these times the size of its weights beside SmolLM2's
(`weight_scale`); prefixes change no weight and keep theirs.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from core.training_options import Schedule

#: shares, rising, and the logarithms of their peak rates
_RULE: Final = ((0.4, 0.5, 0.7, 1.0), np.log([5e-4, 3e-4, 2e-4, 1e-4]))
_LOW_RANK_RULE: Final = ((0.5, 0.7), np.log([2e-3, 1e-3]))
_OWN_PEAKS: Final = {"last_k": 3e-4, "lora": 2e-3, "prefix": 1e-2}
#: methods whose rate is one, whatever the model and however often it sees a sample
_FIXED: Final = frozenset({"prefix"})


def peak_learning_rate(
    rho: float,
    *,
    method: str = "green",
    passes: float = 1.0,
    weight_scale: float = 1.0,
    learning_rate: float | None = None,
    multiplier: float | None = None,
) -> float:
    """Peak rate of ``method`` at the share ``rho`` of full fine-tuning's FLOPs (full: 1).

    Args:
        passes: over the data in the whole job; below 1 where it does not see all of it.
        weight_scale: of the model, as `core.training.weight_scale.weight_scale`.
        learning_rate: that was asked for; wins over the rule.
        multiplier: scales either.
    """
    rates = peak_learning_rates(
        np.array([rho]),
        method=method,
        passes=passes,
        weight_scale=weight_scale,
        learning_rate=learning_rate,
        multiplier=multiplier,
    )
    return float(rates[0])


def peak_learning_rates(
    shares: npt.NDArray[np.float64],
    *,
    method: str = "green",
    passes: float = 1.0,
    weight_scale: float = 1.0,
    learning_rate: float | None = None,
    multiplier: float | None = None,
) -> npt.NDArray[np.float64]:
    """`peak_learning_rate` of many shares at once."""
    factor = 1.0 if multiplier is None else multiplier
    if learning_rate is not None:
        return np.full_like(shares, learning_rate * factor)
    one = _OWN_PEAKS.get(method)
    rule = _LOW_RANK_RULE if method == "green_lora" else _RULE
    base = np.full_like(shares, one) if one is not None else np.exp(np.interp(shares, *rule))
    if method in _FIXED:
        return base * factor
    return base * factor * weight_scale / max(passes, 1.0)


def schedule_factor(kind: Schedule, step: int, total_steps: int, warmup_ratio: float) -> float:
    """Share of the peak rate for step ``step`` (from 0): linear warm-up, then the course ``kind``.

    In (0, 1] for every step: the first step of a warm-up and the last of a decay still learn.
    """
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (total_steps - step) / max(1, total_steps - warmup)
    if kind == "linear":
        return left
    if kind == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return 1.0
