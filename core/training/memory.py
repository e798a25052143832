"""How much memory a training step takes: weights, moments, and the high water of its two passes.

Nothing is guessed per architecture. A copy of the model whose tensors have shapes and types but no
data (torch's fake tensors) runs one forward and one backward pass with exactly the trained tensors
requiring a gradient, under the same autocast and attention kernels as the real one, and every
storage that comes and goes is counted. What follows from token ids alone (positions, masks) is
computed for real, so that models take the same way through their code.

Kernels are the CPU's. Not counted: what a kernel allocates for itself and an allocator's slack; of
the libraries' own memory only cuBLAS's workspaces, which torch's allocator gives out.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.errors import ModelUnsupported
from core.training.frozen_weights import lowerable, lowerable_embeddings, widen_embeddings
from core.training.graph import shaped_copy
from core.training.importance import freeing_gradients
from core.training.pricing import Shape
from core.training.step import LossStep, StepInputs

_CPU = torch.device("cpu")
#: AdamW's first and second moment
_MOMENTS = 2
#: of cuBLAS for each thread that multiplies: of the forward pass, and of the backward pass. torch's
#: defaults (CUBLAS_WORKSPACE_CONFIG): 8 of 4 MiB from Hopper on; before it 2 of 4 MiB, 8 of 16 KiB
_MULTIPLYING_THREADS = 2
_HOPPER = 9
_HOPPER_WORKSPACE_BYTES = 8 * 4096 * 1024
_WORKSPACE_BYTES = (2 * 4096 + 8 * 16) * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one process that trains. Parts of a step are there at different times: they do not
    add up to ``step_bytes``, which is the most that is ever there at once.
    """

    #: parameters and buffers, trained or not
    weights_bytes: int
    #: gradients and AdamW's moments of the trained tensors
    gradients_bytes: int
    moments_bytes: int
    #: kept from the forward for the backward pass: before the output layer, and by it and the loss
    activations_bytes: int
    logits_bytes: int
    #: high water of forward and backward, gradients included
    step_bytes: int
    #: the same of measuring importance, which frees each gradient at once; 0: nothing is measured
    selection_bytes: int
    #: hidden states stored below what is trained
    prefix_rows_bytes: int = 0
    #: whether importance is measured again once there are moments
    reselects: bool = True
    #: what the libraries that multiply keep for themselves
    libraries_bytes: int = 0
    #: copies of the trained weights, as they were at the best step
    best_bytes: int = 0
    #: of ``weights_bytes``: what trained matrices take more than while they were frozen
    raised_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return max(self.training_bytes, self.selecting_bytes)

    @property
    def training_bytes(self) -> int:
        """All that is there at the high water of a step."""
        return self._lasting_bytes + self.step_bytes

    @property
    def selecting_bytes(self) -> int:
        """All that is there at the high water of measuring importance; 0: nothing is measured."""
        if not self.selection_bytes:
            return 0
        before = self._lasting_bytes
        if not self.reselects:
            before -= self.moments_bytes + self.prefix_rows_bytes + self.best_bytes
            before -= self.raised_bytes
        return before + self.selection_bytes

    @property
    def _lasting_bytes(self) -> int:
        kept = self.weights_bytes + self.moments_bytes + self.prefix_rows_bytes
        return kept + self.libraries_bytes + self.best_bytes


