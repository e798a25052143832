"""Jobs with a plan, through the real runner: held, taken up again, suspended, out of budget."""

from __future__ import annotations

import signal as signals
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from core.carbon.energy import EnergySample
from core.carbon.quality import LATEST, expected_quality, told_curves
from core.carbon.trace import Trace, TraceSignal
from core.jobs import service, store
from core.jobs.lifecycle import Status
from core.jobs.records import Claim, CostRecord, JobRecord
from core.objects.folders import get_folder
from core.spec import EvalOptions
from core.training.hooks import Hook, StepRecord
from tests.integration.worker.conftest import TENANT
from tests.integration.worker.test_runner import Desk
from worker import runner
from worker.calibration import Calibration
from worker.hardware import hardware_and_device
from worker.pilot import LADDER_STEPS

HOUR = timedelta(hours=1)
DIRTY, CLEAN = 600.0, 40.0


class Clock:
    """Stands still until it is moved; begins at a full hour."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + HOUR

    def __call__(self) -> datetime:
        return self.now


class Planned(Desk):
    """A desk whose hours are recorded, and whose steps take as long as the test says."""

    def __init__(self, home: Path, model: Path, hours: str) -> None:
        super().__init__(home, model)
        self.clock = Clock()
        values = tuple(CLEAN if hour == "c" else DIRTY for hour in hours) + (DIRTY,) * 48
        trace = Trace(
            zone="FR", start=self.clock.now, step=HOUR, values_g_per_kwh=values, files=("test",)
        )
        self.start = self.clock.now
        self.world = replace(
            self.world, signal=TraceSignal({"FR": trace}), clock=self.clock, zone="FR"
        )
        #: joules that a step is metered to have used, by step
        self.surprises: dict[int, float] = {}

    def know_cost(self, s_per_token: float, rho: float = 0.7) -> None:
        with self.database.transaction() as session:
            cost = CostRecord(
                model="tiny",
                hardware=hardware_and_device()[0],
                rho=rho,
                s_per_token=s_per_token,
                j_per_token=100 * s_per_token,
                updated_at=self.clock.now,
            )
            store.put_cost(session, cost)

    def claim(self, job_id: str) -> Claim:
        """As a worker would at the clock's time."""
        with self.database.transaction() as session:
            claim = service.claim(
                session,
                worker="w",
                now=self.clock.now,
                lease_s=1e6,
                max_attempts=3,
                job_id=job_id,
            )
        assert claim is not None
        return claim

    def sweep(self) -> list[str]:
        with self.database.transaction() as session:
            return service.sweep(session, now=self.clock.now, max_attempts=3)

    def kinds(self, job_id: str) -> list[str]:
        return [e.data["kind"] for e in self.events(job_id) if e.data and "kind" in e.data]

    def weights(self, job: JobRecord, folder: Path) -> dict[str, torch.Tensor]:
        from transformers import AutoModelForCausalLM

        with self.database.read() as session:
            assert job.fine_tuned_model is not None
            record = store.get_model(session, TENANT, job.fine_tuned_model)
        get_folder(self.objects, record.prefix, folder)
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()


class Pace(Hook):
    """Moves the clock with every step, and meters what the test wants metered."""

    def __init__(self, desk: Planned, step_s: float, calibration: Calibration) -> None:
        self._desk, self._step_s, self._log = desk, step_s, calibration._log

    def on_step(self, record: StepRecord) -> None:
        clock = self._desk.clock
        before = clock.now
        clock.now += timedelta(seconds=self._step_s)
        if (energy_j := self._desk.surprises.get(record.step)) is not None:
            sample = EnergySample(
                started_at=before,
                ended_at=clock.now,
                device="gpu",
                energy_j=energy_j,
                method="nvml_counter",
            )
            self._log.take((sample,))


