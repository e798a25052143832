"""A job on a carbon plan, across worker processes: held, run, suspended, resumed elsewhere.

The grid is a record whose hours pass in half a second of the clock (`carbon_trace_speed` 7200) and
that the test goes on writing, as a site's own recorder would. It turns the grid dirty once the job
has made some steps, and so no machine is too fast or too slow for it.

The model is a tiny one. ``CARBON_PLAN_MODEL=HuggingFaceTB/SmolLM2-135M-Instruct`` in the
environment takes the demo's own instead, at an hour of the grid in six seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from safetensors.torch import load_file

from core.carbon.crosscheck import check_delivered, check_kept
from core.carbon.energy import during
from core.carbon.evidence import Evidence
from core.carbon.verify import verify
from core.jobs import store
from core.jobs.database import open_database
from core.jobs.records import AttemptRecord, EventRecord, JobRecord
from core.objects.folders import get_folder
from core.objects.opening import open_store
from tests.e2e.farm import ROOT, until
from tests.fixtures.serving import Server, environment_of

TENANT = "greentune"
CLEAN, DIRTY = 10.0, 900.0
#: None: a tiny one
REAL_MODEL = os.environ.get("CARBON_PLAN_MODEL")
SPEED = 7200 if REAL_MODEL is None else 600
SLOT = timedelta(hours=1) / SPEED
#: of the clock: longer than any plan looks ahead
RECORDED = timedelta(hours=4)
DEADLINE = timedelta(minutes=15)
#: or so many times what a run without pauses took: four starts, and waits half as long again
TIMES_PLAIN = 12
STEPS = 480 if REAL_MODEL is None else 80
BATCH_SIZE = 4 if REAL_MODEL is None else 1
#: every suspension comes after so many more steps
STEPS_A_STRETCH = 25 if REAL_MODEL is None else 6
#: of waiting for anything
PATIENCE_S = 1200.0 if REAL_MODEL is None else 3000.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400 if REAL_MODEL is None else 7200)]


class Grid:
    """The record of one zone, slot by slot from ``start`` on."""

    def __init__(self, folder: Path, start: datetime) -> None:
        self.folder = folder
        self.start = start
        self._values = [CLEAN] * (RECORDED // SLOT)
        folder.mkdir()
        self._write()

    def be_dirty(self, begin: datetime, end: datetime) -> None:
        """From now on expected to be dirty from ``begin`` to ``end``, and clean after it."""
        first, last = (begin - self.start) // SLOT, (end - self.start) // SLOT
        self._values[first:] = [CLEAN] * (len(self._values) - first)
        self._values[first:last] = [DIRTY] * (last - first)
        self._write()

    def _write(self) -> None:
        rows = [
            f"FR,{(self.start + n * timedelta(hours=1)).isoformat()},{value}"
            for n, value in enumerate(self._values)
        ]
        new = self.folder / "fr.new"
        new.write_text("zone,timestamp_utc,gco2eq_per_kwh\n" + "\n".join(rows) + "\n")
        new.rename(self.folder / "fr.csv")


class Site:
    """`greentune serve` without a worker of its own, and workers that come and go."""

    def __init__(self, home: Path, model: Path, grid: Grid) -> None:
        self.environment = environment_of(
            home,
            models=REAL_MODEL or f"tiny={model}",
            meter_interval_s="0.5",
            sweep_every_s="0.5",
            heartbeat_s="0.5",
            carbon_signal="trace",
            carbon_traces=str(grid.folder),
            carbon_trace_speed=str(SPEED),
            carbon_trace_anchor=grid.start.isoformat(),
        )
        self.database = open_database(f"sqlite:///{home / 'greentune.db'}")
        self.objects = open_store((home / "objects").as_uri())
        self.workers: dict[int, subprocess.Popen[bytes]] = {}

    def start_worker(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "worker"], env=self.environment, cwd=ROOT
        )
        self.workers[process.pid] = process

    def stop_worker(self, name: str) -> None:
        """The one of this name, the polite way."""
        pid = next(pid for pid in self.workers if f"-{pid}-" in name)
        process = self.workers.pop(pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0

    def close(self) -> None:
        for process in self.workers.values():
            process.terminate()
        for process in self.workers.values():
            process.wait(timeout=120)
        self.database.dispose()

    def job(self, job_id: str) -> JobRecord:
        with self.database.read() as session:
            return store.get_job(session, TENANT, job_id)

    def attempts(self, job_id: str) -> tuple[AttemptRecord, ...]:
        with self.database.read() as session:
            return store.list_attempts(session, job_id)

    def events(self, job_id: str) -> list[EventRecord]:
        """Oldest first."""
        with self.database.read() as session:
            page = store.list_events(session, TENANT, job_id, limit=10_000)
        return list(reversed(page.items))

    def is_held(self, job_id: str) -> bool:
        return self.job(job_id).green_state == "held"

    def weights(self, job_id: str, folder: Path) -> dict[str, Any]:
        model = self.job(job_id).fine_tuned_model
        assert model is not None
        with self.database.read() as session:
            record = store.get_model(session, TENANT, model)
        get_folder(self.objects, record.prefix, folder)
        return dict(load_file(folder / "model.safetensors"))


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path / "grid", datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path, grid: Grid) -> Iterator[tuple[Site, openai.OpenAI]]:
    with ExitStack() as stack:
        site = Site(tmp_path / "home", tiny_model, grid)
        server = stack.enter_context(Server(site.environment, "--no-worker"))
        stack.callback(site.close)
        site.start_worker()
        site.start_worker()
        client = openai.OpenAI(base_url=server.url, api_key=server.first_key())
        yield site, stack.enter_context(client)


def submit(client: openai.OpenAI, lines: bytes, **green: Any) -> str:
    file = client.files.create(file=("train.jsonl", lines), purpose="fine-tune")
    training = {"selection_interval": 0.5, "max_steps": STEPS}
    return client.fine_tuning.jobs.create(
        model=REAL_MODEL or "tiny",
        training_file=file.id,
        seed=11,
        hyperparameters={"n_epochs": 6, "batch_size": BATCH_SIZE},
        extra_body={"green": {"rho": 0.7, "zone": "FR", "training": training, **green}},
    ).id


def test_a_plan_is_carried_out_by_whichever_worker_is_there(
    site: tuple[Site, openai.OpenAI],
    grid: Grid,
    chat_lines: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    farm, client = site
    lines = chat_lines(320)
    plain = submit(client, lines)
    until(lambda: farm.job(plain).finished_at is not None, timeout_s=PATIENCE_S)
    assert farm.job(plain).status == "succeeded", farm.job(plain).error

    finished_at, created_at = farm.job(plain).finished_at, farm.job(plain).created_at
    assert finished_at is not None
    deadline = datetime.now(UTC) + max(DEADLINE, TIMES_PLAIN * (finished_at - created_at))
    planned = submit(client, lines, schedule="green", deadline=deadline.isoformat())
    assert suspend(farm, grid, planned, after_step=0) == 0, "it starts held"
    steps = suspend(farm, grid, planned, after_step=STEPS_A_STRETCH)
    steps = suspend(farm, grid, planned, after_step=steps + STEPS_A_STRETCH)
    until(lambda: farm.job(planned).finished_at is not None, timeout_s=PATIENCE_S)

    job, attempts = farm.job(planned), farm.attempts(planned)
    assert (job.status, job.error) == ("succeeded", None)
    assert {attempt.outcome for attempt in attempts[:-1]} == {"held"}
    assert steps in {attempt.from_step for attempt in attempts}
    assert len({attempt.from_step for attempt in attempts}) == 3, "suspended twice on its way"
    assert all(one.worker != other.worker for one, other in pairwise(attempts)), attempts
    assert job.finished_at is not None
    assert job.finished_at < deadline
    plans = [e.data["plan"]["stretches"] for e in farm.events(planned) if "plan" in (e.data or {})]
    assert {intensity for drawn in plans for _, _, intensity in drawn} == {CLEAN}

    told = client.get(f"/fine_tuning/jobs/{planned}/emissions?include=samples", cast_to=object)
    assert isinstance(told, dict)
    evidence = Evidence.from_dict(told["evidence"])
    delivered = json.loads(client.files.content(job.result_files[1]).content)
    checks = (
        *verify(told, evidence),
        *check_kept(evidence),
        *check_delivered(delivered, evidence),
    )
    assert [check.figure for check in checks if not check.agrees] == []
    assert {row.attempt for row in evidence.samples} == {attempt.number for attempt in attempts}
    say(job, attempts, told, evidence)

    mine, theirs = farm.weights(planned, tmp_path / "a"), farm.weights(plain, tmp_path / "b")
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in theirs)


def share_at(intensity: float, evidence: Evidence) -> float:
    """Of the energy, what was used at this intensity of the grid."""
    total = sum(row.energy_j for row in evidence.samples)
    mine = sum(row.energy_j for row in evidence.samples if row.intensity_g_per_kwh == intensity)
    return mine / total


def say(
    job: JobRecord, attempts: tuple[AttemptRecord, ...], told: dict[str, Any], evidence: Evidence
) -> None:
    """For whoever runs it with ``-s``."""
    for one in attempts:
        print(f"attempt {one.number} on {one.worker}: from step {one.from_step}, {one.outcome}")
    print(
        f"{job.progress.step} steps; {told['energy_wh']['total']:.4f} Wh, {told['co2e_g']:.5f} g, "
        f"{told['intensity_g_per_kwh']['mean']:.1f} g/kWh; {share_at(CLEAN, evidence):.1%} of the "
        f"energy in clean slots; {len(told['evidence']['samples'])} samples; not metered: "
        f"{told['unaccounted']['gaps']}"
    )
    for (attempt, kind), share in sorted(dirty_shares(evidence).items()):
        print(f"in dirty slots, attempt {attempt}, {kind}: {share:.1%} of the energy")


def dirty_shares(evidence: Evidence) -> dict[tuple[int, str], float]:
    """Of the energy, what was used in dirty slots, by attempt and by what it went into."""
    total = sum(row.energy_j for row in evidence.samples)
    dirty = [row for row in evidence.samples if row.intensity_g_per_kwh == DIRTY]
    found: dict[tuple[int, str], float] = Counter()
    for row in dirty:
        found[row.attempt, "steps and whatever has no line of its own"] += row.energy_j / total
    for span, row, part in during(dirty, evidence.overheads):
        found[row.attempt, span.kind] += row.energy_j * part / total
        found[row.attempt, "steps and whatever has no line of its own"] -= (
            row.energy_j * part / total
        )
    return found


def suspend(farm: Site, grid: Grid, job_id: str, *, after_step: int) -> int:
    """Let the grid turn dirty after ``after_step`` steps, wait for the hold and hand the job on to
    another worker; the step it was held at.

    Jobs do not wait for less than what stopping and starting again takes, and so the dirty time
    lasts half as long again as this attempt took until now.
    """
    until(lambda: farm.job(job_id).progress.step >= after_step, timeout_s=PATIENCE_S)
    begin = datetime.now(UTC) + SLOT
    while not farm.is_held(job_id):
        assert farm.job(job_id).finished_at is None, "it was over before it could be suspended"
        now = datetime.now(UTC)
        begun = [attempt.started_at for attempt in farm.attempts(job_id)]
        grid.be_dirty(begin, now + 1.5 * (now - max(begun, default=now)) + 4 * SLOT)
        until(lambda: farm.is_held(job_id) or datetime.now(UTC) > now + SLOT)  # noqa: B023
    [*_, last] = farm.attempts(job_id)
    farm.start_worker()
    farm.stop_worker(last.worker)
    return farm.job(job_id).progress.step
