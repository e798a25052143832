"""How large a model's weights are: what an absolute learning rate is large or small beside.

AdamW moves an element by about the learning rate whatever its gradient is, so the same rate that
changes weights of .2 by a thousandth a step changes weights of .04 by five. Scaling a matrix down
and the norm before it up leaves the model what it is, and every rate must follow. Adafactor
(Shazeer and Stern, arXiv 1804.04235, section 8) and LAMB (arXiv 1904.00962) take steps relative to
each tensor's size for that reason; here one factor for the model scales the rule (`schedule`).
"""

from __future__ import annotations

import math
import statistics
from typing import Any, Final

import torch

from core.training.blocks import is_in_block

#: of SmolLM2-135M, whose rates the rule has
REFERENCE_RMS: Final = 0.19


@torch.no_grad()
def weight_scale(model: Any) -> float:
    """Root mean square of the elements of a matrix in the model's blocks, the median of all such
    matrices, over SmolLM2-135M's: 0.21 for Gemma-3-270M. Above 0; 1 where there is nothing to
    measure.

    Two digits: a resumed job gets the same number on any machine, however sums are split there.
    """
    found = [
        float(torch.linalg.vector_norm(parameter)) / parameter.numel() ** 0.5
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and is_in_block(name)
    ]
    scale = statistics.median(found) / REFERENCE_RMS if found else 1.0
    return float(f"{scale:.2g}") if math.isfinite(scale) and scale > 0 else 1.0
