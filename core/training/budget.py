"""What a run's selections count: FLOPs, or what they cost in seconds or joules here."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from core.errors import RhoInfeasible
from core.spec import Currency
from core.training.costs import FlopsProfile
from core.training.horizon import Course, Horizon, lowest_rho
from core.training.interval import mean_flops
from core.training.job import FitJob
from core.training.methods import Choice, SelectionPoint
from core.training.rates import NOUNS, Rates, Sizes, priced, priced_spared


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The job's mean step and its course, both in the currency of ``rates`` (None: FLOPs).

    Attributes:
        measuring_share: what measuring the rates took, as a share of the whole job's full
            fine-tuning (both in FLOPs).
    """

    profile: FlopsProfile
    course: Course
    rates: Rates | None = None
    measuring_share: float = 0.0

    @property
    def currency(self) -> Currency:
        return "flops" if self.rates is None else self.rates.currency


def budget_of(job: FitJob, rates: Rates | None) -> Budget:
    if rates is None:
        return Budget(profile=job.profile, course=job.course)
    sizes = sizes_of(job)
    course = job.course
    if course.spared is not None:
        spared = priced_spared(course.spared, job.profile, rates, sizes)
        course = replace(course, spared=spared)
    full_flops = job.profile.full_flops * sizes.micro_batches * job.total_steps
    return Budget(
        profile=priced(job.profile, rates, sizes),
        course=course,
        rates=rates,
        measuring_share=rates.flops / full_flops,
    )


def sizes_of(job: FitJob) -> Sizes:
    return Sizes(elements=job.elements, micro_batches=job.training.gradient_accumulation)


def require_feasible(job: FitJob, budget: Budget, step: int) -> None:
    """Where costs were measured here, nobody could refuse a rho before.

    Raises:
        RhoInfeasible: the job cannot keep the share that it asks for after ``step`` steps.
    """
    if budget.rates is None:
        return
    rho, rho_min = job.rho(step), lowest_rho(budget.course, job.method, budget.profile)
    if rho >= rho_min:
        return
    noun = NOUNS[budget.currency]
    # rounded up: the number that the message offers must itself be accepted
    offered = math.ceil(rho_min * 1000) / 1000
    raise RhoInfeasible(
        f"rho {rho:g} is not feasible in {budget.currency} on this machine: a step that trains "
        f"anything at all takes {rho_min:.1%} of full fine-tuning's {noun}, so rho must be at "
        f"least {offered:.3f}.",
        rho_min=rho_min,
    )


def in_flops(job: FitJob, found: Horizon, step: int) -> SelectionPoint:
    """The point that ``found`` was chosen at after ``step`` steps, with costs in FLOPs."""
    return replace(
        found.point, profile=job.profile, spared=job.course.spared_over(step, found.n_steps)
    )


def rate_share(job: FitJob, budget: Budget, choice: Choice) -> float | None:
    """Share of full fine-tuning's FLOPs that the learning rate belongs to; None: the choice's rho.
    The rule for rates was found in FLOPs: how much is trained, not how fast.
    """
    if budget.rates is None:
        return choice.rate_rho
    return min(job.profile.step_flops(choice.names) / job.profile.full_flops, 1.0)


def flops_share(point: SelectionPoint, names: Collection[str]) -> float:
    """Share of full fine-tuning's FLOPs that the mean step at ``point`` (in FLOPs) costs."""
    return mean_flops(point.profile, names, point.spared) / point.profile.full_flops
