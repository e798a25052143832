"""Frozen matrices in the autocast's type: half their memory, and no cast in every pass.

Under autocast a product takes its weights in bfloat16, whatever they are stored in. What no step
changes can therefore lie there in bfloat16 from the start: every pass computes the same bits. What
it was in float32 is needed again when it is trained after all, and when the model is written. Most
checkpoints are bfloat16 themselves, and rounding them loses nothing; of others the originals wait
in a file that goes with the process, however that ends. It takes half of the free disk at most: the
run's checkpoints have to go there, too.

Matrices of linear layers qualify, and those only that nothing else uses: norms compute in the type
of their weights. So do embeddings, whose rows are the residual stream's first values; they qualify,
heads that are one included, where rounding loses nothing, and give float32 all the same. Whether a
model minds is tested on it, not looked up by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from core.errors import StorageUnavailable
from core.training.adapters import is_adapted, n_virtual_tokens
from core.training.prefix_layout import as_evaluated, probe_batch
from core.training.row_store import RowStore, free_disk_bytes
from core.training.step import LossStep

#: of the disk that is free when the run begins
_SHARE: Final = 2


def lowerable(model: Any) -> dict[str, nn.Parameter]:
    """The parameters, by name, that may be frozen and that products alone use; of a model with
    adapters none of the adapters'.
    """
    return _used_by(model, _is_linear)


def lowerable_embeddings(model: Any, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """The embeddings, by name, that may be frozen and that are numbers of ``dtype`` already; those
    that products use as well included. Of a model without its weights: none is known to be. Of one
    with a prefix: none, because PEFT makes prefixes in the type of the model's first weight.
    """
    if n_virtual_tokens(model):
        return {}
    products = lowerable(model)
    return {
        name: parameter
        for name, parameter in _used_by(model, _is_linear, _is_embedding).items()
        if name not in products
        and not parameter.is_meta
        and torch.equal(parameter.to(dtype).float(), parameter)
    }


def widen_embeddings(model: nn.Module, names: Collection[str]) -> list[RemovableHandle]:
    """Have the embeddings of these parameters give float32, whatever they lie in."""
    named = dict(model.named_parameters())
    weights = {id(named[name]) for name in names}
    return [
        module.register_forward_hook(_as_float32)
        for module in model.modules()
        if _is_embedding(module) and id(module.weight) in weights
    ]


class FrozenWeights(AbstractContextManager["FrozenWeights"]):
    """Which of a model's weights are lowered, and what they were. On leaving the context they are
    float32 again, with the bits that they had; if any is lowered then, the model goes to the CPU
    first, because a card may have no room for all.

    Args:
        model: float32; nobody may run it outside of autocast while weights are lowered.
        dtype: the autocast's; None: there is none, and nothing is lowered.
        folder: of the originals' file, made when the file is; None: the system's own for temporary
            files.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype | None, *, folder: Path | None = None
    ) -> None:
        self._model = model
        self._dtype = dtype
        self._folder = folder
        self._lowered: dict[str, nn.Parameter] = {}
        #: names of those that rounding changed
        self._rounded: set[str] = set()
        #: of these, what they were; None: nothing was lowered yet
        self._originals: RowStore | None = None
        self._hooks: list[RemovableHandle] = []

    def __exit__(self, *_: object) -> None:
        """Raises StorageUnavailable: an original cannot be read; its rounded copy stays."""
        try:
            if self._lowered:
                self._model.to("cpu")
                self._restore(set(self._lowered))
        finally:
            for hook in self._hooks:
                hook.remove()

    def lower_all_but(self, names: Collection[str]) -> None:
        """``names``: of all that was ever trained or is to be: those are float32 from here on.

        The first call lowers, later ones only give back.

        Raises:
            StorageUnavailable: an original cannot be read.
        """
        if self._dtype is not None and self._originals is None:
            self._originals = RowStore(
                memory_bytes=0,
                disk_bytes=free_disk_bytes(self._folder) // _SHARE,
                folder=self._folder,
            )
            self._begin(self._dtype, names, self._originals)
        self._restore(self._lowered.keys() & set(names))

    def _begin(self, dtype: torch.dtype, names: Collection[str], originals: RowStore) -> None:
        products, embeddings = lowerable(self._model), lowerable_embeddings(self._model, dtype)
        parts = [
            {n: p for n, p in part.items() if n not in names} for part in (products, embeddings)
        ]
        if not any(parts):
            return
        step = LossStep(self._model, keeps_mask=True, autocast_dtype=dtype)
        inputs = step.inputs(probe_batch(self._model, is_padded=True))
        with as_evaluated(self._model), torch.no_grad():
            before = step.logits(inputs)
            for frozen in filter(None, parts):
                earlier = set(self._lowered)
                self._hooks += widen_embeddings(self._model, frozen)
                for name, parameter in frozen.items():
                    self._lower(name, parameter, dtype, originals)
                try:
                    is_same = torch.equal(step.logits(inputs), before)
                except RuntimeError:  # of types that do not go together
                    is_same = False
                if not is_same:
                    self._restore(self._lowered.keys() - earlier)

    def _lower(
        self, name: str, parameter: nn.Parameter, dtype: torch.dtype, originals: RowStore
    ) -> None:
        weight = parameter.detach()
        rounded = weight.to(dtype)
        if not torch.equal(rounded.float(), weight):
            if not originals.put(name.encode(), (weight,)):
                return  # no room: it stays float32
            self._rounded.add(name)
        parameter.data = rounded
        self._lowered[name] = parameter

    def _restore(self, names: Iterable[str]) -> None:
        lost = []
        for name in names:
            parameter = self._lowered[name]
            weight = self._original(name)
            if weight is None:
                lost.append(name)
            else:
                parameter.data = weight.to(parameter.device)
                del self._lowered[name]
        if lost:
            raise StorageUnavailable(
                f"The float32 weights of {lost[0]}, which were put aside on the disk while they "
                "were frozen, cannot be read again. Start the job again."
            )

    def _original(self, name: str) -> torch.Tensor | None:
        """None: it was lost."""
        if name not in self._rounded:
            return self._lowered[name].detach().float()
        assert self._originals is not None, "it was put there"
        row = self._originals.get(name.encode())
        return None if row is None else row[0]


def _used_by(model: Any, *kinds: Callable[[nn.Module], bool]) -> dict[str, nn.Parameter]:
    """The parameters that may be frozen and that nothing but modules of these kinds uses."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    used: set[int] = set()
    other: set[int] = set()
    for path, module in model.named_modules():
        is_known = any(is_kind(module) for is_kind in kinds) and kept.isdisjoint(path.split("."))
        for name, parameter in module.named_parameters(recurse=False):
            (used if is_known and name == "weight" else other).add(id(parameter))
    trains_adapters = is_adapted(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in used - other
        and parameter.is_contiguous()
        and not (trains_adapters and parameter.requires_grad)
    }


def _as_float32(_module: nn.Module, _args: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    return rows.float()


def _is_embedding(module: nn.Module) -> bool:
    is_own = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return is_own and module.max_norm is None  # which would write to the weight


def _is_linear(module: nn.Module) -> bool:
    is_own = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return is_own or type(module) is Conv1D
