"""From a create-job request to a `JobSpec`: defaults, precedence and refusals, with no I/O."""

from __future__ import annotations

import math
import secrets
from typing import Any

from api.schemas import CreateJob, EvalIn, GreenIn, HyperparametersIn, TaskIn, TrainingIn
from core.data.tasks import task_named
from core.errors import InvalidInput, MissingParameter, RhoInfeasible, UnsupportedMethod
from core.ignored_options import refuse_ignored
from core.spec import (
    RHO_FLOOR,
    SEED_MAX,
    EvalOptions,
    GreenOptions,
    JobSpec,
    MethodOptions,
    TaskOptions,
    rho_unasked,
)
from core.training_options import TrainingOptions

#: of `GreenIn`, as they stand in `GreenOptions`
WISHES = (
    "schedule",
    "earliest_start",
    "deadline",
    "max_hold_s",
    "energy_budget_wh",
    "carbon_budget_g",
    "on_budget",
)
METHOD_HYPERPARAMETERS = "method.supervised.hyperparameters"


def spec_of(request: CreateJob, *, default_zone: str | None) -> JobSpec:
    """What the caller asked for, with every open choice that needs no data closed.

    Args:
        default_zone: grid zone of this host, used where the request names none.

    Raises:
        UnsupportedMethod: a method other than supervised, or one of ours that does not exist.
        InvalidInput: a value out of range, or an unknown task or field of one; ``param`` is its
            path in the request.
        MissingParameter: ``rho: "auto"`` asked for with no zone to follow.
        RhoInfeasible: ``rho`` below what any model can reach.
    """
    _refuse_unsupported(request)
    hyperparameters, path = _hyperparameters(request)
    try:
        training = _training_options(hyperparameters, request.green)
        return JobSpec(
            model=request.model,
            training_file=request.training_file,
            validation_file=request.validation_file,
            suffix=request.suffix,
            seed=secrets.randbelow(SEED_MAX + 1) if request.seed is None else request.seed,
            training=training,
            green=_green_options(request.green or GreenIn(), default_zone),
            task=_task_options(request.green.task if request.green is not None else None),
            eval=_eval_options(request.green.eval if request.green is not None else None),
        )
    except InvalidInput as error:
        if error.param is not None and error.param.startswith("hyperparameters."):
            error.param = error.param.replace("hyperparameters", path, 1)
            error.code = "invalid_hyperparameter"
        raise


def check_rho(spec: JobSpec, *, profiled_minimum: float | None, n_examples: int | None) -> None:
    """Refuse a ``rho`` that arithmetic or a stored profile of the model says cannot be reached.

    Args:
        n_examples: of the training file, where that is known.

    Raises:
        RhoInfeasible: names the minimum. Of FLOPs only: what other currencies cost is not known.
    """
    if spec.green.currency != "flops":
        return
    if not spec.green.follows_rho or spec.green.fixed_rho is None:
        return
    passes = spec.passes_per_selection(n_examples)
    why = "because every forward pass is paid in full"
    if passes > 1:
        why = f"even where one forward pass is paid for {passes:g}"
    # no step costs less than its share of a pass that is paid once for all
    rho_min = max(RHO_FLOOR, profiled_minimum or 0.0) / passes
    if spec.green.fixed_rho < rho_min:
        ground = "any model" if profiled_minimum is None else spec.model
        # rounded up: the number that the message offers must itself be accepted
        offered = math.ceil(rho_min * 1000) / 1000
        raise RhoInfeasible(
            f"green.rho {spec.green.rho:g} cannot be reached: the lowest feasible rho for {ground} "
            f"is {offered:g}, {why}. Ask for that or more.",
            rho_min=rho_min,
        )


def _refuse_unsupported(request: CreateJob) -> None:
    if request.method is not None and request.method.type != "supervised":
        raise UnsupportedMethod(
            f"method.type must be supervised; {request.method.type!r} is not supported.",
            param="method.type",
        )
    if request.integrations:
        raise InvalidInput(
            "integrations are not supported; leave them out.",
            param="integrations",
            code="unsupported_integration",
        )


def _hyperparameters(request: CreateJob) -> tuple[HyperparametersIn, str]:
    """The ones that count and their path: the method's own before the deprecated top level."""
    old = request.hyperparameters
    supervised = request.method.supervised if request.method is not None else None
    new = supervised.hyperparameters if supervised is not None else None
    if new is None:
        return old or HyperparametersIn(), "hyperparameters"
    if old is not None and old != new:
        raise InvalidInput(
            f"hyperparameters and {METHOD_HYPERPARAMETERS} differ; give only the latter.",
            param="hyperparameters",
            code="invalid_hyperparameter",
        )
    return new, METHOD_HYPERPARAMETERS


def _training_options(hyperparameters: HyperparametersIn, green: GreenIn | None) -> TrainingOptions:
    own = (green.training if green is not None else None) or TrainingIn()
    given = {name: value for name, value in own.model_dump().items() if value is not None}
    chosen = {
        name: value
        for name, value in hyperparameters.model_dump().items()
        if value is not None and value != "auto"
    }
    if "learning_rate" in given and "learning_rate_multiplier" in chosen:
        raise InvalidInput(
            "green.training.learning_rate is an absolute rate; leave out "
            "learning_rate_multiplier, or leave out the rate.",
            param="green.training.learning_rate",
        )
    return TrainingOptions(**given, **chosen)


def _task_options(asked: TaskIn | None) -> TaskOptions | None:
    if asked is None:
        return None
    try:
        task_named(asked.name).named_columns(asked.columns)
    except InvalidInput as error:
        error.param = {"task": "green.task.name", "columns": "green.task.columns"}[str(error.param)]
        raise
    return TaskOptions(name=asked.name, columns=asked.columns or {})


def _eval_options(asked: EvalIn | None) -> EvalOptions | None:
    return None if asked is None else EvalOptions(**asked.model_dump(exclude_none=True))


def _green_options(green: GreenIn, default_zone: str | None) -> GreenOptions:
    zone = green.zone or default_zone
    options: dict[str, Any] = {"zone": zone}
    for name in WISHES:
        if getattr(green, name) is not None:
            options[name] = getattr(green, name)
    if green.schedule == "green" and zone is None:
        raise MissingParameter(
            'green.schedule "green" follows a grid\'s carbon intensity: name the grid in '
            'green.zone, for example "FR".',
            param="green.zone",
        )
    for name in ("method", "importance", "currency"):
        if getattr(green, name) is not None:
            options[name] = getattr(green, name)
    if green.options is not None:
        options["options"] = MethodOptions(**green.options.model_dump(exclude_none=True))
    asked = GreenOptions(**options)
    refuse_ignored(asked, green.model_dump())
    if not asked.follows_rho:
        return GreenOptions(**options, rho=1.0)
    if green.rho == "auto" and zone is None:
        raise MissingParameter(
            'green.rho "auto" follows a grid\'s carbon intensity: name the grid in green.zone, '
            'for example "FR", or give rho as a number.',
            param="green.zone",
        )
    return GreenOptions(**options, rho=rho_unasked(zone) if green.rho is None else green.rho)
