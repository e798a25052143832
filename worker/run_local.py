"""`greentune run`: a whole job on this machine, with no server, resumable by the same command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from core.carbon import report
from core.carbon.account import EmissionsReport, row_emissions_g
from core.carbon.compose import JobFacts, compose
from core.carbon.intensity import WORLD, IntensitySignal
from core.carbon.meter import EnergyMeter
from core.carbon.rho import choose_rho
from core.carbon.signal import LiveOptions, open_signal
from core.data.validation import DataLimits
from core.errors import GreentuneError
from core.option_names import by_option_names
from core.settings import Settings
from core.spec import JobSpec
from core.training.export import EmissionsNote
from core.training.hooks import (
    BestRecord,
    CompilationRecord,
    Control,
    EvaluationRecord,
    FitResult,
    Hook,
    SelectionRecord,
    StartRecord,
    StepRecord,
    ValidationRecord,
)
from core.units import joules_to_wh
from worker.begun import at_its_rate, hyperparameters_of
from worker.evaluation import EvaluationFile, scores_line
from worker.hardware import hardware_name
from worker.local_account import Account
from worker.local_folder import LocalFolder, MetricsFile
from worker.overheads import OverheadHook
from worker.prepare import Prepared, export, prepare, train
from worker.room import RoomHook
from worker.system_errors import system_errors
from worker.whole_files import write_whole

_HISTORY = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    fit: FitResult
    folder: LocalFolder
    #: None: the run was paused or cancelled before its end
    emissions: EmissionsReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Whose emissions the run's energy causes."""

    signal: IntensitySignal
    zone: str
    pue: float
    embodied_g_per_hour: float | None


