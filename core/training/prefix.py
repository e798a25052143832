"""The forward pass below the deepest trained tensor, done once per sample (frozen-prefix reuse).

Nothing changes there between two selections, so the hidden states at the boundary are stored the
first time that a sample passes and put in from then on; the blocks below are skipped. Related:
AutoFreeze (arXiv 2102.01386). `ReusingStep` stands in for `LossStep`; nobody else needs to know.

- The boundary follows from which parameters require a gradient at the moment of the call, so a pass
  that trains everything (measuring importance) is a plain one, whoever asks for it.
- Rows are kept for as long as the weights below them are what they were: their digest is compared
  whenever something below the boundary has been trainable in between. A boundary that rises leaves
  its rows in use, one that sinks discards them.
- A sample is known by its tokens, so batches may be grouped anew, and validation is reused too. A
  batch of which one row is missing is computed whole, as it would have been without the store.
- The frozen part runs in evaluation mode: its dropout is off. Everything from the boundary on keeps
  the mode that it is in.
- Whether a model can be cut at a boundary is tried on two short rows before it is relied on.

In float32 on the CPU hidden states computed in a batch of another composition may differ in the
last bits (matrix kernels choose their blocking by size); docs/prefix-reuse.md has measurements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.training.interval import NOTHING_SPARED, Spared
from core.training.prefix_cut import captured, put_in
from core.training.prefix_layout import (
    NOWHERE,
    Layout,
    as_evaluated,
    find_layout,
    probe_batch,
)
from core.training.pricing import Price, Shape, price_blocks
from core.training.row_store import RowStore
from core.training.step import (
    IGNORED,
    Batch,
    LossStep,
    StepInputs,
    StepOutput,
    Stored,
    needs_mask,
)

#: relative difference up to which logits with and without reuse count as the same computation:
#: rows stored as computed, or rounded to eight bits
_EXACT_TOLERANCE, _ROUNDED_TOLERANCE = 1e-4, 5e-2
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixReuse:
    """What the store may take. ``dtype`` None: as computed, exact; bfloat16: half the room.

    ``spared``: what each boundary spares the mean step, for selections to count on; None where
    there may not be room for every row, so that nothing may be counted on.
    """

    memory_bytes: int
    disk_bytes: int = 0
    #: of the file that holds what memory does not
    folder: Path | None = None
    dtype: torch.dtype | None = None
    spared: Spared | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample of a batch: digest of its tokens, and how many are real on each side."""

    key: bytes
    n_tokens: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInputs(StepInputs):
    rows: tuple[Row, ...]


def loss_step(
    model: Any,
    *,
    keeps_mask: bool,
    autocast_dtype: torch.dtype | None,
    reuse: PrefixReuse | None,
    forward: Price,
) -> LossStep:
    """The forward pass of a run: a `ReusingStep` where asked for and possible.

    Args:
        forward: price of the whole pass.
    """
    # a model that looks ahead or over the padding may see more than its own row
    is_separable = bool(model.config.is_encoder_decoder) or not keeps_mask
    layout = find_layout(model) if reuse is not None and is_separable else None
    if reuse is None or layout is None:
        return LossStep(model, keeps_mask=keeps_mask, autocast_dtype=autocast_dtype)
    return ReusingStep(
        model,
        layout,
        reuse,
        keeps_mask=keeps_mask,
        autocast_dtype=autocast_dtype,
        forward=forward,
    )


def spared_by_reuse(model: Any, shapes: Sequence[Shape], forward: Price) -> Spared:
    """What the mean batch of ``shapes`` is spared once its samples are stored; nothing where the
    model cannot be cut. The model is as it was afterwards.
    """
    step = loss_step(
        model,
        keeps_mask=needs_mask(model),
        autocast_dtype=None,
        reuse=PrefixReuse(memory_bytes=0),
        forward=forward,
    )
    return step.spared(shapes) if isinstance(step, ReusingStep) else NOTHING_SPARED


