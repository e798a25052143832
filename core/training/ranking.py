"""What tensors are ranked by, and how deep the backward pass may go for them.

GreenTrainer ranks by the expected loss drop, slope times distance (arXiv 2309.13192, section 3.2).
AdamW moves every element alike, so a tensor of n elements moves by the root of n: the drop favours
wide matrices, and for what these cost a budget reaches fewer blocks. In a run they soon move
further than first order reaches, and what counts then is more the slope along the way. Slopes alone
go too far the other way: at high shares they may train next to nothing in every block. Taken is
something between, which in measured runs ended lower than either (docs/selection.md).

Whatever they are ranked by, probes are few and sets of about the same worth reach to very different
depths, of which the deepest spend nearly all on gradients of activations and train next to nothing.
A part of what a budget leaves above the forward pass is therefore kept for gradients of weights: no
tensor is a candidate to which the way alone would spend more than the rest.

No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.spec import ImportanceName
from core.training.costs import FlopsProfile
from core.training.interval import NOTHING_SPARED, Spared, mean_flops

#: of the elements that the drop is divided by: 0 ranks by drops, 1/2 by slopes
_EXPONENT: Final = 0.45
#: of what a budget leaves above the forward pass
_KEPT_FOR_WEIGHTS: Final = 0.2
#: of sums in another order
_ROUNDING: Final = 1e-9


def worth(importance: Mapping[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    """Each tensor's expected loss drop, less of it the more elements it takes.

    Args:
        importance: expected loss drops.
        elements: how many each tensor, or group of tensors moved together, has; at least one.
    """
    return {name: drop / elements[name] ** _EXPONENT for name, drop in importance.items()}


def rank(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    elements: Mapping[str, int],
    budget_flops: float,
    spared: Spared = NOTHING_SPARED,
) -> dict[str, float]:
    """`worth` of the tensors that a mean step of at most ``budget_flops`` should choose among.

    Where none of these is both affordable and of positive importance, all of ``importance``'s
    tensors: what is feasible stays so.

    Args:
        importance: expected loss drops of tensors that the loss was computed from.
        elements: as in `worth`.
        spared: of the forward pass, by the deepest tensor trained.
    """
    room = budget_flops - profile.forward_flops
    ways = _ways(profile, importance)
    kept = {way.name for way in ways if way.is_within(room + spared.of((way.name,)))}
    candidates = {name: drop for name, drop in importance.items() if name in kept}
    is_enough = any(
        drop > 0 and mean_flops(profile, (name,), spared) <= budget_flops
        for name, drop in candidates.items()
    )
    return worth(candidates if is_enough else importance, elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """From the loss to a tensor: ``flops`` of gradients that are not its own; ``own_flops``: of the
    gradients of all weights that are no further away.
    """

    name: str
    flops: float
    own_flops: float

    def is_within(self, room_flops: float) -> bool:
        """Whether it leaves weights their part of what is above the forward pass, or all that they
        can cost if that is less.
        """
        kept = min(_KEPT_FOR_WEIGHTS * room_flops, self.own_flops)
        return self.flops + kept <= room_flops * (1 + _ROUNDING)


def _ways(profile: FlopsProfile, names: Mapping[str, float]) -> list[_Way]:
    own = dict.fromkeys(names, 0.0)
    ways = dict.fromkeys(names, 0.0)
    for name in names:
        bit = profile.members((name,))
        for members, flops in profile.terms:
            if members == bit:
                own[name] += flops
            elif members & bit:
                ways[name] += flops
    nearest_first = sorted(names, key=lambda name: ways[name])
    own_flops = itertools.accumulate(own[name] for name in nearest_first)
    return [
        _Way(name=name, flops=ways[name], own_flops=so_far)
        for name, so_far in zip(nearest_first, own_flops, strict=True)
    ]


def is_drop(kind: ImportanceName) -> bool:
    """Whether importance of this kind is an expected loss drop, in nats."""
    return kind in ("importance", "taylor")
