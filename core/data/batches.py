"""The order of samples in an epoch, and the padding of a batch.

Samples are shuffled, cut into windows of some dozens of batches, sorted by length inside each
window, and the batches shuffled again: each batch pads to its own longest sample and little is
padded, while the order stays random. The order is a pure function of seed and epoch, so a run can
be continued at any step without replaying what came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.data.tokens import IGNORED, Sample
from core.errors import InvalidInput

# Larger windows pad less and mix less.
_WINDOW_BATCHES = 50
_LENGTH_ORDER, _BATCH_ORDER = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """``step`` counts batches over all epochs from 0; ``indices`` point into the data set."""

    step: int
    epoch: int
    indices: tuple[int, ...]


class BatchPlan:
    """Batches of ``batch_size`` samples grouped by ``lengths`` (tokens); the last one of an epoch's
    cut may be smaller, none is dropped. The batch with the longest sample comes first in each
    epoch, so that a batch too large for the memory shows at once.

    Raises:
        InvalidInput: no samples, or a batch size below 1.
    """

    def __init__(
        self, lengths: Sequence[int] | npt.NDArray[np.int64], batch_size: int, seed: int
    ) -> None:
        if not len(lengths):
            raise InvalidInput("There is no sample to make batches of.")
        if batch_size < 1:
            raise InvalidInput(f"batch_size must be 1 or more; got {batch_size}.")
        self._lengths = np.asarray(lengths, np.int64)
        self._batch_size = batch_size
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of epoch ``number`` (from 0) in order: every sample exactly once."""
        order = _shuffled(len(self._lengths), self._seed, number, _LENGTH_ORDER)
        window = self._batch_size * _WINDOW_BATCHES
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [
                part[at : at + self._batch_size].tolist()
                for at in range(0, len(part), self._batch_size)
            ]
        turns = _shuffled(len(batches), self._seed, number, _BATCH_ORDER).tolist()
        batches = [batches[turn] for turn in turns]
        longest = max(range(len(batches)), key=lambda at: self._lengths[batches[at][0]])
        batches[0], batches[longest] = batches[longest], batches[0]
        return batches

    def batches(self, start_step: int = 0) -> Iterator[PlannedBatch]:
        """Batches from ``start_step`` on, epoch after epoch, without end."""
        epoch, skipped = divmod(start_step, self.steps_per_epoch)
        step = start_step
        while True:
            for indices in self.epoch(epoch)[skipped:]:
                yield PlannedBatch(step=step, epoch=epoch, indices=tuple(indices))
                step += 1
            epoch, skipped = epoch + 1, 0


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    """One batch, padded on the right to its own longest sample.

    Returns:
        ``input_ids``, ``attention_mask``: int64 (samples, tokens); ``labels``: int64 (samples,
        tokens), or (samples, reply tokens) where replies are apart; -100 on padding.
    """
    inputs = [sample.input_ids for sample in samples]
    input_ids = _pad(inputs, pad_id)
    n_tokens = torch.tensor([len(ids) for ids in inputs])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < n_tokens[:, None]).long(),
        "labels": _pad([sample.labels for sample in samples], IGNORED),
    }


def _pad(rows: Sequence[npt.NDArray[np.int32]], filler: int) -> torch.Tensor:
    padded = np.full((len(rows), max(len(row) for row in rows)), filler, np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def _shuffled(n: int, seed: int, epoch: int, purpose: int) -> npt.NDArray[np.int64]:
    """A permutation of range(n) by hashed keys (splitmix64; Steele, Lea and Flood 2014).

    numpy may change its generators' streams between versions; a resumed job must not notice.
    """
    stream = np.array([seed, epoch, purpose], np.uint64)
    state = np.uint64(0)
    for part in stream:
        state = _splitmix64(np.array([state ^ part]))[0]
    keys = _splitmix64(np.arange(n, dtype=np.uint64) + state)
    return np.argsort(keys, kind="stable")


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
