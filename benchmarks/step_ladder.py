"""What each part of the training step saves, from a naive loop to ours, and Hugging Face's Trainer.

    python benchmarks/step_ladder.py [--data FOLDER] [--rounds 5] [--out docs/training-step.md]

FOLDER holds train.jsonl (default: the demo's docstring pairs, built here). Everything runs in
turn, once a round, on the same samples: batches grouped by length from the data's first epoch, or
the same samples in batches drawn at random. One round warms up, one more measures memory. Seconds
are whole steps (forward, backward, clip, update) over the real tokens in them; ratios are taken
within a round.

Trainer drives the rounds: its own loop runs, and whatever else is measured runs between its steps.

Peak memory: weights, the contender's own optimiser state, and the growth of the process's resident
memory in one step, after the allocator has given back what it had kept (cards: torch's own count).
The section "Measured" of ``--out`` is written anew; what stands above it stays.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import docstrings_unless
from benchmarks.measure import machine, table
from benchmarks.step_contenders import MAX_NORM, RATE, Contender, contenders
from core.data.batches import collate
from core.settings import DEMO_MODEL, Settings
from core.spec import GreenOptions, JobSpec
from core.training.numerics import choose_numerics, computes_in_bfloat16
from core.training.step import Batch
from core.training_options import TrainingOptions
from worker.prepare import Prepared, prepare

MEASURED = "## Measured"
_STATUS = Path("/proc/self/status")


class Rounds(TrainerCallback):
    """Times Trainer's own steps, and between them everybody else's."""

    def __init__(
        self,
        trainer_line: Contender,
        others: Sequence[Contender],
        batches: Mapping[bool, Sequence[Batch]],
    ) -> None:
        self._trainer_line, self._others, self._batches = trainer_line, others, batches
        self._started: tuple[float, int] = (0.0, 0)

    def on_step_begin(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        is_last = state.global_step == len(self._batches[True]) - 1
        self._started = _begin(is_last)

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **given: Any) -> None:
        at = state.global_step - 1
        state_of, weights = given["optimizer"].state, given["model"].parameters()
        self._trainer_line.held_bytes = lambda: (
            sum(p.nbytes for p in weights)
            + sum(t.nbytes for each in state_of.values() for t in each.values())
        )
        _end(self._trainer_line, self._batches[True][at], self._started, at)
        for each in self._others:
            batch = self._batches[each.is_grouped][at]
            started = _begin(at == self._n - 1)
            each.step(batch)
            _end(each, batch, started, at)
        print(f"round {at + 1} of {self._n}", file=sys.stderr, flush=True)

    @property
    def _n(self) -> int:
        return len(self._batches[True])


def main() -> int:
    arguments = _arguments()
    transformers.utils.logging.set_verbosity_error()
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = _prepare(arguments, Path(scratch))
        batches = _batches(prepared, arguments.rounds + 2, arguments.seed)
        ladder, methods = contenders(prepared, batches[True], arguments.max_length)
        trainer_line = Contender(
            label="Hugging Face Trainer: group_by_length, fused AdamW", step=lambda _: None
        )
        trainer_line.precision = _best_precision()
        _run(prepared, Rounds(trainer_line, [*ladder, *methods], batches), batches[True], scratch)
    ladder.append(trainer_line)
    text = _section(arguments, ladder, methods, time.perf_counter() - started_s)
    print(text)
    if arguments.out is not None:
        above = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else ""
        kept = above.partition(MEASURED)[0].rstrip()
        arguments.out.write_text(f"{kept}\n\n{text}\n".lstrip(), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl")
    parser.add_argument("--model", default=DEMO_MODEL, help="id or folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256, help="naive padding, tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file whose measurements are rewritten")
    return parser.parse_args()


def _prepare(arguments: argparse.Namespace, scratch: Path) -> Prepared:
    folder = docstrings_unless(arguments.data, scratch)
    settings = Settings()
    spec = JobSpec(
        model=arguments.model,
        training_file="train.jsonl",
        seed=arguments.seed,
        training=TrainingOptions(n_epochs=1, batch_size=arguments.batch_size),
        green=GreenOptions(method="full"),
    )
    return prepare(
        spec,
        training_path=folder / "train.jsonl",
        models={arguments.model: arguments.model if Path(arguments.model).is_dir() else None},
        cache=settings.home.expanduser() / "models",
    )


def _batches(prepared: Prepared, count: int, seed: int) -> dict[bool, list[Batch]]:
    """Batches spread over the first epoch, and their samples in batches drawn at random; last the
    longest, where memory is measured.
    """
    feed = prepared.feed()
    assert feed.batches_per_epoch >= count, "the data has fewer batches than there are rounds"
    stride = feed.batches_per_epoch / count
    grouped = [feed.batch(0, int(at * stride)) for at in range(count)]
    grouped.sort(key=lambda batch: batch["input_ids"].numel())
    # in rounds of mixed lengths, the longest at the end
    order = random.Random(seed)
    middle = grouped[:-1]
    order.shuffle(middle)
    grouped = [*middle, grouped[-1]]
    rows = [_row(batch, at) for batch in grouped for at in range(len(batch["labels"]))]
    order.shuffle(rows)
    size = len(grouped[0]["labels"])
    mixed = [
        collate([_Row(*row) for row in rows[at : at + size]], prepared.pad_id)  # type: ignore[misc]
        for at in range(0, len(rows), size)
    ]
    return {True: grouped, False: mixed[:count]}


@dataclass(frozen=True, slots=True)
class _Row:
    input_ids: Any
    labels: Any


def _row(batch: Batch, at: int) -> tuple[Any, Any]:
    n_tokens = int(batch["attention_mask"][at].sum())
    return tuple(batch[name][at, :n_tokens].int().numpy() for name in ("input_ids", "labels"))  # type: ignore[return-value]


class _Planned(Dataset[Batch]):
    """Item ``n`` is the whole batch of round ``n``."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, at: int) -> Batch:
        return self._batches[at]


