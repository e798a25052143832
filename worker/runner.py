"""The training process: the one place where jobs, objects, carbon, data and training meet.

A claim's spec becomes a model, data, a meter and hooks; they meet in `fit`; and however that ends,
the job's row is told exactly once. The supervisor that started this process holds the lease; this
process only writes under its fence, and stops when it is told to (SIGTERM, an order in the row) or
when the fence no longer counts.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from core.carbon.calibration import assumed
from core.carbon.intensity import WORLD
from core.carbon.meter import EnergyMeter
from core.carbon.quality import Points, told_curves
from core.errors import (
    LeaseLost,
    NotFound,
    OutOfMemory,
    RhoInfeasible,
    StorageUnavailable,
    Unavailable,
)
from core.jobs import service, store
from core.jobs.records import Claim, CostRecord, EventRecord, FullCostRecord, Hyperparameters
from core.objects.folders import get_folder
from core.settings import Settings
from core.spec import JobSpec
from core.training.hooks import FitResult, Hook
from worker.base import BaseFetcher
from worker.begun import at_its_rate, hyperparameters_of
from worker.calibration import Calibration, known_cost
from worker.child import ChildExit
from worker.delivery import Delivery, Trained
from worker.drafting import Task
from worker.ending import Ending, ending_of
from worker.energy import EnergyLog
from worker.hardware import hardware_and_device
from worker.hooks import Interrupted, ProgressHook, Scribe, Steering, held_out_of
from worker.inputs import fetch_data
from worker.logs import log_to_stderr
from worker.overheads import OverheadHook
from worker.pilot import Pilot
from worker.prepare import Prepared, prepare, train
from worker.reporter import Reporter
from worker.rho import resolve_rho
from worker.room import RoomHook, split
from worker.scratch import scratch_folder
from worker.system_errors import system_errors
from worker.uploads import CheckpointHook
from worker.world import World, open_world


def main(job_id: str, fence: int, *, shares_host: bool, meter: EnergyMeter) -> ChildExit:
    """Carry out one claim; call `worker.child.end_with_parent` first.

    Args:
        shares_host: other trainings run on this host at the same time.
        meter: counting since the process began (`worker.metering`).
    """
    log_to_stderr()
    world = open_world(Settings(), shares_host=shares_host)
    try:
        with world.database.transaction() as session:
            claim = service.held(session, job_id, fence)
        with Reporter(
            world.database,
            tenant=claim.tenant,
            job_id=job_id,
            fence=fence,
            patience_s=world.patience_s,
        ) as reporter:
            Training(claim, world, reporter, meter).run()
    except LeaseLost:
        return ChildExit.LEASE_LOST
    except Unavailable:
        return ChildExit.TRY_LATER
    return ChildExit.REPORTED


class Training:
    """One claim, from its files to its ending.

    Args:
        meter: that counts already; None: one of its own, from `run` on.
    """

    def __init__(
        self, claim: Claim, world: World, reporter: Reporter, meter: EnergyMeter | None = None
    ) -> None:
        self._meter = meter or EnergyMeter(
            interval_s=world.meter_interval_s, attribution=world.attribution
        )
        self._claim = claim
        self._world = world
        self._reporter = reporter
        self._scribe = Scribe(reporter, claim)
        self._steering = Steering(reporter)
        #: the server's own model that the job's base comes from
        self._parent = claim.spec.model
        self._zone = claim.spec.green.zone or world.zone or WORLD
        self._delivery = Delivery(
            claim,
            reporter,
            world.objects,
            signal=world.signal,
            pue=world.pue,
            embodied_g_per_hour=world.embodied_g_per_hour,
        )

    def run(self) -> None:
        """Do the work and tell the job's row how it ended.

        Raises:
            LeaseLost: the job is not ours any more.
            Unavailable: the row could not be told.
        """
        self._steering.listen()
        ending = self._metered()
        if isinstance(ending, Trained):
            try:
                with system_errors():
                    ending = self._delivery.success(ending)
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001  the row hears of it, the log has it all
                ending = self._ending_of(error)
        try:
            self._reporter.finish(ending)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001  as above
            self._reporter.finish(self._ending_of(error))

    def _metered(self) -> Ending | Trained:
        """Energy counts from the process's start on, whatever the work comes to."""
        log = EnergyLog(
            self._reporter,
            self._scribe,
            self._claim,
            signal=self._world.signal,
            zone=self._zone,
            attribution=self._world.attribution,
        )
        self._meter.receive(log.take, log.warn)
        name = f"{self._claim.job_id}-{self._claim.fence}"
        with self._meter:
            overheads = OverheadHook(log.take_overhead, since=self._meter.started_at)
            try:
                scratch_in = scratch_folder(self._world.home / "scratch", name)
                with scratch_in as scratch, overheads.attempt(), system_errors():
                    return self._work(scratch, log, overheads)
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001  as above
                return self._ending_of(error)

    def _ending_of(self, error: Exception) -> Ending:
        return ending_of(error, self._claim, self._steering, max_attempts=self._world.max_attempts)

    def _work(self, scratch: Path, log: EnergyLog, overheads: OverheadHook) -> Trained:
        """Train, with smaller micro-batches if memory does not suffice, and store the result."""
        spec, began = self._claim.spec, self._claim.job.hyperparameters
        is_started = False
        while True:
            prepared = self._prepare(spec, scratch)
            if not is_started:
                self._validated()
                for remark in prepared.remarks if began is None else ():
                    self._scribe.event(remark, level="warn", data={"kind": "data"})
            calibration, pilot = self._instruments(prepared, log)
            rho = self._rho(prepared) if pilot is None else pilot.begin()
            if not is_started:
                self._start(hyperparameters_of(began, prepared, rho))
                is_started = True
            prepared = at_its_rate(began, prepared, rho)
            steered = [] if pilot is None else [pilot]
            room = RoomHook(None if prepared.training.batch_size == 1 else self._scribe.event)
            progress = ProgressHook(self._scribe, rho, self._claim.job.held_out)
            hooks = [progress, room, calibration, *steered, overheads]
            try:
                result = self._train(prepared, rho, hooks, pilot, scratch)
            except OutOfMemory as error:
                spec = replace(spec, training=split(prepared.training, error, self._scribe.event))
            else:
                self._meter.sample()
                with overheads.during("delivery"):
                    check = self._steering.check
                    return self._delivery.deliver(prepared, result, scratch, check=check)
            del prepared
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _prepare(self, spec: JobSpec, scratch: Path) -> Prepared:
        """Everything that can be refused is refused here, before any training."""
        world, claim = self._world, self._claim
        data = fetch_data(world.database, world.objects, claim, scratch / "data")
        self._steering.check()
        base = BaseFetcher(
            database=world.database,
            objects=world.objects,
            tenant=claim.tenant,
            offered=world.models,
            cache=world.home / "models",
        ).fetch(spec.model, scratch / "base")
        checkpoints = self._fetch_checkpoint(scratch)
        self._steering.check()
        try:
            prepared = prepare(
                spec,
                training_path=data.training,
                validation_path=data.validation,
                models=base.models,
                cache=world.home / "models",
                checkpoints=checkpoints,
                limits=world.limits,
            )
        except RhoInfeasible as error:
            if spec.passes_per_selection(n_examples=None) == 1:
                self._remember_minimum(base.parent, error.rho_min)
            raise
        self._parent = base.parent
        # with every forward pass paid in full, whatever this job may store
        self._remember_minimum(base.parent, prepared.method.rho_min(prepared.profile))
        self._steering.check()
        return prepared

    def _fetch_checkpoint(self, scratch: Path) -> Path:
        """The folder that `fit` keeps its checkpoints in, with the one to continue from."""
        checkpoints = scratch / "checkpoints"
        resume = self._claim.resume
        if resume is not None and not checkpoints.exists():
            folder = checkpoints / f"step-{resume.step:08d}"
            try:
                get_folder(self._world.objects, resume.prefix, folder)
            except NotFound as error:  # ours to have, not the caller's mistake
                raise StorageUnavailable(f"The checkpoint {resume.id} is gone.") from error
        return checkpoints

    def _remember_minimum(self, model: str, rho_min: float) -> None:
        """For refusals before a job is queued; no other method goes as low as ``green``."""
        if self._claim.spec.green.method != "green":
            return
        self._reporter.post(
            lambda session, now: store.put_profile_minimum(session, model, rho_min, now=now)
        )

    def _rho(self, prepared: Prepared) -> float:
        moment = self._reporter.call(lambda _session, now: now)
        return resolve_rho(
            self._claim.job,
            self._scribe,
            signal=self._world.signal,
            zone=self._zone,
            rho_min=prepared.rho_min,
            now=moment,
        )

    def _instruments(self, prepared: Prepared, log: EnergyLog) -> tuple[Calibration, Pilot | None]:
        """What measures this machine, and what steers by it where the job has a plan."""
        claim, world, model = self._claim, self._world, self._parent
        now, attempts, costs, curves, stored_curves = self._reporter.call(
            lambda session, now: (
                now,
                store.list_attempts(session, claim.job_id),
                store.list_costs(session, model),
                _curves(store.list_remarks(session, claim.job_id, "selection")),
                _curves(store.list_selections_on(session, claim.tenant, model)),
            )
        )
        calibration = self._calibration(prepared, log, costs)
        if not claim.spec.green.is_planned:
            return calibration, None
        task = Task(
            total_steps=prepared.total_steps,
            steps_done=0 if claim.resume is None else claim.resume.step,
            tokens_per_step=prepared.train_data.report.n_tokens / prepared.steps_per_epoch,
            rho_min=prepared.rho_min,
            startup_s=max((now - attempts[-1].started_at).total_seconds(), 0.0)
            + world.claim_delay_s,
        )
        pilot = Pilot(
            claim,
            self._reporter,
            self._scribe,
            self._steering,
            log,
            calibration,
            task=task,
            curves=curves,
            stored_curves=stored_curves,
            signal=world.signal,
            zone=self._zone,
            pue=world.pue,
            clock=world.clock,
        )
        return calibration, pilot

    def _calibration(
        self, prepared: Prepared, log: EnergyLog, stored: tuple[CostRecord, ...]
    ) -> Calibration:
        """From what is stored of this hardware, which the report's baseline hears of as well."""
        hardware, device = hardware_and_device()
        batches = prepared.steps_per_epoch * prepared.training.gradient_accumulation
        full_flops = prepared.profile.full_flops * batches / prepared.train_data.report.n_tokens
        full = next((r for r in stored if r.hardware == hardware and r.rho == 1.0), None)
        if full is not None and self._claim.job.full_cost is None:
            self._note_full(full, "machine")
        return Calibration(
            self._reporter,
            log,
            self._meter.sample,
            model=self._parent,
            hardware=hardware,
            base=known_cost(stored, hardware, otherwise=assumed(full_flops, device)),
            on_full=lambda point: self._note_full(point, "job"),
        )

    def _note_full(self, cost: CostRecord, measured_by: Literal["job", "machine"]) -> None:
        """What the report's baseline counts with."""
        job_id, fence = self._claim.job_id, self._claim.fence
        full = FullCostRecord(
            s_per_token=cost.s_per_token, j_per_token=cost.j_per_token, measured_by=measured_by
        )
        self._reporter.post(
            lambda session, _now: service.set_full_cost(session, job_id, fence, full)
        )

    def _validated(self) -> None:
        claim = self._claim
        self._reporter.call(
            lambda session, now: service.validated(session, claim.job_id, claim.fence, now=now)
        )

    def _start(self, hyperparameters: Hyperparameters) -> None:
        claim = self._claim
        self._reporter.call(
            lambda session, now: service.started(
                session, claim.job_id, claim.fence, now=now, hyperparameters=hyperparameters
            )
        )

    def _train(
        self,
        prepared: Prepared,
        rho: float,
        hooks: list[Hook],
        pilot: Pilot | None,
        scratch: Path,
    ) -> FitResult:
        with CheckpointHook(self._reporter, self._claim, self._world.objects, scratch) as uploads:
            result = train(
                prepared,
                rho=(lambda _step: rho) if pilot is None else pilot.rho,
                checkpoints=scratch / "checkpoints",
                hooks=[uploads, *hooks],
                control=self._steering if pilot is None else pilot.order,
                selections=frozenset() if pilot is None else pilot.selections,
                memory_rho=rho,
            )
            if result.outcome != "cancelled":
                uploads.finish()
        if result.outcome == "finished":
            return result
        kept = None if pilot is None else pilot.settle(result)
        if kept is None:
            raise Interrupted
        self._scribe.held_out(held_out_of(kept))
        return kept


def _curves(selections: Iterable[EventRecord]) -> tuple[Points, ...]:
    return told_curves(selection.data for selection in selections)
