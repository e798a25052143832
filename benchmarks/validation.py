"""How long the validation of 100 MB takes, and what it costs in memory.

    python -m benchmarks.validation [--megabytes 100]

Four files: chats of 1 KB, chats of 20 KB, the shortest completions that there are (the most lines a
megabyte can hold, up to the most examples allowed), and chats in escaped non-Latin text (every line
takes the careful path).
CPU seconds of one core, best of two; peak memory of Python objects, from a second pass.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from core.data.validation import DataLimits, validate

MB = 1_000_000
LIMITS = DataLimits()
WORDS = [f"word{number}" for number in range(2000)]
CYRILLIC = ["слово", "модель", "данные", "проверка", "обучение"]


def chat(rng: random.Random, words: list[str], n_words: int) -> bytes:
    text = " ".join(rng.choices(words, k=n_words))
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text[: len(text) // 8 + 1]},
    ]
    return json.dumps({"messages": messages}).encode()


def shortest(rng: random.Random) -> bytes:
    return b'{"prompt":"%d","completion":"b"}' % rng.randrange(10**6)


CASES: dict[str, Callable[[random.Random], bytes]] = {
    "chat, 1 KB a line": lambda rng: chat(rng, WORDS, 105),
    "chat, 20 KB a line": lambda rng: chat(rng, WORDS, 2200),
    "completion, 38 bytes a line": shortest,
    "chat, escaped non-Latin": lambda rng: chat(rng, CYRILLIC, 25),
}


def lines(make: Callable[[random.Random], bytes], n_bytes: int) -> Iterator[bytes]:
    rng = random.Random(0)
    written = 0
    for _ in range(LIMITS.max_examples):
        if written >= n_bytes:
            break
        line = make(rng) + b"\n"
        written += len(line)
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=100.0)
    n_bytes = int(parser.parse_args().megabytes * MB)
    print(f"{'file':30} {'MB':>6} {'lines':>9} {'CPU s':>7} {'s/100 MB':>9} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in CASES.items():
            path = Path(folder) / "data.jsonl"
            with path.open("wb") as out:
                out.writelines(lines(make, n_bytes))
            size = path.stat().st_size
            times_s = []
            for _ in range(2):
                started = time.process_time()
                report = validate(path, limits=LIMITS)
                times_s.append(time.process_time() - started)
            assert report.ok, report.first_message
            tracemalloc.start()
            validate(path, limits=LIMITS)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            best_s = min(times_s)
            n_mb = size / MB
            print(
                f"{name:30} {n_mb:6.1f} {report.n_examples:9} {best_s:7.2f} "
                f"{best_s * 100 / n_mb:9.2f} {peak / MB:8.1f}"
            )


if __name__ == "__main__":
    main()
