"""One gradient for an embedding that is the output layer, too, on a CPU.

Both uses of the matrix give it a gradient, and autograd adds the two. That of the lookup is a row
for each token, but torch makes a matrix of zeros to hold them and adds all of it to the other: for
Gemma-3-270M's 262,144 rows .7 GB filled, read and added in every step. Here the rows go into the
output layer's gradient where it lies. The sums are the same but for their order.

On a card that is left as it is: rows would be added there in an order that no two runs share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode


class TiedLookup(TorchFunctionMode):
    """Inside, lookups in ``weight_VH`` and the products with it that follow share one gradient.

    Args:
        weight_VH: requires a gradient.
    """

    def __init__(self, weight_VH: torch.Tensor) -> None:
        super().__init__()
        self._weight_VH = weight_VH
        #: the same numbers; its gradient goes through the lookups so far
        self._through_lookups_VH = weight_VH

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if len(args) > 1 and args[1] is self._weight_VH and torch.is_grad_enabled():
            if func is F.embedding:
                return self._looked_up(args[0], **given)
            if func is F.linear:
                args = (args[0], self._through_lookups_VH, *args[2:])
        return func(*args, **given)

    def _looked_up(
        self, ids: torch.Tensor, *, padding_idx: int | None = None, **options: Any
    ) -> torch.Tensor:
        if any(options[name] for name in ("max_norm", "scale_grad_by_freq", "sparse")):
            return F.embedding(ids, self._weight_VH, padding_idx, **options)
        apply: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _Lookup.apply
        rows_H, self._through_lookups_VH = apply(ids, self._through_lookups_VH, padding_idx)
        return rows_H


class _Lookup(torch.autograd.Function):
    """Rows of a matrix, and the matrix itself for whoever uses it next."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight_VH: torch.Tensor, padding_idx: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(ids)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.padding_idx = weight_VH.shape, padding_idx
        return F.embedding(ids, weight_VH, padding_idx), weight_VH.detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, rows_H: torch.Tensor | None, weight_VH: torch.Tensor | None
    ) -> tuple[None, torch.Tensor | None, None]:
        """``weight_VH`` is no one else's: a product with the matrix has just made it."""
        if rows_H is None:
            return None, weight_VH, None
        (ids,) = ctx.saved_tensors
        ids_N, rows_NH = ids.reshape(-1), rows_H.reshape(-1, ctx.shape[1])
        if weight_VH is None:
            weight_VH = rows_NH.new_zeros(ctx.shape)
        if ctx.padding_idx is not None:
            rows_NH = rows_NH.masked_fill((ids_N == ctx.padding_idx).unsqueeze(1), 0)
        return None, weight_VH.index_add_(0, ids_N, rows_NH), None
