"""Whether a run stores the hidden states below what it trains, and how much room they get."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from core.data.tokens import TokenDataset
from core.spec import STORING_METHODS
from core.training.interval import Spared
from core.training.methods import Method
from core.training.prefix import PrefixReuse
from core.training.row_store import free_disk_bytes
from core.training_options import TrainingOptions

#: of the memory and of the disk that are free when the run begins: others work here, too
_SHARE: Final = 4
_ROW_DTYPE_BYTES: Final = 4


def prefix_reuse(
    training: TrainingOptions,
    method: Method,
    model: Any,
    *,
    data: Sequence[TokenDataset],
    n_epochs: float,
    folder: Path | None,
    spared: Callable[[], Spared],
) -> PrefixReuse | None:
    """None: nothing is stored. By ``auto``, rows are stored where more than one pass over the same
    data falls between two selections and there is room for all of them. Only with that room may
    selections count on what is spared.

    Args:
        training: epochs resolved.
        data: all that passes through the model again and again.
        n_epochs: passes over the training data, a fraction where the run ends within one.
        folder: of the file that holds what memory does not; None: the system's own.
        spared: what stored rows spare; measured only where rows will be stored.
    """
    if training.prefix_reuse == "off" or method.name not in STORING_METHODS:
        return None
    room = PrefixReuse(
        memory_bytes=psutil.virtual_memory().available // _SHARE,
        disk_bytes=free_disk_bytes(folder) // _SHARE,
        folder=folder,
    )
    interval = (training.selection_interval or n_epochs) if method.reselects else math.inf
    width = model.get_output_embeddings().weight.shape[1]
    sides = 2 if model.config.is_encoder_decoder else 1
    n_bytes = sum(part.report.n_tokens for part in data) * width * sides * _ROW_DTYPE_BYTES
    fits = n_bytes <= room.memory_bytes + room.disk_bytes
    is_repeated = min(interval, n_epochs) > 1
    if is_repeated and fits:
        return dataclasses.replace(room, spared=spared())
    return room if training.prefix_reuse == "on" else None
