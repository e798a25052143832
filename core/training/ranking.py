"""What tensors are ranked by: between the drop that an update would bring and its slope.

GreenTrainer ranks by the expected loss drop, slope times distance (arXiv 2309.13192, section 3.2).
AdamW moves every element alike, so a tensor of n elements moves by the root of n: the drop favours
wide matrices, near the loss, because that is where most of them fit the budget. In a run they soon
move further than first order reaches, and what counts then is the slope along the way. Slopes alone
go too far the other way: at high shares they train next to nothing in every block. Taken is the
geometric mean of the two, which in measured runs ends lower than either (docs/selection.md).

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.spec import ImportanceName


def worth(importance: Mapping[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    """Geometric mean of each tensor's expected loss drop and that drop for the distance (the root
    of its elements) that AdamW moves it; of the drop's sign.

    Args:
        importance: expected loss drops.
        elements: how many each tensor, or group of tensors moved together, has; at least one.
    """
    return {name: drop / elements[name] ** 0.25 for name, drop in importance.items()}


def is_drop(kind: ImportanceName) -> bool:
    """Whether importance of this kind is an expected loss drop, in nats."""
    return kind in ("importance", "taylor")
