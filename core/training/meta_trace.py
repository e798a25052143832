"""A forward and a backward pass without data: kernels run on shapes, their products are counted.

Weights live on torch's meta device; the batch keeps its real values, because shapes may depend on
them (logits only where there is a label). ``MetaTrace`` lets both meet: a kernel with any meta
argument runs on meta, and what follows from the batch alone (masks, positions, label places) is
computed for real beside it, so that kernels whose output shape depends on data find them.

FLOPs are counted by the formulas of ``torch.utils.flop_counter``: matrix products and
convolutions, one multiply-add is two FLOPs. It knows no formula for the grouped product that
mixtures of experts run; ours is what its parts come to as separate products, wherever the router
sends a token.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from core.errors import ModelUnsupported

_aten = torch.ops.aten
_NAMESPACES = frozenset({"aten", "prims", "prim"})
# Words in the name of a kernel that multiplies matrices. Those that torch's own counter does not
# know would be priced at nothing, so they are refused.
_PRODUCT_WORDS = frozenset(
    {"mm", "bmm", "matmul", "linear", "conv", "convolution", "attention", "lstm", "gru", "rnn"}
)
_VALUE_KERNELS = frozenset({_aten.nonzero, _aten._local_scalar_dense, _aten.equal})  # noqa: SLF001
# masks, positions and labels are followed by value up to this size, activations never
_MOST_KNOWN_VALUES = 1 << 22
_MOVED = {"meta": torch.device("cpu")}


def _grouped_flops(left: Tensor, right: Tensor, *_: Any, **_options: Any) -> int:
    """Groups divide the rows (2-D by 3-D), the columns (3-D by 2-D) or the summed dimension (2-D by
    2-D) among them; whichever it is, each row, column and term belongs to one group.
    """
    *_lead, rows, inner = left.shape
    n_groups = left.shape[0] if left.ndim == right.ndim == 3 else 1
    return 2 * n_groups * rows * inner * int(right.shape[-1])


def _grouped_output(
    left: Tensor, right: Tensor, offs: Tensor | None = None, *_: Any, **_options: Any
) -> Tensor:
    rows, columns = left.shape[-2], right.shape[-1]
    if left.ndim != right.ndim:
        return left.new_empty(rows, columns)
    n_groups = left.shape[0] if left.ndim == 3 or offs is None else len(offs)
    return left.new_empty(n_groups, rows, columns)


_FORMULAS: dict[Any, Callable[..., Any]] = {**flop_registry, _aten._grouped_mm: _grouped_flops}  # noqa: SLF001


#: of a kernel's output: shape, strides and type
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def run_on_shapes(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    layouts: MutableMapping[Any, Layout],
) -> Any:
    """``func`` of ``args``; on meta an elementwise kernel is run once for each layout of its
    arguments. Torch finds the output's layout in Python there, ten times slower than a matrix
    product's.

    Args:
        layouts: what was found so far.
    """
    key = _layout_key(func, args, kwargs)
    if key is None:
        return func(*args, **kwargs)
    known = layouts.get(key)
    if known is None:
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_meta:
            layouts[key] = tuple(out.shape), out.stride(), out.dtype
        return out
    shape, stride, dtype = known
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _layout_key(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """All that an elementwise kernel's output depends on but for its values; None: another kernel,
    or arguments that are no meta tensors and numbers.
    """
    if torch.Tag.pointwise not in func.tags or func._schema.is_mutable:  # noqa: SLF001
        return None
    parts: list[Any] = [func]
    for name, value in itertools.chain(enumerate(args), kwargs.items()):
        if isinstance(value, Tensor):
            if not value.is_meta:
                return None
            parts.append((name, value.shape, value.stride(), value.dtype))
        elif value is None or isinstance(value, (int, float, str, torch.dtype)):
            # 1, 1.0 and True give different types
            parts.append((name, type(value), value))
        else:
            return None
    return tuple(parts)


class MetaTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products of everything that runs under it.

    Attributes:
        forward_flops: FLOPs spent outside any autograd node.
        products: autograd sequence number -> (kernel, FLOPs), for products with a gradient.
        backward_flops: autograd node -> FLOPs spent while it ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forward_flops = 0
        self.products: dict[int, tuple[Any, int]] = {}
        self.backward_flops: dict[Any, int] = defaultdict(int)
        # meta tensor -> the real one that it stands for, and back
        self._real: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._meta: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._layouts: dict[Any, Layout] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kernel = func._overloadpacket  # noqa: SLF001
        if kernel not in _FORMULAS:
            # kernels made of others reach a mode whole in inference mode
            out = func.decompose(*args, **kwargs) if func._can_decompose() else NotImplemented  # noqa: SLF001
            if out is not NotImplemented:
                return out
            _refuse_unknown(func, args)
        tensors = list(_tensors(args)) + list(_tensors(kwargs.values()))
        is_differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if kernel in _VALUE_KERNELS and all(self._is_known(t) for t in tensors):
            return func(*_replaced(args, self._as_real), **kwargs)
        given, given_kwargs = args, kwargs
        if any(t.is_meta for t in tensors):
            args = self._indices_read(kernel, args)
            args, kwargs = _replaced(args, self._on_meta), dict(kwargs)
            kwargs.update({k: self._on_meta(v) for k, v in kwargs.items() if isinstance(v, Tensor)})
            if kwargs.get("device") is not None:
                # a buffer that goes to where the batch is: in training it is there already
                kwargs["device"] = torch.device("meta")
        # torch's grouped product refuses float32 on meta, which it takes elsewhere
        is_grouped = kernel is _aten._grouped_mm  # noqa: SLF001
        out = (
            _grouped_output(*args, **kwargs)
            if is_grouped
            else run_on_shapes(func, args, kwargs, self._layouts)
        )
        self._follow(func, given, given_kwargs, tensors, out)
        if kernel in _FORMULAS:
            if kernel is _aten.convolution and is_differentiable:
                _refuse_grouped_convolution(args)
            flops = int(_FORMULAS[kernel](*args, **kwargs, out_val=out))
            self._count(kernel, flops, is_differentiable)
        return out

    def _count(self, kernel: Any, flops: int, is_differentiable: bool) -> None:
        node = torch._C._current_autograd_node()  # noqa: SLF001
        if node is not None:
            self.backward_flops[node] += flops
            return
        self.forward_flops += flops
        if is_differentiable:
            # the node of this call was the last to take a number
            self.products[torch.autograd._get_sequence_nr() - 1] = kernel, flops  # noqa: SLF001

    def _on_meta(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if tensor not in self._meta:
            with torch.no_grad():
                twin = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
                )
            self._meta[tensor] = twin
            self._real[twin] = tensor
        return self._meta[tensor]

    def _indices_read(self, kernel: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A boolean mask used as an index, replaced by the places where it is true."""
        if kernel not in (_aten.index, _aten.index_put, _aten.index_put_):
            return args
        indices: list[Tensor | None] = []
        for index in args[1]:
            real = None if index is None else self._real.get(index, index)
            if real is None or real.is_meta or real.dtype is not torch.bool:
                indices.append(index)
            else:
                indices.extend(real.nonzero().unbind(1))
        return (args[0], indices, *args[2:])

    def _is_known(self, tensor: Tensor) -> bool:
        return not tensor.is_meta or tensor in self._real

    def _as_real(self, tensor: Tensor) -> Tensor:
        return self._real[tensor] if tensor.is_meta else tensor

    def _follow(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        out: Any,
    ) -> None:
        """Keeps the values of small meta tensors that follow from the batch alone."""
        outs = [t for t in _tensors([out]) if t.is_meta]
        if not outs:
            return
        if (
            torch.Tag.nondeterministic_seeded in func.tags
            or any(t.requires_grad or not self._is_known(t) for t in tensors)
            or sum(t.numel() for t in outs) > _MOST_KNOWN_VALUES
        ):
            for each in outs:
                # written in place
                self._real.pop(each, None)
            return
        real_kwargs = {k: _MOVED.get(str(v), v) for k, v in kwargs.items()}
        real_kwargs.update(
            {k: self._as_real(v) for k, v in kwargs.items() if isinstance(v, Tensor)}
        )
        real = func(*_replaced(args, self._as_real), **real_kwargs)
        for meta_out, real_out in zip(outs, _tensors([real]), strict=True):
            self._real[meta_out] = real_out


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _replaced(args: Any, replace: Any) -> tuple[Any, ...]:
    return tuple(
        replace(arg)
        if isinstance(arg, Tensor)
        else list(_replaced(arg, replace))
        if isinstance(arg, (list, tuple))
        else arg
        for arg in args
    )


def _refuse_unknown(func: Any, args: tuple[Any, ...]) -> None:
    """Refuses a kernel that may hide a product from the count."""
    name = func._schema.name  # noqa: SLF001
    is_foreign = func.namespace not in _NAMESPACES and any(
        t.dtype.is_floating_point for t in _tensors(args)
    )
    words = name.rpartition("::")[2].removesuffix("_backward").split("_")
    if is_foreign or not _PRODUCT_WORDS.isdisjoint(words):
        raise ModelUnsupported(
            f"the model runs the operator {name}, whose FLOPs are not known; "
            "train it with a build that uses torch's own matrix products.",
            param="model",
        )


def _refuse_grouped_convolution(args: tuple[Any, ...]) -> None:
    groups = args[8]
    if groups > 1:
        raise ModelUnsupported(
            f"the model runs a convolution in {groups} groups, as state-space models do; torch's "
            "own count of its gradient ignores the groups, so that no price of it can be checked.",
            param="model",
        )
