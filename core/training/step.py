"""Forward pass and loss without waste, for any Hugging Face language model.

- Logits exist only where there is a label: a hook before the output embeddings gathers those rows
  of the hidden states, so whatever a model does after its head (scaling, capping, bias) still
  happens, to fewer rows. For a vocabulary of 49,152 and answers that are a fifth of the text this
  is most of the head's cost.
- A right-padded batch needs no attention mask in a causal model: no real token sees padding, and
  padding carries no label. Whether that holds for a model is tested on it (`needs_mask`), not
  looked up by name.

Shapes: B samples, T input tokens, U decoder tokens, N labels, H width, V vocabulary.
Causal models predict token t + 1 at position t (labels are shifted here); encoder-decoder models
get their labels' right-shifted copy as decoder input, so positions match as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from core.errors import ModelUnsupported
from core.training.cpu_attention import CpuAttention, OpaqueAttention
from core.training.recompute import recomputing
from core.training.tied_lookup import TiedLookup

Batch = Mapping[str, torch.Tensor]
IGNORED = -100
#: importance from a single sample would follow that sample's whims
_FEWEST_SAMPLES = 2
#: relative difference under which two results count as equal: float32 sums reordered
_TOLERANCE = 1e-3


def first_samples(batch: Batch, share: float) -> Batch:
    """The first samples of a micro-batch: ``share`` of them rounded down, at least two."""
    n_samples = len(batch["labels"])
    n_kept = min(n_samples, max(_FEWEST_SAMPLES, int(n_samples * share)))
    return {name: tensor[:n_kept] for name, tensor in batch.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One micro-batch as the model takes it, and where its labels are."""

    #: input_ids (B, T); where needed attention_mask (B, T) and decoder_input_ids (B, U)
    model_inputs: dict[str, torch.Tensor]
    #: rows of the flattened hidden states (B*T or B*U, H) that predict a label
    positions_N: torch.Tensor
    #: what they should predict
    targets_N: torch.Tensor
    n_samples: int
    #: real tokens, padding not counted; encoder's and decoder's together
    n_tokens: int

    @property
    def n_labels(self) -> int:
        return self.targets_N.numel()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, T, U (0 for causal models) and N: all that a step's FLOPs depend on."""
        rows, columns = self.model_inputs["input_ids"].shape
        decoder = self.model_inputs.get("decoder_input_ids")
        return rows, columns, 0 if decoder is None else decoder.shape[1], self.n_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    #: sum of cross-entropy over the N labels, nats; differentiable
    loss_sum: torch.Tensor
    #: labels predicted right by the largest logit
    n_correct: torch.Tensor
    #: FLOPs of the forward pass that were not spent, because their result was at hand
    saved_flops: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is kept of earlier batches: their hidden states at one station of the model
    (`core.training.prefix_layout`), beginning with the step after ``since`` steps.
    """

    boundary: int
    since: int


class LossStep:
    """Turns batches into losses for one model.

    Args:
        keeps_mask: pass the attention mask even where a batch is padded on the right; encoder-
            decoder models always get theirs where anything is padded.
        autocast_dtype: None, or torch.bfloat16 for mixed precision with float32 weights.

    Attributes:
        keeps_mask: as asked for, or because the model needs it.
        recomputes: blocks keep their input alone for the backward pass (`core.training.recompute`).
        runs_on_cpu: its kernels are the CPU's; a copy without data stands in for a model elsewhere.
        is_compiled: its blocks are compiled code.
        at_step: steps done; what is kept remembers when it began.

    Raises:
        ModelUnsupported: the model has no output embeddings.
    """

    def __init__(
        self,
        model: Any,
        *,
        keeps_mask: bool = False,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise ModelUnsupported("The model has no output embeddings: it is no language model.")
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.keeps_mask = keeps_mask or self._is_encoder_decoder
        self._autocast_dtype = autocast_dtype
        self.recomputes = False
        self.is_compiled = False
        self.at_step = 0
        self.runs_on_cpu = model.device.type == "cpu"

    def move(self, device: torch.device) -> None:
        """The model, and what it is run with there."""
        self.model.to(device)
        self.runs_on_cpu = device.type == "cpu"

    def inputs(self, batch: Batch) -> StepInputs:
        """A collated batch (``input_ids``, ``labels``, ``attention_mask``, on the CPU) on the
        model's device. Positions are found before the move: no device has to be waited for.
        """
        device = self.model.device
        labels, mask = batch["labels"], batch["attention_mask"]
        model_inputs = {"input_ids": batch["input_ids"]}
        n_tokens = int(mask.sum())
        if self.keeps_mask and n_tokens < mask.numel():
            model_inputs["attention_mask"] = mask
        if self._is_encoder_decoder:
            model_inputs["decoder_input_ids"] = _decoder_inputs(self.model, labels)
            predicted_BT = labels
            n_tokens += int((labels != IGNORED).sum())
        else:
            predicted_BT = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        flat = predicted_BT.reshape(-1)
        positions_N = (flat != IGNORED).nonzero().squeeze(1)
        return StepInputs(
            model_inputs={k: _moved(v, device) for k, v in model_inputs.items()},
            positions_N=_moved(positions_N, device),
            targets_N=_moved(flat[positions_N], device),
            n_samples=len(labels),
            n_tokens=n_tokens,
        )

    @property
    def stored(self) -> Stored | None:
        """What is kept of earlier batches. Nothing is here."""
        return None

    def take_up(self, _stored: Stored) -> None:
        """Keep what an interrupted run kept, from its `refill` on. Nothing is kept here."""

    def refill(self, _seen: Iterable[StepInputs]) -> float:
        """Make ready again what was kept of the batches ``_seen`` before an interruption, without
        drawing a random number; the FLOPs of that. Nothing is kept here.
        """
        return 0.0

    def forget(self) -> None:
        """Drop what is kept of earlier batches. Nothing is kept here."""

    def logits(self, inputs: StepInputs) -> torch.Tensor:
        """(N, V): the model's logits at the labels' positions.

        Raises:
            ModelUnsupported: it predicts several tokens at each place (ProphetNet).
        """
        given = inputs.model_inputs
        n_predicting = given.get("decoder_input_ids", given["input_ids"]).numel()

        def gather(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            rows_H = args[0].reshape(-1, args[0].shape[-1])
            if len(rows_H) != n_predicting:
                raise ModelUnsupported(
                    f"{type(self.model).__name__} gives its output embeddings {len(rows_H)} rows "
                    f"for {n_predicting} tokens; only models that predict one token at each place "
                    "can be trained here.",
                    param="model",
                )
            return (rows_H.index_select(0, inputs.positions_N).unsqueeze(0), *args[1:])

        with ExitStack() as around:
            around.callback(self._head.register_forward_pre_hook(gather).remove)
            if self.recomputes and torch.is_grad_enabled():
                around.enter_context(recomputing(self.model, self._attention))
            around.enter_context(self.autocast())
            around.enter_context(self._attention())
            around.enter_context(self._tied_lookup())
            logits_1NV = self.model(**inputs.model_inputs, use_cache=False).logits
        rows_NV: torch.Tensor = logits_1NV.squeeze(0)
        return rows_NV

    def autocast(self) -> AbstractContextManager[Any]:
        """What the model is run in."""
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self._autocast_dtype)

    def _attention(self) -> AbstractContextManager[Any]:
        if not self.runs_on_cpu:
            return nullcontext()
        kind = OpaqueAttention if self.is_compiled else CpuAttention
        return kind(self._autocast_dtype)

    def _tied_lookup(self) -> AbstractContextManager[Any]:
        weight = getattr(self._head, "weight", None)
        if weight is None or not weight.requires_grad:
            return nullcontext()
        # compiled code would be traced through a mode that sees every call
        if self.is_compiled or not self.runs_on_cpu:
            return nullcontext()
        return TiedLookup(weight)

    def __call__(self, inputs: StepInputs) -> StepOutput:
        logits_NV = self.logits(inputs).float()
        return StepOutput(
            loss_sum=F.cross_entropy(logits_NV, inputs.targets_N, reduction="sum"),
            n_correct=(logits_NV.detach().argmax(-1) == inputs.targets_N).sum(),
        )


def require_decoder_start(model: Any) -> None:
    """Raises `ModelUnsupported` as `LossStep.inputs` does of a batch, where there is none."""
    if model.config.is_encoder_decoder:
        _decoder_inputs(model, torch.zeros((1, 1), dtype=torch.long))


def _decoder_inputs(model: Any, labels_BU: torch.Tensor) -> torch.Tensor:
    """The labels one place to the right, as the model itself shifts them.

    Raises:
        ModelUnsupported: the model does not say what its decoder starts from.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        with suppress(ValueError, AttributeError):  # told below
            shifted: torch.Tensor = own(labels=labels_BU)
            return shifted
    # M2M100 (NLLB) and others shift in their forward alone, all in this way
    config = model.config
    first = getattr(config, "decoder_start_token_id", None)
    padding = getattr(config, "pad_token_id", None)
    if first is None or padding is None:
        raise ModelUnsupported(
            f"{type(model).__name__}'s config has no decoder_start_token_id or pad_token_id, so "
            "that its decoder's input is not known; set both in config.json.",
            param="model",
        )
    shifted = F.pad(labels_BU[:, :-1], (1, 0), value=first)
    return shifted.masked_fill(shifted == IGNORED, padding)


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On ``device``, without waiting for it: a copy to a card only runs beside the host's work
    where it starts from pinned memory.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@torch.no_grad()
