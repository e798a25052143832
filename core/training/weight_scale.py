"""How large a model's weights are: what an absolute learning rate is large or small beside.

AdamW moves an element by about the learning rate whatever its gradient is, so the same rate that
changes weights of .2 by a thousandth a step changes weights of .04 by five. Scaling a matrix down
and the norm before it up leaves the model what it is, and every rate must follow. Adafactor
(Shazeer and Stern, arXiv 1804.04235, section 8) and LAMB (arXiv 1904.00962) take steps relative to
each tensor's size for that reason; here one factor for the model scales the rule (`schedule`).

Which one: of a step of size h, a matrix of N elements of the root mean square r gains about
h N / r, since its slopes are steep where its elements are small, and loses about (h / r)^2 N to
curvature. Over all matrices the best h goes with ``sum(N / r) / sum(N / r^2)``: r where all are
alike, and near the small ones where they are not.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, Final

import torch

from core.training.blocks import is_in_block

#: of SmolLM2-135M, whose rates the rule has
REFERENCE_SIZE: Final = 0.183
#: of the median root mean square; below it nothing was learnt yet, and nothing is to be spared
_UNLEARNT: Final = 0.1


@torch.no_grad()
def weight_scale(model: Any) -> float:
    """Size of the elements of the matrices in the model's blocks over SmolLM2-135M's: 0.13 for
    Gemma-3-270M. Above 0; 1 where there is nothing to measure.

    Two digits: a resumed job gets the same number on any machine, however sums are split there.
    """
    found = [
        (parameter.numel(), float(torch.linalg.vector_norm(parameter)) / parameter.numel() ** 0.5)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and is_in_block(name)
    ]
    median = statistics.median(rms for _, rms in found) if found else 0.0
    if not (math.isfinite(median) and median > 0):
        return 1.0
    learnt = [(n, rms) for n, rms in found if rms >= _UNLEARNT * median]
    gain, harm = (math.fsum(n / rms**power for n, rms in learnt) for power in (1, 2))
    return float(f"{gain / harm / REFERENCE_SIZE:.2g}")
