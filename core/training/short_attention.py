"""Attention of short samples on a CPU under bfloat16 autocast, in float32.

torch's fused CPU kernel runs its backward pass in bfloat16 several times slower than in float32
where samples are short (`benchmarks/short_attention.py`, docs/training-step.md). Its forward pass
is a little quicker in bfloat16; passes without a gradient take float32 all the same, so that
validation and stored prefix rows are what training computes. What comes out is bfloat16 as before,
of a float32 sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

#: tokens looked at up to which float32 was quicker; beyond, both take the same
SHORT: Final = 256


class ShortAttention(TorchFunctionMode):
    """Inside, fused attention to ``SHORT`` tokens at most is computed in float32, and given back in
    the autocast's type.

    Args:
        dtype: of the autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attended(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        if key.shape[-2] > SHORT:
            return attend(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        with torch.autocast(query.device.type, enabled=False):
            out = attend(query.float(), key.float(), value.float(), attn_mask, *args, **kwargs)
        return out.to(self._dtype)