def run_local(spec: JobSpec, out: Path, settings: Settings, console: Console) -> LocalResult:
    """Train ``spec`` (whose files are paths) into the folder ``out``.

    Ctrl-C or SIGTERM writes a checkpoint and returns with outcome "paused"; the same call later
    goes on from there, bit for bit on the CPU.

    Raises:
        Conflict: ``out`` belongs to another job, or another process works there.
        GreentuneError: as `worker.prepare.prepare` and `core.training.loop.fit`.
    """
    transformers.utils.logging.set_verbosity_error()
    folder = LocalFolder(path=out.resolve())
    grid = _Grid(
        signal=open_signal(
            settings.carbon_signal,
            settings.carbon_traces,
            live=LiveOptions(**settings.carbon_access),
        ),
        zone=spec.green.zone or settings.zone or WORLD,
        pue=settings.pue,
        embodied_g_per_hour=settings.embodied_g_per_hour,
    )
    # an unknown zone is refused before anything is spent
    grid.signal.at(grid.zone, datetime.now(UTC))
    with folder.held(), _stopping() as stop:
        submitted_at = folder.begin(spec, _files(spec))
        account = Account(folder, grid.signal, grid.zone, warn=_warner(console))
        run = _Run(
            spec=spec,
            folder=folder,
            settings=settings,
            grid=grid,
            account=account,
            submitted_at=submitted_at,
            stop=stop,
            console=console,
        )
        with account.attempt() as attempt, _advised(folder), system_errors():
            result = run.carry_out(attempt.started_at)
            account.ended("succeeded" if result.outcome == "finished" else result.outcome)
        if result.outcome != "finished":
            return LocalResult(fit=result, folder=folder, emissions=None)
        # once more, with the export's own energy
        found = run.report(result)
        write_whole(folder.emissions, json.dumps(report.to_dict(found), indent=1))
    return LocalResult(fit=result, folder=folder, emissions=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One attempt at the job of a folder."""

    spec: JobSpec
    folder: LocalFolder
    settings: Settings
    grid: _Grid
    account: Account
    submitted_at: datetime
    stop: list[int]
    console: Console

    def carry_out(self, since: datetime) -> FitResult:
        """Prepare, train and, if it came to its end, export; all of it metered."""
        overheads = OverheadHook(self.account.take_overhead, since=since)
        warn = _warner(self.console)
        meter = EnergyMeter(self.account.take, warn, interval_s=self.settings.meter_interval_s)
        with meter:
            self.console.print("Preparing: data, model and the price of every tensor")
            began = self.folder.began
            spec = self.spec if began is None else began.kept_in(self.spec)
            prepared = _prepare(spec, self.folder, self.settings)
            for remark in prepared.remarks:
                _warner(self.console)(by_option_names(remark))
            rho = self.folder.settle_rho(lambda: _decide_rho(prepared, self.grid, self.console))
            if began is None:
                self.folder.begun(hyperparameters_of(None, prepared, rho))
            prepared = at_its_rate(began, prepared, rho)
            answers = EvaluationFile(self.folder.evaluation, prepared.exam)
            result = self._train(prepared, rho, [answers, overheads])
            if result.outcome == "finished":
                meter.sample()
                with overheads.during("delivery"):
                    name = self.spec.suffix or self.folder.path.name
                    note = _note(self.report(result))
                    export(prepared, self.folder.model, result, name=name, emissions=note)
        if result.outcome == "finished":
            answers.add_energy(self.account.rows)
        return result

    def _train(self, prepared: Prepared, rho: float, more: list[Hook]) -> FitResult:
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
            return train(
                prepared,
                rho=lambda _step: rho,
                checkpoints=self.folder.checkpoints,
                hooks=[
                    ProgressBar(progress, self.account),
                    MetricsFile(self.folder.metrics),
                    RoomHook(None),
                    *more,
                ],
                memory_rho=rho,
                control=lambda: Control.CHECKPOINT_AND_STOP if self.stop else Control.CONTINUE,
            )

    def report(self, result: FitResult) -> EmissionsReport:
        job = JobFacts(
            job_id=self.folder.path.name,
            submitted_at=self.submitted_at,
            zone=self.grid.zone,
            pue=self.grid.pue,
            trained_tokens=result.tokens,
            spent_flops=result.flops,
            full_flops=result.full_flops,
            embodied_g_per_hour=self.grid.embodied_g_per_hour,
            held_out=result,
        )
        account = self.account
        rows, attempts, overheads = account.rows, account.attempts, account.overheads
        return compose(job, rows, attempts, overheads, signal=self.grid.signal)


def print_result(result: LocalResult, console: Console) -> None:
    """What came out and where it lies, in a few lines."""
    fit, found = result.fit, result.emissions

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if found is None:
        say(f"Stopped after step {fit.step} of {fit.total_steps}; the same command continues.")
        return
    if fit.first_validation_loss is not None and fit.validation_loss is not None:
        say(f"Validation loss {fit.first_validation_loss:.4f} -> {fit.validation_loss:.4f}")
    if fit.first_scores is not None and fit.scores is not None:
        say(f"Answers before: {scores_line(fit.first_scores)}; after: {scores_line(fit.scores)}")
    if fit.flops_share is not None:
        say(
            f"FLOPs: {fit.flops_share:.1%} of full fine-tuning, "
            f"{fit.selection_flops / fit.flops:.1%} of them for selection"
        )
    energy_wh = joules_to_wh(found.total.energy_j)
    say(f"Energy: {energy_wh:.3f} Wh; emissions: {found.total.emissions_g:.4f} gCO2e")
    if found.baseline is not None:
        say(
            f"Full fine-tuning, {found.baseline.effort.basis}: "
            f"{joules_to_wh(found.baseline.effort.energy_j):.3f} Wh; "
            f"{found.baseline.emissions_g:.4f} gCO2e"
        )
    say(f"Model: {result.folder.model}")
    say(f"Report: {result.folder.emissions}")


class ProgressBar(Hook):
    """Step, loss, speed, rho, energy and time left on one line; phases on lines of their own."""

    def __init__(self, progress: Progress, account: Account) -> None:
        self._progress = progress
        self._account = account
        self._bar = progress.add_task("", total=None)
        self._tokens = 0

    def on_start(self, record: StartRecord) -> None:
        self._progress.update(self._bar, total=record.total_steps, completed=record.step)
        begun = f"Continuing after step {record.step}" if record.step else "Training"
        self._say(
            f"{begun}: {record.total_steps} steps of {record.method} on {record.device}, "
            f"{record.precision}; lowest feasible rho {record.rho_min:.3f}{record.currency_note}"
        )

    def on_selection(self, record: SelectionRecord) -> None:
        self._say(
            f"step {record.step}: {len(record.names)} tensors, {record.n_trained_parameters:,} "
            f"parameters, {record.shares}, learning rate up to {record.peak_learning_rate:.2g} "
            f"(chosen in {record.duration_s:.1f} s){record.verdict}"
        )

    def on_compilation(self, record: CompilationRecord) -> None:
        self._say(f"step {record.step}: {record.text}")

    def on_step(self, record: StepRecord) -> None:
        rows = self._account.rows
        energy_wh = joules_to_wh(sum(row.energy_j for row in rows))
        grams = sum(row_emissions_g(row, row.intensity_kind, 1.0) for row in rows)
        speed = (record.tokens - self._tokens) / record.duration_s if self._tokens else 0.0
        self._tokens = record.tokens
        self._progress.update(
            self._bar,
            completed=record.step,
            description=f"step {record.step}/{record.total_steps}  loss {record.loss:.3f}  "
            f"{speed:.0f} tokens/s  rho {record.flops / record.full_flops:.2f}  "
            f"{energy_wh:.2f} Wh  {grams:.3f} gCO2e",
        )

    def on_validation(self, record: ValidationRecord) -> None:
        self._say(
            f"step {record.step}: validation loss {record.loss:.4f}, "
            f"token accuracy {record.token_accuracy:.1%}"
        )

    def on_best_kept(self, record: BestRecord) -> None:
        self._say(record.text)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._say(
            f"step {record.step}: {record.n_examples} held-out questions answered in "
            f"{record.duration_s:.1f} s: {scores_line(record.scores)}"
        )

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _files(spec: JobSpec) -> list[Path]:
    named = (spec.training_file, spec.validation_file)
    return [Path(name) for name in named if name is not None]


def _prepare(spec: JobSpec, folder: LocalFolder, settings: Settings) -> Prepared:
    # a folder, one of the settings' models, or whatever the hub knows under this id
    place = spec.model if Path(spec.model).is_dir() else settings.model_folders.get(spec.model)
    return prepare(
        spec,
        training_path=Path(spec.training_file),
        validation_path=Path(spec.validation_file) if spec.validation_file else None,
        models={spec.model: place},
        cache=settings.home.expanduser() / "models",
        checkpoints=folder.checkpoints,
        limits=DataLimits(
            min_examples=settings.min_examples, max_line_bytes=settings.max_line_bytes
        ),
    )


def _decide_rho(prepared: Prepared, grid: _Grid, console: Console) -> float:
    green = prepared.spec.green
    if not green.follows_rho:
        return prepared.rho_min
    if green.fixed_rho is not None:
        return green.fixed_rho
    now = datetime.now(UTC)
    try:
        history = grid.signal.series(grid.zone, now - _HISTORY, now)
    except GreentuneError:
        history = ()  # a record that begins later: the absolute reference decides alone
    marginal = grid.signal.at(grid.zone, now)
    decision = choose_rho(marginal, history=history, rho_min=prepared.rho_min)
    console.print(decision.reason, markup=False, highlight=False, soft_wrap=True)
    return decision.rho


def _note(found: EmissionsReport) -> EmissionsNote:
    hardware = hardware_name()
    entry: dict[str, Any] = report.model_card_entry(found, hardware=hardware)
    return EmissionsNote(
        emissions_g=found.total.emissions_g,
        energy_j=found.total.energy_j,
        source=entry["source"],
        zone=found.zone,
        hardware=hardware,
    )


@contextmanager
def _advised(folder: LocalFolder) -> Iterator[None]:
    """The traceback of what nobody foresaw ends with what to do."""
    try:
        yield
    except Exception as error:
        error.add_note(
            "The same command tries again, from the newest checkpoint in "
            f"{folder.checkpoints} if there is one."
        )
        raise


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that holds a signal's number once SIGINT or SIGTERM has come. A second Ctrl-C ends the
    process at once, as it would without us.
    """
    received: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warner(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, style="yellow", markup=False, highlight=False)