def workspace_bytes(device: torch.device) -> int:
    """What cuBLAS takes on a card; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    major, _ = torch.cuda.get_device_capability(device)
    each = _HOPPER_WORKSPACE_BYTES if major >= _HOPPER else _WORKSPACE_BYTES
    return _MULTIPLYING_THREADS * each


def estimate(
    model: Any,
    names: Collection[str],
    shape: Shape,
    *,
    autocast_dtype: torch.dtype | None = None,
    recomputes: bool = False,
    accumulates: bool = False,
    probe: Shape | None = None,
    candidates: Collection[str] = (),
    prefix_rows_bytes: int = 0,
    reselects: bool = True,
    device: torch.device = _CPU,
    keeps_best: bool = False,
    lowers_frozen: bool = False,
    probe_recomputes: bool = False,
    step_of: MemoryEstimate | None = None,
) -> MemoryEstimate:
    """Memory of training ``names`` on batches of ``shape``. No weight need be there; of those that
    are, embeddings alone are read (`lowerable_embeddings`).

    Args:
        names: of the trained parameters; at least one on which the loss depends.
        shape: of the largest micro-batch.
        recomputes: with gradient checkpointing.
        probe_recomputes: importance is measured with it, whatever steps are.
        accumulates: several micro-batches make a step, so gradients lie there while another runs.
        probe: of the batch that importance of ``candidates`` is measured on; None: it is not.
        prefix_rows_bytes: what stored rows may take of the memory.
        reselects: whether importance is measured again after the first step.
        device: that will train.
        keeps_best: as early stopping does, in the host's memory.
        lowers_frozen: as `core.training.frozen_weights` does, where there is autocast.
        step_of: an estimate of the same steps, which are not traced once more: only how importance
            is measured may differ.

    Raises:
        ModelUnsupported: the model cannot run without its data.
    """
    trained = set(names)
    parameters = dict(model.named_parameters())
    gradients = sum(_bytes(p) for name, p in parameters.items() if name in trained)
    matrices = {}
    if lowers_frozen and autocast_dtype is not None:
        matrices = lowerable(model) | lowerable_embeddings(model, autocast_dtype)
    frozen = {name: p for name, p in matrices.items() if name not in trained}
    raised_bytes = sum(_bytes(p) // 2 for name, p in matrices.items() if name in trained)
    try:
        traced = partial(
            _traced,
            model,
            autocast_dtype=autocast_dtype,
            runs_on_cpu=device.type == "cpu",
        )
        if step_of is None:
            step = traced(trained, shape, frozen, recomputes=recomputes, accumulates=accumulates)
        else:
            step = _Traced(
                activations_bytes=step_of.activations_bytes,
                logits_bytes=step_of.logits_bytes,
                peak_bytes=step_of.step_bytes,
            )
        selection = None
        if probe is not None:
            lowered = frozen if reselects else matrices
            again = recomputes or probe_recomputes
            selection = traced(set(candidates), probe, lowered, recomputes=again, frees=True)
    except (RuntimeError, NotImplementedError) as error:
        raise ModelUnsupported(
            f"{type(model).__name__}'s memory cannot be told without its weights: {error}",
            param="model",
        ) from error
    return MemoryEstimate(
        weights_bytes=sum(map(_bytes, (*parameters.values(), *model.buffers())))
        - sum(_bytes(p) // 2 for p in frozen.values()),
        gradients_bytes=gradients,
        moments_bytes=_MOMENTS * gradients,
        activations_bytes=step.activations_bytes,
        logits_bytes=step.logits_bytes,
        step_bytes=step.peak_bytes,
        selection_bytes=0 if selection is None else selection.peak_bytes,
        prefix_rows_bytes=prefix_rows_bytes,
        reselects=reselects,
        libraries_bytes=workspace_bytes(device),
        best_bytes=gradients if keeps_best and device.type == "cpu" else 0,
        raised_bytes=raised_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traced:
    """Live when the loss is there: made before and since the output layer began; the most ever."""

    activations_bytes: int
    logits_bytes: int
    peak_bytes: int


def _traced(
    model: Any,
    trained: Collection[str],
    shape: Shape,
    lowered: Mapping[str, Tensor],
    *,
    autocast_dtype: torch.dtype | None,
    recomputes: bool,
    runs_on_cpu: bool,
    accumulates: bool = False,
    frees: bool = False,
) -> _Traced:
    """One forward and backward pass; ``frees``: gradients are taken and freed as they arrive;
    ``lowered``: the model's parameters, by name, that lie there in the autocast's type.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    types = dict.fromkeys(map(id, lowered.values()), autocast_dtype)

    def like(tensor: Tensor) -> Tensor:
        dtype = types.get(id(tensor), tensor.dtype)
        with fakes:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cpu")

    shadow: Any = shaped_copy(model, like)
    widen_embeddings(shadow, lowered)
    shadow.train(model.training and not frees)
    chosen = {n: p.requires_grad_(n in trained) for n, p in shadow.named_parameters()}
    step = LossStep(shadow, autocast_dtype=autocast_dtype)
    step.recomputes, step.runs_on_cpu = recomputes, runs_on_cpu
    inputs = _inputs(shape)
    water, before_head = HighWater(), 0

    def note(*_: Any) -> None:
        nonlocal before_head
        before_head = water.n_made

    handle = shadow.get_output_embeddings().register_forward_pre_hook(note)
    with torch.random.fork_rng(devices=()), _unlogged(), water:
        if accumulates:
            for parameter in chosen.values():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        n_gradients = water.n_made
        loss_sum = step(inputs).loss_sum
        activations_bytes = water.live_since(n_gradients, before_head)
        logits_bytes = water.live_since(before_head)
        if frees:
            with freeing_gradients(chosen.values()):
                torch.autograd.backward(loss_sum)
        else:
            torch.autograd.backward(loss_sum)
    handle.remove()
    return _Traced(
        activations_bytes=activations_bytes,
        logits_bytes=logits_bytes,
        peak_bytes=water.peak_bytes,
    )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without torch's log of what its fake tensors cannot do, a stack trace: it is raised as well,
    and told in a sentence.
    """
    log = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


class HighWater(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage made under it for as long as it lives.

    Attributes:
        live_bytes, peak_bytes: now, and the most so far.
        n_made: storages so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self.n_made = 0
        #: id of a live storage -> what tells of its end, which one it was, its bytes
        self._watched: dict[int, tuple[weakref.ref[Any], int, int]] = {}

    def live_since(self, first: int, end: int | None = None) -> int:
        """Bytes that live of the storages made from the ``first`` (to before the ``end``)."""
        last = self.n_made if end is None else end
        return sum(size for _, at, size in self._watched.values() if first <= at < last)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves(args) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                # views and writes in place make nothing
                if id(storage) not in given and id(storage) not in self._watched:
                    self._watch(storage)
        return out

    def _watch(self, storage: Any) -> None:
        key, n_bytes = id(storage), storage.nbytes()

        def gone(_: weakref.ref[Any]) -> None:
            self.live_bytes -= n_bytes
            del self._watched[key]

        self._watched[key] = weakref.ref(storage, gone), self.n_made, n_bytes
        self.n_made += 1
        self.live_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _inputs(shape: Shape) -> StepInputs:
    """A batch of this shape, padded where a model is told of padding."""
    B, T, U, N = shape
    model_inputs = {"input_ids": torch.zeros(B, T, dtype=torch.long)}
    if U:
        mask = torch.ones(B, T, dtype=torch.long)
        mask[1:, -1] = 0
        model_inputs["attention_mask"] = mask
        model_inputs["decoder_input_ids"] = torch.zeros(B, U, dtype=torch.long)
    return StepInputs(
        model_inputs=model_inputs,
        positions_N=torch.zeros(N, dtype=torch.long),
        targets_N=torch.zeros(N, dtype=torch.long),
        n_samples=B,
        n_tokens=B * (T + U),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
