"""Data sets of the Hugging Face hub, row by row. A data set's code is never run.

`datasets` has dropped loading scripts; sets that still consist of one are read from the Parquet
copy that the hub keeps of them on the branch ``refs/convert/parquet``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from core.data.tables import Row
from core.errors import InvalidInput, Unavailable

PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A data set on the hub.

    ``files``: pattern of the files of a split, with ``{split}`` in it; None: as the set says.
    ``splits``: those that have answers.
    """

    name: str
    splits: tuple[str, ...]
    revision: str | None = None
    files: str | None = None


def hub_rows(
    source: HubSet, split: str, columns: Collection[str], *, is_offline: bool = False
) -> Iterator[Row]:
    """The rows of ``split`` in order, numbered from 1; downloaded once, then from the cache.

    ``is_offline``: look into the cache only, instead of trying to connect for half a minute.

    Raises:
        InvalidInput: the set has no such split or lacks a column.
        Unavailable: neither the hub nor its cache on this machine has it.
    """
    if split not in source.splits:
        raise InvalidInput(
            f"{source.name} has no split {split!r} with answers; there are: "
            f"{', '.join(source.splits)}.",
            param="task",
        )
    # two seconds that only readers of the hub should pay
    import datasets  # noqa: PLC0415

    files = None if source.files is None else {split: source.files.format(split=split)}
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or is_offline
    try:
        table = datasets.load_dataset(
            source.name, split=split, revision=source.revision, data_files=files
        )
    except (OSError, ValueError, RuntimeError) as error:
        # `datasets` names its failures as these three: no connection, no such set, a broken one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(
            f"The data set {source.name} cannot be loaded from the hub: {reason}. Connect to the "
            "hub, or give the rows as a local .jsonl, .csv or .parquet file with the same columns "
            f"({', '.join(columns)}; others can be named with columns).",
            param="task",
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InvalidInput(
            f"{source.name} has no column {missing[0]!r}; its columns are: "
            f"{', '.join(table.column_names)}.",
            param="columns",
        )
    for at, values in enumerate(table.select_columns(list(columns))):
        yield Row(line=at + 1, values=values)
