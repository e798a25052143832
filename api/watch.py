"""A job's progress in the terminal: a live bar where there is one, a line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from api.client import Client
from api.edge import err, out, saying
from core.errors import GreentuneError

NO_VALUE = "-"


def follow_to_the_end(client: Client, job_id: str, console: Console) -> None:
    """Show the job on ``console`` until it has ended, and say on stdout which model it made.

    Raises:
        GreentuneError: it did not succeed.
    """
    with saying(err, f"The job goes on; `greentune watch {job_id}` follows it again."):
        job = watch(console, client.follow(job_id))
    if job["status"] == "succeeded":
        out.print(f"Fine-tuned model: {job['fine_tuned_model']}", markup=False, soft_wrap=True)
        return
    error = job["error"]
    raise GreentuneError(f"The job {job['status']}" + (f": {error['message']}" if error else "."))


def watch(console: Console, jobs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show ``jobs``, successive states of one job, and return the last."""
    if console.is_terminal:
        return _watch_live(console, jobs)
    last: dict[str, Any] = {}
    shown: tuple[str, str, int] | None = None
    for last in jobs:
        green = last["green"]
        news = (last["status"], green["state"], green["progress"]["step"])
        if news != shown:
            line = describe(last, now=time.time())
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            shown = news
    return last


def _watch_live(console: Console, jobs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task("", total=None)
        for last in jobs:
            state = last["green"]["progress"]
            progress.update(
                bar,
                total=state["total_steps"],
                completed=state["step"],
                description=describe(last, now=time.time()),
            )
    return last


def describe(job: dict[str, Any], *, now: float) -> str:
    """One line: state, step, loss, speed, rho, energy, emissions, time left."""
    green = job["green"]
    progress = green["progress"]
    state = job["status"] if green["state"] in ("running", "done") else green["state"]
    if not progress["step"]:
        return state if job["status"] != "running" else f"{state}: preparing"
    parts = [
        state,
        f"step {progress['step']}/{progress['total_steps'] or '?'}",
        f"loss {number(progress['train_loss'], '.3f')}",
        f"{number(progress['tokens_per_s'], '.0f')} tokens/s",
        f"rho {number(green['rho_requested'], '.2f')}",
        f"({number(green['rho_measured'], '.2f')} so far)",
        f"{number(green['energy_wh']['total'], '.2f')} Wh",
        f"{number(green['co2e_g'], '.3f')} gCO2e",
    ]
    finish = job["estimated_finish"]
    if finish is not None and job["finished_at"] is None:
        parts.append(f"ETA {duration(max(0.0, finish - now))}")
    return "  ".join(parts)


def number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else format(value, form)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
