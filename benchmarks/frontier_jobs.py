"""The frontier's folder of results, and the doing of one of its jobs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import transformers

from benchmarks.budget_run import Task, calibrate, run
from benchmarks.frontier_plan import CALIBRATIONS, Cache, Job, Settings
from benchmarks.measure import machine
from core.data.demo import build
from core.errors import RhoInfeasible

#: of the demo's docstring pairs, as the page calls them
DEMO_DATA: Final = "docstrings"


def open_cache(
    runs: Path,
    data: Path | None,
    *,
    model: str,
    reference_steps: int,
    batch_size: int,
    n_validation: int,
    n_questions: int,
    paces: Path | None = None,
) -> Cache:
    """The settings' folder in ``runs``, with a copy of the data that is trained on and held out.

    Args:
        data: folder of train.jsonl and validation.jsonl; None: the demo's docstring pairs.
        paces: folder with calibrations of another machine, all by the same one.
    """
    source = data or runs / DEMO_DATA
    if data is None and not (source / "validation.jsonl").exists():
        build(source)
    lines = (source / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:n_validation]
    train, held_out = (source / "train.jsonl").read_bytes(), ("\n".join(lines) + "\n").encode()
    foreign = {} if paces is None else {p.name: p.read_text() for p in paces.glob(CALIBRATIONS)}
    settings = Settings(
        data=source.resolve().name,
        digest=_short(train + held_out),
        model=Path(model).name,
        machine=machine(),
        reference_steps=reference_steps,
        batch_size=batch_size,
        n_validation=len(lines),
        n_questions=n_questions,
        paced_by=next((json.loads(text)["machine"] for text in foreign.values()), ""),
    )
    folder = runs / _short(repr(settings).encode())
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train.jsonl").write_bytes(train)
    (folder / "data" / "validation.jsonl").write_bytes(held_out)
    for name, text in foreign.items():
        (folder / name).write_text(text)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
    return Cache(folder, settings)


def do(cache: Cache, job: Job, *, model: str) -> None:
    """Train, and leave the job's file. ``model``: id or folder."""
    transformers.utils.logging.set_verbosity_error()
    settings = cache.settings
    task = Task(
        model=model,
        data=cache.folder / "data",
        batch_size=settings.batch_size,
        n_questions=settings.n_questions,
    )
    try:
        found = _measured(task, cache, job)
    except RhoInfeasible as error:
        found = {"rho_min": error.rho_min}
    target = cache.file(job)
    # a run that is killed leaves no half of a file behind
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(target)


def _measured(task: Task, cache: Cache, job: Job) -> dict[str, Any]:
    if job.budget is None:
        return calibrate(task, job.contender)
    pace, budget_s = cache.pace(job.contender), cache.budget_s(job.budget)
    assert pace is not None, "calibrated before"
    assert budget_s is not None, "so is the reference"
    assert job.rate is not None, "the sweep is done"
    n_steps = pace.steps_within(budget_s)
    found = run(
        task, job.contender, n_steps=n_steps, budget_s=budget_s, rate=job.rate, seed=job.seed
    )
    return {"budget": job.budget, "paced_s": pace.selection_s + n_steps * pace.step_s, **found}


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
