"""The blocks of a model, nearest the loss first, from the names and costs of its tensors.

A block is an entry of an outermost numbered list of modules (``nn.ModuleList``), whatever it is
called: its number is the first one in its tensors' names. How far a block lies from the loss is
read off the profile: the FLOPs of backward that its deepest tensor needs and that others share.
"""

from __future__ import annotations

import re
from collections import Counter

from core.errors import ModelUnsupported
from core.training.costs import FlopsProfile

_NUMBERED = re.compile(r"(?P<list>.*?)\.(?P<place>\d+)\.")


def is_in_block(name: str) -> bool:
    """Whether a tensor of this name lies in a numbered list: no embedding, no head."""
    return _NUMBERED.match(name) is not None


def blocks_from_the_loss(profile: FlopsProfile) -> list[tuple[str, ...]]:
    """Tensors of each block; a list of one entry (a head, say) holds no block.

    Raises:
        ModelUnsupported: the model has no list of blocks.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in profile.trainable:
        if match := _NUMBERED.match(name):
            found.setdefault((match["list"], match["place"]), []).append(name)
    sizes = Counter(of_list for of_list, _ in found)
    blocks = [tuple(names) for (of_list, _), names in found.items() if sizes[of_list] > 1]
    if not blocks:
        raise ModelUnsupported(
            "The model has no list of blocks to count from; train it by another method.",
            param="green.method",
        )
    depths = _depths(profile)
    return sorted(blocks, key=lambda names: max(depths[name] for name in names))


def _depths(profile: FlopsProfile) -> dict[str, float]:
    """For each tensor the FLOPs of the products that it shares with others."""
    depths = dict.fromkeys(profile.names, 0.0)
    for members, flops in profile.terms:
        if members.bit_count() > 1:
            for place, name in enumerate(profile.names):
                if members >> place & 1:
                    depths[name] += flops
    return depths
