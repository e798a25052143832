"""A benchmark's runs in processes of their own, several at a time."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T", bound=Hashable)


def run_all(
    startable: Callable[[], Iterable[T]],
    do: Callable[[T], None],
    *,
    n_jobs: int,
    at_most: int,
) -> list[T]:
    """Do what ``startable`` names, first things first, until it names nothing new; those that
    failed, whose trace is printed.

    A process does one run, so that its peak memory is the run's own; where a card counts its memory
    itself, a process goes on with the next.

    Args:
        startable: what is not done and may be begun now; asked again after each run, since runs may
            make others known. Runs under way, begun or failed before are left out.
        do: picklable, with a picklable argument.
    """
    context = multiprocessing.get_context("spawn")
    runs_each = None if torch.cuda.is_available() else 1
    begun: set[T] = set()
    failed: list[T] = []
    running: dict[Future[None], T] = {}
    with ProcessPoolExecutor(n_jobs, mp_context=context, max_tasks_per_child=runs_each) as pool:
        while True:
            for each in startable():
                if len(running) < n_jobs and len(begun) < at_most and each not in begun:
                    begun.add(each)
                    running[pool.submit(do, each)] = each
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                if error := future.exception():
                    traceback.print_exception(error)
                    failed.append(one)
