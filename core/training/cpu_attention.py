"""Fused attention on a CPU, by the route and in the type that its kernel is quickest in.

torch's kernel multiplies small blocks. Where float32 products of the process go through oneDNN
(`numerics`), which is quicker for projections, each of these blocks does too, and attention takes
three to four times as long: it goes by torch's own route, forward and backward.

Under bfloat16 autocast its backward pass takes several times as long in bfloat16 as in float32
where samples are short, so these are computed in float32. The forward pass is a little quicker in
bfloat16; passes without a gradient take float32 all the same, so that validation and stored prefix
rows are what training computes. What comes out is bfloat16 as before, of a float32 sum.

Both are measured in `benchmarks/cpu_attention.py` and docs/training-step.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.training.numerics import Float32Route

#: tokens looked at up to which float32 was quicker; beyond, both take the same
SHORT: Final = 256
#: transformers' name for torch's fused attention
_FUSED: Final = "sdpa"


class CpuAttention(TorchFunctionMode):
    """Inside, fused attention goes by torch's own route for float32, and under autocast attention
    to ``SHORT`` tokens at most is computed in float32 and given back in the autocast's type.

    Args:
        dtype: of the autocast; None: there is none.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
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
        if self._dtype is None or key.shape[-2] > SHORT:
            return _by_own_route(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        with torch.autocast(query.device.type, enabled=False):
            out = _by_own_route(
                query.float(), key.float(), value.float(), attn_mask, *args, **kwargs
            )
        return out.to(self._dtype)


class OpaqueAttention(AbstractContextManager[None]):
    """`CpuAttention` for compiled blocks: code made inside breaks at transformers' fused attention
    alone, which runs as it would have. A mode that sees every call would be traced through all.

    Args:
        dtype: as `CpuAttention`'s.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._attend = _opaque(dtype)

    def __enter__(self) -> None:
        ALL_ATTENTION_FUNCTIONS[_FUSED] = self._attend

    def __exit__(self, *_: object) -> None:
        del ALL_ATTENTION_FUNCTIONS[_FUSED]


@functools.cache
def _opaque(dtype: torch.dtype | None) -> Callable[..., Any]:
    """One for each type, because compiled code asks whether it is still the same."""
    attend = ALL_ATTENTION_FUNCTIONS[_FUSED]

    def attended(*args: Any, **kwargs: Any) -> Any:
        with CpuAttention(dtype):
            return attend(*args, **kwargs)

    opaque: Callable[..., Any] = torch.compiler.disable(attended)  # type: ignore[no-untyped-call]
    return opaque


def _by_own_route(*args: Any, **kwargs: Any) -> torch.Tensor:
    attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
    route = Float32Route()
    with route:
        out = attend(*args, **kwargs)
    if route.is_changed and out.grad_fn is not None:
        out.grad_fn.register_prehook(lambda _grads: route.enter())
        out.grad_fn.register_hook(lambda _inputs, _grads: route.leave())
    return out
