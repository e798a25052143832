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

import bisect
import contextlib
import copy
import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from core.errors import InvalidInput, ModelUnsupported
from core.training.costs import FlopsProfile, add_term
from core.training.meta_trace import MetaTrace
from core.training.recompute import blocks_of

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
    _aten._grouped_mm: (0, 1),  # noqa: SLF001
}


def trace(
    model: nn.Module,
    batch: Mapping[str, Any],
    loss: Loss,
    *,
    recomputes: bool = False,
    is_checked: bool = True,
) -> FlopsProfile:
    """Profile of one step of ``model`` on ``batch``; see ``core.training.flops.profile``."""
    shadow = meta_copy(model)
    mode = MetaTrace()
    with mode, torch.enable_grad():
        value = _loss_value(shadow, batch, loss)
        members = _walk(value, shadow)
        edges = {node: _product_edges(node, members, mode) for node in members}
        if is_checked:
            _check_backward(value, edges, mode)
    again = _again_in_training(shadow, batch, loss) if recomputes else ()
    terms: dict[int, float] = {}
    for flops, needed_by in [*itertools.chain.from_iterable(edges.values()), *again]:
        add_term(terms, needed_by, flops)
    return FlopsProfile(
        names=tuple(name for name, _ in shadow.named_parameters()),
        forward_flops=mode.forward_flops,
        terms=tuple(terms.items()),
        connected=members[value.grad_fn],
    )


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device: everything differentiable, float32, evaluation mode,
    attention as plain products where the model can. No weight is read; ``model`` is left as it is.

    Raises ModelUnsupported for quantised weights and for models that cannot be copied.
    """
    shadow: Any = shaped_copy(model, _on_meta)
    if hasattr(shadow, "set_attn_implementation"):
        # a model without an eager form keeps its own; torch's fused one is plain products on meta
        with contextlib.suppress(ValueError):
            shadow.set_attn_implementation("eager")
    return cast("nn.Module", shadow.eval())


def _on_meta(tensor: Tensor) -> Tensor:
    """What takes autocast to go together (`core.training.frozen_weights`) is of one type here."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype, requires_grad=False)


def shaped_copy(model: nn.Module, like: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of ``model`` with every parameter (differentiable) and buffer replaced by ``like`` of
    it, a tensor without gradient. Raises as `meta_copy`.
    """
    replaced: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        _refuse_quantised(name, parameter)
        replaced[id(parameter)] = nn.Parameter(like(parameter))
    for buffer in model.buffers():
        replaced[id(buffer)] = like(buffer)
    try:
        return copy.deepcopy(model, replaced)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be copied for profiling: {error}", param="model"
        ) from error


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
    except (RuntimeError, ValueError) as error:
        raise ModelUnsupported(
            f"{type(shadow).__name__} cannot be traced without its weights, which is how costs are "
            f"found ({error}).",
            param="model",
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


def _walk(value: Tensor, shadow: nn.Module) -> dict[Any, int]:
    """Every autograd node behind ``value`` and the parameters from which it was computed."""
    bits = {parameter: 1 << i for i, parameter in enumerate(shadow.parameters())}
    members: dict[Any, int] = {}
    stack: list[tuple[Any, bool]] = [(value.grad_fn, False)]
    while stack:
        node, is_ready = stack.pop()
        if node is None or node in members:
            continue
        inputs = [source for source, _ in node.next_functions]
        if not is_ready:
            stack.append((node, True))
            stack.extend((source, False) for source in inputs if source not in members)
            continue
        is_leaf = node.name() == "torch::autograd::AccumulateGrad"
        found = bits.get(node.variable, 0) if is_leaf else 0
        for source in inputs:
            found |= members.get(source, 0)
        members[node] = found
    return members


def _product_edges(node: Any, members: Mapping[Any, int], mode: MetaTrace) -> _Edges:
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
    sources = [members.get(node.next_functions[i][0], 0) for i in positions]
    return tuple((flops, needed_by) for needed_by in sources if needed_by)


@contextlib.contextmanager
def _spans_of(blocks: Iterable[nn.Module], spans: list[range]) -> Iterator[None]:
    """Writes down which autograd sequence numbers fall into each of ``blocks``."""
    now: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]  # noqa: SLF001
    begun: dict[nn.Module, int] = {}
    with contextlib.ExitStack() as hooks:
        for block in blocks:
            begin = block.register_forward_pre_hook(lambda b, _: begun.update({b: now()}))
            end = block.register_forward_hook(lambda b, *_: spans.append(range(begun[b], now())))
            hooks.callback(begin.remove)
            hooks.callback(end.remove)
        yield


def _again_in_training(shadow: nn.Module, batch: Mapping[str, Any], loss: Loss) -> _Edges:
    """`_again`, of a forward pass in training mode: dropout keeps its mask, for whose sake the
    product before it runs again. Leaves ``shadow`` in that mode.
    """
    blocks: list[Any] = list(blocks_of(shadow))
    shadow.train()
    for block in blocks:
        block.gradient_checkpointing = False  # transformers' own gate, which is now open
    mode, spans = MetaTrace(), list[range]()
    with mode, torch.enable_grad(), _spans_of(blocks, spans):
        members = _walk(_loss_value(shadow, batch, loss), shadow)
        return _again(members, mode, spans)


def _again(members: Mapping[Any, int], mode: MetaTrace, spans: Sequence[range]) -> _Edges:
    """Products of blocks that run again: a product does exactly when a tensor is needed that its
    block saves later on. A product saves its inputs, before it runs.
    """
    starts = [span.start for span in spans]
    saving: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for node, needed_by in members.items():
        at = node._sequence_nr()  # noqa: SLF001
        block = bisect.bisect_right(starts, at) - 1
        if block >= 0 and at in spans[block] and _saves(node):
            if at in mode.products:
                needed_by = functools.reduce(  # noqa: PLW2901
                    operator.or_, (each for _, each in _product_edges(node, members, mode)), 0
                )
            saving[block].append((at, needed_by))
    found = []
    for block, nodes in saving.items():
        needed_by = 0
        later = sorted(nodes, reverse=True)
        for at in sorted(mode.products.keys() & set(spans[block]), reverse=True):
            while later and later[0][0] > at:
                needed_by |= later.pop(0)[1]
            found.append((mode.products[at][1], needed_by))
    return tuple(found)


def _saves(node: Any) -> bool:
    """Whether it keeps a tensor for its gradient."""
    saved = (getattr(node, name) for name in dir(node) if name.startswith("_raw_saved_"))
    return any(each is not None and each != () for each in saved)


def _check_backward(value: Tensor, edges: Mapping[Any, _Edges], mode: MetaTrace) -> None:
    """Runs torch's own backward pass and compares every node with what was predicted for it."""
    try:
        value.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ModelUnsupported(
            f"torch cannot take the model's gradient: {error}", param="model"
        ) from error
    for node in edges.keys() | mode.backward_flops.keys():
        predicted = sum(flops for flops, _ in edges.get(node, ()))
        measured = mode.backward_flops.get(node, 0)
        if predicted != measured:
            raise ModelUnsupported(
                f"the gradient of the operator {node.name()} costs {measured} FLOPs where "
                f"{predicted} are accounted for; its gradient is not known to the profile.",
                param="model",
            )