Make = Callable[..., Planned]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """``make(hours, step_s)``: a desk whose grid has these hours, c(lean) or d(irty)."""
    before = signals.getsignal(signals.SIGTERM)
    desks: list[Planned] = []

    def build(hours: str, step_s: float) -> Planned:
        home = tmp_path / str(len(desks))
        home.mkdir()
        desk = Planned(home, tiny_model, hours)
        desks.append(desk)
        real = runner.train

        def train(prepared: Any, *, hooks: list[Hook], **rest: Any) -> Any:
            calibration = next(h for h in hooks if isinstance(h, Calibration))
            return real(prepared, hooks=[Pace(desk, step_s, calibration), *hooks], **rest)

        monkeypatch.setattr(runner, "train", train)
        return desk

    yield build
    for desk in desks:
        desk.database.dispose()
    signals.signal(signals.SIGTERM, before)


def test_a_job_waits_for_its_green_hour(make: Make, chat_lines: Callable[[int], bytes]) -> None:
    desk = make("ddcd", step_s=60)
    job_id = desk.submit(
        chat_lines(24), green={"schedule": "green", "deadline": desk.start + 5 * HOUR}
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.green_state) == (Status.QUEUED, "held")
    assert job.not_before is not None
    assert job.not_before == job.planned_start
    # cells of the planner are quarters of an hour
    assert HOUR * 2 <= job.not_before - desk.start <= HOUR * 2.25
    assert job.hold_reason == "40 g/kWh expected in FR then, 600 now"
    assert job.planned_finish is not None
    assert job.energy_j > 0, "looking at the data was not free"
    assert desk.sweep() == []
    desk.clock.now = job.not_before
    assert desk.sweep() == [job_id]
    job = desk.carry_out(job_id)
    assert (job.status, job.hold_reason) == (Status.SUCCEEDED, None)
    assert desk.kinds(job_id).count("carbon_plan") == 2
    messages = [event.message for event in desk.events(job_id)]
    assert sum(m.startswith("Holding the job until") for m in messages) == 1


