"""The matrix products of one forward pass and who needs each in the backward pass.

How: the model is copied with its weights on the meta device (shapes without data), one forward
pass is run there, and two independent accounts of it are joined:

- ``MetaTrace`` sees every kernel call and notes the FLOPs of each product under the sequence
  number of the autograd node that torch made for the call;
- the autograd graph, walked from the loss, says from which parameters each input of each product
  was computed. Torch will compute the gradient of an input exactly when one of those is trained.

No name of a module, class or parameter is looked at, so tied weights, parallel branches, adapters
and encoder-decoder models need no rule of their own.

The joined account is then checked against torch: one backward pass with everything trained runs on
the meta device, and every autograd node must spend what was predicted for it. An operator whose
gradient we do not know is therefore refused by name, not mispriced.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from core.errors import InvalidInput, ModelUnsupported
from core.training.costs import FlopsProfile, add_term
from core.training.meta_trace import MetaTrace

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]
# One input of one product: FLOPs of its gradient, bit set of the parameters behind it.
_Edges = tuple[tuple[int, int], ...]

_aten = torch.ops.aten
# For each product: which of its differentiable arguments (autograd's edges, in order) get their
# gradient by another product, of the forward's size. The others (a bias) get it by a sum.
_PRODUCT_EDGES: dict[Any, tuple[int, ...]] = {
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.convolution: (0, 1),
}


def trace(model: nn.Module, batch: Mapping[str, Any], loss: Loss) -> FlopsProfile:
    """Profile of one step of ``model`` on ``batch``; see ``core.training.flops.profile``."""
    shadow = meta_copy(model)
    mode = MetaTrace()
    with mode, torch.enable_grad():
        value = _loss_value(shadow, batch, loss)
        edges, connected = _walk(value, shadow, mode)
        _check_backward(value, edges, mode)
    terms: dict[int, float] = {}
    for node_edges in edges.values():
        for flops, members in node_edges:
            add_term(terms, members, flops)
    return FlopsProfile(
        names=tuple(name for name, _ in shadow.named_parameters()),
        forward_flops=mode.forward_flops,
        terms=tuple(terms.items()),
        connected=connected,
    )


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device: everything differentiable, evaluation mode, attention
    as plain products where the model can. No weight is read; ``model`` is left as it is.

    Raises ModelUnsupported for quantised weights and for models that cannot be copied.
    """
    replaced: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        _refuse_quantised(name, parameter)
        replaced[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    for buffer in model.buffers():
        replaced[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        shadow: Any = copy.deepcopy(model, replaced)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be copied for profiling: {error}", param="model"
        ) from error
    if hasattr(shadow, "set_attn_implementation"):
        # a model without an eager form keeps its own; torch's fused one is plain products on meta
        with contextlib.suppress(ValueError):
            shadow.set_attn_implementation("eager")
    return cast("nn.Module", shadow.eval())


def _refuse_quantised(name: str, parameter: nn.Parameter) -> None:
    if parameter.dtype.is_floating_point and type(parameter) in (nn.Parameter, Tensor):
        return
    kind = type(parameter).__name__
    raise ModelUnsupported(
        f"parameter {name} holds quantised or packed weights ({kind}, {parameter.dtype}), which "
        "have no gradient; load the model in float32 or bfloat16.",
        param="model",
    )


def _loss_value(shadow: nn.Module, batch: Mapping[str, Any], loss: Loss) -> Tensor:
    batch = tree_map(
        lambda v: v.detach().cpu() if isinstance(v, Tensor) and not v.is_meta else v, dict(batch)
    )
    try:
        value = loss(shadow, batch)
    except (RuntimeError, NotImplementedError) as error:
        raise ModelUnsupported(
            f"{type(shadow).__name__} cannot be traced without its weights: {error}", param="model"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InvalidInput(
            "the loss to profile must be one number; give labels in the batch, or a loss that "
            f"returns a scalar tensor (got {type(value).__name__}).",
            param="batch",
        )
    if value.grad_fn is None:
        raise InvalidInput(
            "the loss to profile does not depend on any parameter of the model that was passed "
            "to it; compute it from that model and with gradients enabled.",
            param="loss",
        )
    return value


def _walk(value: Tensor, shadow: nn.Module, mode: MetaTrace) -> tuple[dict[Any, _Edges], int]:
    """Edges of every product behind ``value``, and the parameters from which it was computed."""
    bits = {parameter: 1 << i for i, parameter in enumerate(shadow.parameters())}
    members: dict[Any, int] = {None: 0}
    edges: dict[Any, _Edges] = {}
    stack: list[tuple[Any, bool]] = [(value.grad_fn, False)]
    while stack:
        node, is_ready = stack.pop()
        if node in members:
            continue
        inputs = [source for source, _ in node.next_functions]
        if not is_ready:
            stack.append((node, True))
            stack.extend((source, False) for source in inputs if source not in members)
            continue
        is_leaf = node.name() == "torch::autograd::AccumulateGrad"
        found = bits.get(node.variable, 0) if is_leaf else 0
        for source in inputs:
            found |= members[source]
        members[node] = found
        edges[node] = _product_edges(node, [members[source] for source in inputs], mode)
    return edges, members[value.grad_fn]


def _product_edges(node: Any, input_members: list[int], mode: MetaTrace) -> _Edges:
    product = mode.products.get(node._sequence_nr())  # noqa: SLF001
    if product is None:
        return ()
    kernel, flops = product
    positions = _PRODUCT_EDGES.get(kernel)
    if positions is None:
        raise ModelUnsupported(
            f"the model runs {kernel}, whose gradient's FLOPs are not known; use its eager "
            "attention or torch's plain matrix products.",
            param="model",
        )
    return tuple((flops, input_members[i]) for i in positions if input_members[i])


def _check_backward(value: Tensor, edges: Mapping[Any, _Edges], mode: MetaTrace) -> None:
    """Runs torch's own backward pass and compares every node with what was predicted for it."""
    value.backward()  # type: ignore[no-untyped-call]
    for node in edges.keys() | mode.backward_flops.keys():
        predicted = sum(flops for flops, _ in edges.get(node, ()))
        measured = mode.backward_flops.get(node, 0)
        if predicted != measured:
            raise ModelUnsupported(
                f"the gradient of the operator {node.name()} costs {measured} FLOPs where "
                f"{predicted} are accounted for; its gradient is not known to the profile.",
                param="model",
            )
