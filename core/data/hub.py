"""Data sets of the Hugging Face hub, row by row. A data set's code is never run.

`datasets` has dropped loading scripts; sets that still consist of one are read from the Parquet
copy that the hub keeps of them on the branch ``refs/convert/parquet``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from core.data.tables import Row
from core.data.tasks import HubSet, Task
from core.errors import InvalidInput, StorageUnavailable, Unavailable


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


def download(task: Task, split: str, folder: Path, *, is_offline: bool = False) -> Path:
    """The task's data set from the hub as a local table: ``<task>-<split>.jsonl`` in ``folder``,
    with the hub's columns. One that is there is taken as it is. ``is_offline``: as in `hub_rows`.

    Raises:
        InvalidInput: no such split.
        Unavailable: as `hub_rows`.
        StorageUnavailable: the disk does not take it.
    """
    path = folder / f"{task.name}-{split}.jsonl"
    if path.exists():
        return path
    rows = hub_rows(task.hub, split, tuple(task.columns.values()), is_offline=is_offline)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            fresh = Path(scratch) / path.name
            with fresh.open("w", encoding="utf-8", newline="\n") as out:
                for row in rows:
                    out.write(json.dumps(dict(row.values), ensure_ascii=False) + "\n")
            fresh.rename(path)
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be written: {error}.") from error
    return path