def needs_mask(model: Any) -> bool:
    """Whether a right-padded batch gives other logits without its mask at the real positions.

    False for every causal decoder we know (absolute positions, rotary, ALiBi); True for models
    that look ahead or normalise over the padding. Costs two passes over 2 x 8 tokens.
    """
    if model.config.is_encoder_decoder:
        return True
    ids = torch.arange(16).reshape(2, 8) % max(2, model.config.vocab_size)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = torch.where(mask == 1, ids, torch.full_like(ids, IGNORED))
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    with _evaluating(model):
        with_mask, without = (
            step.logits(step.inputs(batch)).float()
            for step in (LossStep(model, keeps_mask=True), LossStep(model, keeps_mask=False))
        )
    return _differ(with_mask, without)


@torch.no_grad()
def looks_ahead(model: Any) -> bool:
    """Whether a causal model's logits depend on tokens that are still to come: it would be told
    what it has to predict (masked language models: BERT, XLNet). Costs two passes over 8 tokens.
    """
    if model.config.is_encoder_decoder:
        return False
    ids = torch.arange(8).reshape(1, 8) % max(2, model.config.vocab_size)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    mask = torch.ones_like(ids)
    # the last label is predicted before the last token is read
    labels = torch.cat([ids[:, :-1], torch.full((1, 1), IGNORED)], dim=1)
    step = LossStep(model, keeps_mask=True)
    with _evaluating(model):
        found, changed = (
            step.logits(step.inputs({"input_ids": i, "labels": labels, "attention_mask": mask}))
            for i in (ids, other)
        )
    return _differ(found.float(), changed.float())


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() > _TOLERANCE * one.norm())