def _run(prepared: Prepared, rounds: Rounds, batches: Sequence[Batch], scratch: str) -> None:
    """Trainer's loop on a copy of the model, in its guides' settings."""
    on_card = torch.cuda.is_available()
    trainer = Trainer(
        model=copy.deepcopy(prepared.loaded.model).requires_grad_(True),
        args=TrainingArguments(
            output_dir=scratch,
            max_steps=len(batches),
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=RATE,
            max_grad_norm=MAX_NORM,
            optim="adamw_torch_fused",
            bf16=_best_precision() == "bf16",
            use_cpu=not on_card,
            dataloader_pin_memory=on_card,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=_Planned(batches),
        data_collator=lambda one: one[0],
        callbacks=[rounds],
    )
    trainer.train()


def _best_precision() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if computes_in_bfloat16(device) else "fp32"


def _begin(measures_memory: bool) -> tuple[float, int]:
    _synchronise()
    return time.perf_counter(), _resting_bytes() if measures_memory else 0


def _end(line: Contender, batch: Batch, started: tuple[float, int], at: int) -> None:
    """Round 0 warms up; the one that began with memory counts memory alone."""
    _synchronise()
    spent_s = time.perf_counter() - started[0]
    if started[1]:
        line.peak_bytes = line.held_bytes() + _grown_bytes(started[1])
    elif at > 0:
        line.ms_per_token.append(1e3 * spent_s / int(batch["attention_mask"].sum()))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _resting_bytes() -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _grown_bytes(resting: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() - resting
    return _status("VmHWM") - resting


def _status(name: str) -> int:
    """Bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE):
            return 1024 * int(found[1])
    return 0


def _section(
    arguments: argparse.Namespace,
    ladder: Sequence[Contender],
    methods: Sequence[Contender],
    took_s: float,
) -> str:
    data = "the demo's docstring pairs" if arguments.data is None else arguments.data.name
    best = next(m for m in methods if (m.label, m.precision) == ("full", _best_precision()))
    rows = [*ladder[:-1], best, ladder[-1]]
    on_cpu = not torch.cuda.is_available()
    last = "attention of short samples in float32" if on_cpu else "bf16 autocast"
    labels = {id(best): f"{last}: ours" if best.precision == "bf16" else "ours"}
    probe = choose_numerics(precision="fp32").probe
    lines = [
        MEASURED,
        "",
        (
            f"`python benchmarks/step_ladder.py`: {Path(arguments.model).name}, {data}, batch "
            f"{arguments.batch_size}, median of {arguments.rounds} interleaved rounds (lowest to "
            f"highest), ratios within a round; {machine()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}; {took_s:.0f} s in all. Start-up probe: "
            f"{probe or 'none'}. MiB: peak of one process, on the longest batch of the run."
        ),
        "",
        table(
            ["full fine-tuning", "ms a real token", "naive over it", "over ours", "MiB"],
            [_ladder_row(each, ladder[0], best, labels) for each in rows],
        ),
        "",
        "To full fine-tuning of the same precision; estimate: `core.training.memory`.",
        "",
        table(
            ["method", "precision", "FLOPs", "time", "ms a real token", "MiB", "MiB, estimate"],
            [_method_row(each, methods) for each in methods],
        ),
    ]
    return "\n".join(lines)


def _ladder_row(
    line: Contender, naive: Contender, ours: Contender, labels: Mapping[int, str]
) -> list[str]:
    return [
        labels.get(id(line), line.label),
        _spread(line.ms_per_token, "{:.3g}"),
        _spread(_ratios(naive, line), "{:.2f}"),
        _spread(_ratios(line, ours), "{:.2f}"),
        f"{line.peak_bytes / 2**20:.0f}",
    ]


def _method_row(line: Contender, methods: Sequence[Contender]) -> list[str]:
    full = next(m for m in methods if (m.label, m.precision) == ("full", line.precision))
    return [
        line.label,
        line.precision,
        f"{line.flops_share:.3f}",
        _spread(_ratios(line, full), "{:.3f}"),
        _spread(line.ms_per_token, "{:.3g}"),
        f"{line.peak_bytes / 2**20:.0f}",
        f"{(line.estimated_bytes or 0) / 2**20:.0f}",
    ]


def _ratios(one: Contender, other: Contender) -> list[float]:
    return [a / b for a, b in zip(one.ms_per_token, other.ms_per_token, strict=True)]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{form.format(middle)} ({form.format(low)} to {form.format(high)})"


if __name__ == "__main__":
    sys.exit(main())
