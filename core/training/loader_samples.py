"""Batches of a trainer's own data, drawn beside its loader, which does not move.

Random numbers stay what they were, for collators may draw some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

import torch

from core.errors import InvalidInput
from core.training.step import IGNORED

CollatedBatch = dict[str, torch.Tensor]


def drawn_batches(loader: Any, *, seed: str, n_batches: int, size: int) -> list[CollatedBatch]:
    """``n_batches`` of ``size`` samples, of all samples alike; fewer where there are no more.

    Raises InvalidInput where the data has no length.
    """
    return _collated(loader, _picked(loader, seed, n_batches, size))


def labelled_halves(
    loader: Any, *, seed: str, n_batches: int, size: int, is_shifted: bool
) -> list[CollatedBatch]:
    """Of ``n_batches``, each half followed by its other half; a lone sample is its own other half.

    A sample without any label says nothing: a half of such would make every tensor worthless. Only
    samples with labels are drawn; in our own loop the data has no others.

    Args:
        is_shifted: a row's first label is predicted by nothing (causal models).

    Raises InvalidInput where no sample has a label, or the data no length.
    """

    def is_labelled(at: int) -> bool:
        (batch,) = _collated(loader, [[at]])
        return _has_label(batch, is_shifted=is_shifted)

    picked = _picked(loader, seed, n_batches, size, is_labelled)
    if not picked[0]:
        raise InvalidInput(
            f"None of the {len(loader.dataset)} training samples has a label to learn from: all "
            f"are {IGNORED}. Where answers were cut away, raise max_length or shorten the prompts."
        )
    return _collated(loader, [half or part for part in picked for half in (part[::2], part[1::2])])


def _picked(
    loader: Any,
    seed: str,
    n_batches: int,
    size: int,
    suits: Callable[[int], bool] = lambda _: True,
) -> list[list[int]]:
    """The same ones for the same ``seed``."""
    try:
        n_samples = len(loader.dataset)
    except TypeError as error:
        raise InvalidInput(
            "GreenTrainerCallback draws its probe batches by index; the training data must have a "
            "length (no streaming)."
        ) from error
    rng = Random(seed)  # noqa: S311  no secret
    return [list(islice(filter(suits, _shuffled(n_samples, rng)), size)) for _ in range(n_batches)]


def _shuffled(n_samples: int, rng: Random) -> Iterator[int]:
    """All of them in random order, at the cost of those that are taken."""
    moved: dict[int, int] = {}
    for n_left in range(n_samples, 0, -1):
        at = rng.randrange(n_left)
        yield moved.get(at, at)
        moved[at] = moved.get(n_left - 1, n_left - 1)


def _has_label(batch: Mapping[str, Any], *, is_shifted: bool) -> bool:
    """Of losses that take other names than ``labels`` nothing is known."""
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor):
        return True
    predicted = labels[:, 1:] if is_shifted and labels.ndim == 2 else labels
    return bool((predicted != IGNORED).any())


def _collated(loader: Any, parts: Sequence[Sequence[int]]) -> list[CollatedBatch]:
    data = loader.dataset
    with torch.random.fork_rng():
        return [dict(loader.collate_fn([data[i] for i in part])) for part in parts]