def test_suspended_and_resumed_equals_uninterrupted_bit_for_bit(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    lines = chat_lines(40)
    desk = make("cdcdcd", step_s=900)  # ten steps of a quarter of an hour: three green hours
    desk.know_cost(s_per_token=900 / _tokens_per_step(desk, lines))
    wishes = {"schedule": "green", "deadline": desk.start + 8 * HOUR}
    job_id = desk.submit(lines, green=wishes)
    job = desk.carry_out(job_id)
    stops = []
    while job.status is Status.QUEUED:
        stops.append((job.progress.step, job.not_before))
        assert job.green_state == "held"
        desk.clock.now = job.not_before
        job = desk.carry_out(job_id)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert [step for step, _ in stops] == [4, 8]
    for (_, until), hour in zip(stops, (2, 4), strict=True):
        assert HOUR * hour <= until - desk.start <= HOUR * (hour + 0.25)
    assert desk.clock.now <= desk.start + 8 * HOUR

    plain = make("c", step_s=1)
    done = plain.carry_out(plain.submit(lines))
    mine, theirs = desk.weights(job, tmp_path / "a"), plain.weights(done, tmp_path / "b")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def _tokens_per_step(desk: Planned, lines: bytes) -> float:
    """As the runner counts them: of a job on the same file."""
    done = desk.carry_out(desk.submit(lines))
    assert done.progress.total_steps is not None
    desk.clock.now = desk.start
    return done.progress.trained_tokens / done.progress.total_steps


@pytest.mark.parametrize("on_budget", ["pause", "stop_and_save", "fail"])
def test_a_spent_budget(make: Make, chat_lines: Callable[[int], bytes], on_budget: str) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {3: 2e9}  # 22 kg
    job_id = desk.submit(
        chat_lines(24), green={"carbon_budget_g": 20_000.0, "on_budget": on_budget}
    )
    job = desk.carry_out(job_id)
    assert job.progress.step == 3
    expected = {
        "pause": Status.PAUSED,
        "stop_and_save": Status.SUCCEEDED,
        "fail": Status.FAILED,
    }
    assert job.status is expected[on_budget]
    said = "The carbon budget of 20000 g is spent."
    assert any(said in event.message for event in desk.events(job_id))
    if on_budget == "fail":
        assert job.error is not None
        assert (job.error.code, job.error.param) == (
            "carbon_budget_exhausted",
            "green.carbon_budget_g",
        )
    if on_budget == "stop_and_save":
        assert job.fine_tuned_model is not None
        assert "budget_reached" in desk.kinds(job_id)
    if on_budget == "pause":
        with desk.database.transaction() as session:
            service.resume(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
        again = desk.carry_out(job_id)
        assert (again.status, again.progress.step) == (Status.PAUSED, 3), "the budget is the job's"


def test_a_model_that_a_budget_left_is_not_told_with_scores_of_another_step(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {9: 2e9}  # in the middle of the second epoch of six steps
    wishes = {"carbon_budget_g": 20_000.0, "on_budget": "stop_and_save"}
    job_id = desk.submit(
        chat_lines(24),
        validation=chat_lines(4),
        evaluation=EvalOptions(metrics=("rougeL",), max_new_tokens=2),
        green=wishes,
        n_epochs=2,
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 9)
    held_out = job.held_out
    assert held_out is not None
    assert held_out.first_validation_loss is not None
    assert held_out.first_scores is not None
    assert (held_out.validation_loss, held_out.scores) == (None, None)
    desk.weights(job, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "before and after" not in card


def test_a_model_that_a_budget_left_has_its_best_weights_with_early_stopping(
    make: Make, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    desk = make("cccc", step_s=1)
    desk.surprises = {15: 2e9}  # in the third epoch of six steps
    job_id = desk.submit(
        chat_lines(24),
        validation=chat_lines(4),
        green={"carbon_budget_g": 20_000.0, "on_budget": "stop_and_save", "method": "full"},
        n_epochs=4,
        learning_rate=1.0,  # what it learns after the first epoch makes it worse
        warmup_ratio=0.0,
        early_stopping_patience=4,
    )
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 15)
    told = {(e.data or {}).get("kind"): e for e in desk.events(job_id)}
    kept = told["early_stopping"].data["kept_step"]
    assert kept in (6, 12)
    assert f"has the weights of its best step, {kept}." in told["budget_reached"].message
    assert job.held_out is not None
    assert job.held_out.validation_loss is not None
    desk.weights(job, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"of step {kept}, where validation loss was lowest" in card


def test_an_unreachable_deadline_is_told_before_training_and_the_job_goes_on(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddddd", step_s=1)
    desk.know_cost(s_per_token=4.0)
    job_id = desk.submit(chat_lines(24), green={"deadline": desk.start + HOUR})
    job = desk.carry_out(job_id)
    assert job.status is Status.SUCCEEDED
    told = [e for e in desk.events(job_id) if (e.data or {}).get("kind") == "deadline_unreachable"]
    assert len(told) == 1
    assert told[0].data is not None
    assert told[0].data["step"] == 0
    kinds = [offer["kind"] for offer in told[0].data["offers"]]
    assert kinds[:2] == ["fewer_steps", "more_time"]


def test_a_held_job_is_cancelled_at_once(make: Make, chat_lines: Callable[[int], bytes]) -> None:
    desk = make("ddc", step_s=60)
    job_id = desk.submit(chat_lines(24), green={"earliest_start": desk.start + HOUR})
    assert desk.carry_out(job_id).green_state == "held"
    with desk.database.transaction() as session:
        job = service.cancel(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
    assert (job.status, job.hold_reason) == (Status.CANCELLED, None)


def test_a_cancel_that_comes_first_beats_the_hold(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddc", step_s=60)
    job_id = desk.submit(chat_lines(24), green={"schedule": "green"})
    claim = desk.claim(job_id)
    with desk.database.transaction() as session:
        service.validated(session, job_id, claim.fence, now=desk.clock.now)
        service.cancel(session, tenant=TENANT, job_id=job_id, now=desk.clock.now)
        job = service.hold(
            session,
            job_id,
            claim.fence,
            until=desk.start + HOUR,
            reason="greener",
            planned_finish=None,
            now=desk.clock.now,
        )
    assert (job.status, job.not_before) == (Status.CANCELLED, None)


def test_without_a_signal_the_hold_ends_in_time(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("ddcd", step_s=60)
    deadline = desk.start + 5 * HOUR
    job_id = desk.submit(chat_lines(24), green={"schedule": "green", "deadline": deadline})
    job = desk.carry_out(job_id)
    assert job.not_before is not None
    desk.world = replace(desk.world, signal=TraceSignal({}))
    desk.clock.now = job.not_before
    assert desk.sweep() == [job_id]
    job = desk.carry_out(job_id)
    assert job.status is Status.SUCCEEDED
    assert desk.clock.now < deadline
    assert "signal" in desk.kinds(job_id)


def test_a_free_rho_on_an_unknown_machine_climbs_the_ladder_and_is_planned_in_a_budget(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    desk = make("cccc", step_s=1)
    wishes = {"energy_budget_wh": 1e6}
    job_id = desk.submit(chat_lines(240), rho="auto", n_epochs=2, green=wishes)
    job = desk.carry_out(job_id)
    assert (job.status, job.progress.step) == (Status.SUCCEEDED, 120)
    chosen = [e.data for e in desk.events(job_id) if (e.data or {}).get("kind") == "selection"]
    assert [data["step"] for data in chosen if data] == [0, LADDER_STEPS, 60]
    assert chosen[0] is not None
    assert chosen[0]["rho"] == 1.0
    with desk.database.read() as session:
        costs = store.list_costs(session, "tiny")
    assert costs, "what was measured is known to the next job"
    assert all(cost.s_per_token > 0 and cost.j_per_token > 0 for cost in costs)


def test_plans_expect_the_quality_that_selections_measured(
    make: Make, chat_lines: Callable[[int], bytes]
) -> None:
    """The default before the first; after a pause what was told before it; the next job starts with
    what this one measured.
    """
    desk = make("cdcdcdcd", step_s=900)
    lines = chat_lines(40)
    desk.know_cost(s_per_token=900 / _tokens_per_step(desk, lines))
    wishes = {"schedule": "green", "deadline": desk.start + 8 * HOUR}
    job_id = desk.submit(lines, green=wishes, model="tiny")
    job = desk.carry_out(job_id)
    n_pauses = 0
    while job.status is Status.QUEUED:
        n_pauses += 1
        desk.clock.now = job.not_before
        job = desk.carry_out(job_id)
    assert (job.status, n_pauses >= 1) == (Status.SUCCEEDED, True)

    told = [e.data for e in desk.events(job_id) if e.data and "kind" in e.data]
    curves = [data["quality_curve"] for data in told if data["kind"] == "selection"]
    plans = [data for data in told if data["kind"] == "carbon_plan"]
    assert all(curves)
    # the job before it, which counted the tokens, has measured the same model
    assert plans[0]["quality"]["basis"] == "stored"
    assert {data["quality"]["basis"] for data in plans[1:]} == {"measured"}
    n_known = 0
    for data in told:
        if data["kind"] == "selection":
            n_known += 1
        if data["kind"] == "carbon_plan" and data["quality"]["basis"] == "measured":
            assert data["quality"]["n_selections"] == min(n_known, LATEST)
            known = expected_quality(told_curves(t for t in told[: told.index(data)]))
            assert data["quality"] == known.to_dict()
            assert data["plan"]["quality"] == pytest.approx(known.curve.quality(0.7))
    with desk.database.read() as session:
        later = store.list_selections_on(session, TENANT, "tiny")
        others = store.list_selections_on(session, "rival", "tiny")
    assert [event.data for event in later] == [d for d in told if d["kind"] == "selection"]
    assert others == ()