class ReusingStep(LossStep):
    """A `LossStep` that skips what it has stored. ``layout`` is the model's own."""

    def __init__(
        self,
        model: Any,
        layout: Layout,
        reuse: PrefixReuse,
        *,
        keeps_mask: bool,
        autocast_dtype: torch.dtype | None,
        forward: Price,
    ) -> None:
        super().__init__(model, keeps_mask=keeps_mask, autocast_dtype=autocast_dtype)
        self._layout = layout
        self._dtype = reuse.dtype
        self._tolerance = _EXACT_TOLERANCE if reuse.dtype is None else _ROUNDED_TOLERANCE
        self._parameters = [(p, layout.first_use[name]) for name, p in model.named_parameters()]
        self.store = RowStore(
            memory_bytes=reuse.memory_bytes, disk_bytes=reuse.disk_bytes, folder=reuse.folder
        )
        #: station that rows are stored for, steps done when the first was, digest of the weights
        #: before it, and whether nothing can have changed since they were compared
        self._boundary = NOWHERE
        self._since = 0
        self._fingerprint = b""
        self._is_verified = False
        self._can_cut: dict[int, bool] = {}
        #: boundary -> what hidden states at its cuts are computed in
        self._computed: dict[int, tuple[torch.dtype, ...]] = {}
        self._forward = forward
        self._block_prices: dict[str, Price] = {}
        self._prices: dict[int, Price] = {}

    def inputs(self, batch: Batch) -> StepInputs:
        plain = super().inputs(batch)
        rows = _rows(batch, is_pair=self._is_encoder_decoder)
        if rows is None:
            return plain
        return RowInputs(**{f.name: getattr(plain, f.name) for f in fields(plain)}, rows=rows)

    def __call__(self, inputs: StepInputs) -> StepOutput:
        boundary = self._usable_boundary()
        if boundary == NOWHERE or not isinstance(inputs, RowInputs):
            return super().__call__(inputs)
        stored = [self.store.get(row.key) for row in inputs.rows]
        whole = [row for row in stored if row is not None]
        if len(whole) < len(stored):
            with captured(self.model, self._layout, boundary) as hidden:
                output = super().__call__(inputs)
            self._keep(inputs.rows, boundary, hidden)
            return output
        with put_in(self.model, self._layout, boundary, self._batched(boundary, whole, inputs)):
            output = super().__call__(inputs)
        return replace(output, saved_flops=self._skipped(boundary)(inputs.shape))

    @property
    def stored(self) -> Stored | None:
        if self._boundary == NOWHERE or not self._is_verified:
            return None  # what lies below is being trained
        return Stored(boundary=self._boundary, since=self._since)

    def take_up(self, stored: Stored) -> None:
        """The weights before the boundary are those of ``stored``; what is trained may be above."""
        if self._cuttable(stored.boundary) == stored.boundary:
            self._begin(stored.boundary, since=stored.since)

    @torch.no_grad()
    def refill(self, _seen: Iterable[StepInputs]) -> float:
        """In the order and composition of the first time, for the same bits."""
        flops = 0.0
        if self._usable_boundary() == NOWHERE:
            return flops
        with as_evaluated(self.model):
            for inputs in _seen:
                rows = inputs.rows if isinstance(inputs, RowInputs) else ()
                if any(row.key not in self.store for row in rows):
                    flops += self._forward(inputs.shape)
                    self(inputs)
        return flops

    def _usable_boundary(self) -> int:
        """The station to fill or reuse rows at, the store made ready for it; or NOWHERE."""
        lowest = min((use for p, use in self._parameters if p.requires_grad), default=NOWHERE)
        if self._boundary != NOWHERE and lowest >= self._boundary and self._is_unchanged():
            return self._boundary
        # something below may be about to be trained
        self._is_verified = False
        lowest = self._cuttable(lowest)
        if lowest == NOWHERE:
            return NOWHERE
        self._begin(lowest, since=self.at_step)
        return lowest

    def _begin(self, boundary: int, *, since: int) -> None:
        self.store.clear()
        self._boundary, self._since = boundary, since
        self._fingerprint, self._is_verified = self._digest(boundary), True

    def forget(self) -> None:
        """Begin anew: the next pass fills the store, at the boundary that it finds."""
        self.store.clear()
        self._boundary = NOWHERE

    def _cuttable(self, lowest: int) -> int:
        """The highest boundary up to ``lowest`` that the model can be cut at, or NOWHERE."""
        for boundary in range(lowest, NOWHERE, -1):
            if self._layout.cuts(boundary) and self._checked(boundary):
                return boundary
        return NOWHERE

    def _is_unchanged(self) -> bool:
        """Whether the weights below the stored rows are what they were; compared when in doubt."""
        self._is_verified = self._is_verified or self._fingerprint == self._digest(self._boundary)
        return self._is_verified

    def _digest(self, boundary: int) -> bytes:
        """Of every weight that hidden states at ``boundary`` can depend on."""
        digest = hashlib.blake2b(digest_size=_KEY_BYTES)
        for parameter, use in self._parameters:
            if use < boundary:
                flat = parameter.detach().contiguous().view(-1).view(torch.uint8)
                digest.update(flat.cpu().numpy())
        return digest.digest()

    def _checked(self, boundary: int) -> bool:
        """Whether two rows give the same logits with and without the part before ``boundary``."""
        if boundary not in self._can_cut:
            try:
                self._can_cut[boundary] = self._agrees(boundary)
            except (RuntimeError, TypeError, AttributeError, LookupError, ValueError):
                # the model misses something of what was skipped: it is not for cutting here
                self._can_cut[boundary] = False
        return self._can_cut[boundary]

    @torch.no_grad()
    def _agrees(self, boundary: int) -> bool:
        inputs = self.inputs(probe_batch(self.model, is_padded=True))
        assert isinstance(inputs, RowInputs), "the probe is padded on the right"
        with as_evaluated(self.model):
            expected = self.logits(inputs).float()
            with captured(self.model, self._layout, boundary) as hidden:
                self.logits(inputs)
            self._computed[boundary] = tuple(each.dtype for each in hidden)
            rows = [self._trimmed(row, at, boundary, hidden) for at, row in enumerate(inputs.rows)]
            with put_in(self.model, self._layout, boundary, self._batched(boundary, rows, inputs)):
                found = self.logits(inputs).float()
        return bool((found - expected).norm() <= self._tolerance * expected.norm())

    def _keep(self, rows: Sequence[Row], boundary: int, hidden: Sequence[Tensor]) -> None:
        for at, row in enumerate(rows):
            if row.key not in self.store:
                self.store.put(row.key, self._trimmed(row, at, boundary, hidden))

    def _trimmed(
        self, row: Row, at: int, boundary: int, hidden: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Row ``at`` of a batch's hidden states at each cut, real tokens only."""
        sides = [self._layout.chains[cut.chain].side for cut in self._layout.cuts(boundary)]
        return tuple(
            each[at, : row.n_tokens[side]].to(self._dtype or each.dtype)
            for side, each in zip(sides, hidden, strict=True)
        )

    def _batched(
        self, boundary: int, rows: Sequence[tuple[Tensor, ...]], inputs: StepInputs
    ) -> list[Tensor]:
        """(B, T or U, width) at each cut; zeros on padding, which no real token looks at."""
        _, T, U, _ = inputs.shape
        device = inputs.positions_N.device
        batched = []
        for place, cut in enumerate(self._layout.cuts(boundary)):
            chain, dtype = self._layout.chains[cut.chain], self._computed[boundary][place]
            n_columns = T if chain.side == "input" else U
            whole = torch.zeros(len(rows), n_columns, chain.width, dtype=rows[0][place].dtype)
            for at, row in enumerate(rows):
                whole[at, : len(row[place])] = row[place]
            batched.append(whole.to(device, dtype, non_blocking=True))
        return batched

    def spared(self, shapes: Sequence[Shape]) -> Spared:
        """What the mean forward pass of ``shapes`` is spared at every boundary that can be used."""
        flops, sure = [], 0.0
        for boundary in range(len(self._layout.stations)):
            if self._cuttable(boundary) == boundary:
                price = self._skipped(boundary)
                sure = max(sure, sum(map(price, shapes)) / len(shapes))
            flops.append(sure)
        return Spared(boundary=self._layout.first_use, flops=tuple(flops))

    def _skipped(self, boundary: int) -> Price:
        """Price of what a forward pass is spared."""
        layout = self._layout
        if not self._block_prices:
            paths = [block.path for chain in layout.chains for block in chain.blocks]
            self._block_prices = price_blocks(self.model, paths)
        if boundary not in self._prices:
            parts = [
                self._block_prices[block.path].coefficients
                for cut in layout.cuts(boundary)
                for block in layout.skipped(cut).values()
            ]
            self._prices[boundary] = Price(coefficients=np.sum(parts, axis=0))
        return self._prices[boundary]


def _rows(batch: Batch, *, is_pair: bool) -> tuple[Row, ...] | None:
    """None where padding is anywhere but on the right: the real tokens would not be a beginning."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    n_inputs = mask.sum(1)
    if not torch.equal(mask, (torch.arange(mask.shape[1]) < n_inputs[:, None]).to(mask.dtype)):
        return None
    places = torch.arange(1, labels.shape[1] + 1)
    n_replies = ((labels != IGNORED) * places).amax(1)
    rows = []
    for at, (n_input, n_reply) in enumerate(
        zip(n_inputs.tolist(), n_replies.tolist(), strict=True)
    ):
        digest = hashlib.blake2b(ids[at, :n_input].numpy().tobytes(), digest_size=_KEY_BYTES)
        if is_pair:
            digest.update(b"|" + labels[at, :n_reply].numpy().tobytes())
        sides = {"input": n_input, "reply": n_reply}
        rows.append(Row(key=digest.digest(), n_tokens=sides))
    return tuple(rows)
