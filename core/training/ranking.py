"""What tensors are ranked by: between the drop that an update would bring and its slope.

GreenTrainer ranks by the expected loss drop, slope times distance (arXiv 2309.13192, section 3.2).
AdamW moves every element alike, so a tensor of n elements moves by the root of n: the drop favours
wide matrices, and for what these cost a budget reaches fewer blocks. In a run they soon move
further than first order reaches, and what counts then is more the slope along the way. Slopes alone
go too far the other way: at high shares they may train next to nothing in every block. Taken is
something between, which in measured runs ended lower than either (docs/selection.md).

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from core.spec import ImportanceName

#: of the elements that the drop is divided by: 0 ranks by drops, 1/2 by slopes
_EXPONENT: Final = 0.45


def worth(importance: Mapping[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    """Each tensor's expected loss drop, less of it the more elements it takes.

    Args:
        importance: expected loss drops.
        elements: how many each tensor, or group of tensors moved together, has; at least one.
    """
    return {name: drop / elements[name] ** _EXPONENT for name, drop in importance.items()}


def is_drop(kind: ImportanceName) -> bool:
    """Whether importance of this kind is an expected loss drop, in nats."""
    return kind in ("importance", "taylor")
