"""A projection with a low-rank adapter, without passes over activations that nobody needs.

PEFT's own layer casts its input to the factors' type and back, multiplies what the second factor
gives by the scale, adds it to the projection's output, and has autograd add what both send back:
under bfloat16 autocast on a CPU that takes longer than the projection. Here the input is cast once,
the scale is applied between the factors, where activations are ``r`` wide, and sums are made where
the products are. What is computed is the same (Hu et al., arXiv 2106.09685, equation 3), product by
product, and so are the layer's tensors, names and files.

Shapes: R rows (samples times tokens), I and O the projection's width in and out.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.pytorch_utils import Conv1D

from core.training.numerics import as_autocast


class LowRankLinear(lora.Linear):  # type: ignore[misc]
    """``base_layer`` plus ``scaling * B A``: A (r, I), B (O, r).

    Attributes:
        is_fused: its products are one node of the graph. Not where blocks run again: a node's
            tensors are kept once all of it has run, so that more of it would run again.
    """

    is_fused = True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = self.active_adapters
        is_plain = not (args or kwargs or self.disable_adapters or self.merged)
        if not is_plain or len(active) != 1 or active[0] in self.lora_variant:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        (name,) = active
        x = as_autocast(x)
        first, second = self.lora_A[name].weight, self.lora_B[name].weight
        dropout, scale = self.lora_dropout[name], self.scaling[name]
        base: Any = self.get_base_layer()
        is_frozen = not any(each.requires_grad for each in base.parameters())
        has_dropout = self.training and not isinstance(dropout, nn.Identity)
        if self.is_fused and is_frozen and not has_dropout:
            weight_OI = base.weight.t() if self.is_target_conv_1d_layer else base.weight
            fused: Tensor = _Fused.apply(x, weight_OI, base.bias, first, second, scale)  # type: ignore[no-untyped-call]
            return fused
        # PEFT keeps factors in float32 beside a projection of less
        low = F.linear(dropout(x), first.to(x.dtype)) * scale
        out: Tensor = self.base_layer(x) + F.linear(low, second.to(x.dtype))
        return out


class _Fused(torch.autograd.Function):
    """``x W' + bias + scale x A' B'``, W and bias without gradient; all in x's type."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes them by place
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        first_rI: Tensor,
        second_Or: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.types, ctx.scale = (first_rI.dtype, second_Or.dtype), scale
        weight_OI, first_rI, second_Or = (t.to(x.dtype) for t in (weight_OI, first_rI, second_Or))
        x_RI = x.flatten(0, -2)
        out_RO = F.linear(x_RI, weight_OI, None if bias_O is None else bias_O.to(x.dtype))
        low_Rr = F.linear(x_RI, first_rI) * scale
        torch.addmm(out_RO, low_Rr, second_Or.t(), out=out_RO)
        ctx.save_for_backward(x_RI, weight_OI, first_rI, second_Or, low_Rr)
        # no view to autograd, which forbids models to change a node's view in place (Falcon, LED)
        shape = [*x.shape[:-1], out_RO.shape[-1]]
        out: Tensor = torch.ops.aten._unsafe_view(out_RO, shape)  # noqa: SLF001
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_OI, first_rI, second_Or, low_Rr = ctx.saved_tensors
        of_x, _, _, of_first, of_second, _ = ctx.needs_input_grad
        upstream_RO = upstream[0].flatten(0, -2)
        x_grad = first_grad = second_grad = None
        if of_x or of_first:
            low_grad_Rr = (upstream_RO @ second_Or) * ctx.scale
        if of_x:
            grad_RI = upstream_RO @ weight_OI
            torch.addmm(grad_RI, low_grad_Rr, first_rI, out=grad_RI)
            x_grad = grad_RI.view(*upstream[0].shape[:-1], grad_RI.shape[-1])
        if of_first:
            first_grad = (low_grad_Rr.t() @ x_RI).to(ctx.types[0])
        if of_second:
            second_grad = (upstream_RO.t() @ low_Rr).to(ctx.types[1])
        return x_grad, None, None, first_grad, second_grad, None


def fuse(model: nn.Module, *, is_fused: bool) -> None:
    """Set that of all such layers in ``model``."""
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            module.is_fused = is_fused


def replace_layers(config: lora.LoraConfig) -> None:
    """Have PEFT put these layers around linear projections when it adapts a model by ``config``."""

    def around_conv1d(target: nn.Module, name: str, **kwargs: Any) -> LowRankLinear:
        return LowRankLinear(target, name, is_target_conv_1d_layer=True, **kwargs)

    config._register_custom_module(  # noqa: SLF001  PEFT's documented way, under this name
        {nn.Linear: LowRankLinear, Conv1D: around_conv1d}
    )
