"""Fine-tuned models, and what is known of base models."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from core.errors import ModelNotFound
from core.jobs.records import CostRecord, EventRecord, ModelRecord
from core.jobs.store.jobs import list_remarks
from core.jobs.store.rows import FRESH, insert_on_conflict, is_storable, record
from core.jobs.tables import Model, ModelProfile, StepCost


def list_models(session: Session, tenant: str) -> tuple[ModelRecord, ...]:
    """The tenant's fine-tuned models, newest first."""
    statement = (
        select(Model)
        .where(Model.tenant == tenant, Model.deleted_at.is_(None))
        .order_by(Model.created_at.desc(), Model.id.desc())
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(ModelRecord, row) for row in rows)


def get_model(session: Session, tenant: str, model_id: str) -> ModelRecord:
    """Raises `ModelNotFound`, also for another tenant's model."""
    return record(ModelRecord, find_model(session, tenant, model_id))


def find_model(
    session: Session, tenant: str, model_id: str, *, lock: bool = False, share: bool = False
) -> Model:
    """The row; locked for writing, or (``share``) against being deleted. Raises as `get_model`."""
    statement = select(Model).where(
        Model.id == model_id, Model.tenant == tenant, Model.deleted_at.is_(None)
    )
    if lock or share:
        statement = statement.with_for_update(read=share)
    row = (
        session.scalars(statement, execution_options=FRESH).one_or_none()
        if is_storable(model_id)
        else None
    )
    if row is None:
        raise ModelNotFound(f"There is no model {model_id!r}.", param="model")
    return row


def get_profile_minimum(session: Session, model: str) -> float | None:
    """The lowest feasible rho that any job has found for base model ``model``."""
    return session.scalars(
        select(ModelProfile.rho_min).where(ModelProfile.model == model)
    ).one_or_none()


def put_profile_minimum(session: Session, model: str, rho_min: float, *, now: datetime) -> None:
    """Remember a profile's minimum; the lowest one counts, it depends on the data's lengths."""
    statement = insert_on_conflict(session, ModelProfile).values(
        model=model, rho_min=rho_min, updated_at=now
    )
    new = statement.excluded.rho_min
    lower = case((new < ModelProfile.rho_min, new), else_=ModelProfile.rho_min)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["model"], set_={"rho_min": lower, "updated_at": now}
        ),
        execution_options=FRESH,
    )


def list_costs(session: Session, model: str) -> tuple[CostRecord, ...]:
    """All that was measured of base model ``model``, the latest first."""
    statement = (
        select(StepCost)
        .where(StepCost.model == model)
        .order_by(StepCost.updated_at.desc(), StepCost.hardware, StepCost.rho)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(CostRecord, row) for row in rows)


def list_selections_on(session: Session, tenant: str, base_model: str) -> tuple[EventRecord, ...]:
    """What the selections of the tenant's latest finished job on ``base_model`` told, oldest first;
    empty: there was no such job.
    """
    latest = (
        select(Model.job_id)
        .where(Model.tenant == tenant, Model.base_model == base_model)
        .order_by(Model.created_at.desc(), Model.id.desc())
        .limit(1)
    )
    job_id = session.scalars(latest).one_or_none()
    return () if job_id is None else list_remarks(session, job_id, "selection")


def put_cost(session: Session, cost: CostRecord) -> None:
    """Replace what was measured of this model and hardware at this rho."""
    values = {field.name: getattr(cost, field.name) for field in fields(CostRecord)}
    values["rho"] = round(cost.rho, 2)
    statement = insert_on_conflict(session, StepCost).values(values)
    changed = {name: values[name] for name in ("s_per_token", "j_per_token", "updated_at")}
    session.execute(
        statement.on_conflict_do_update(index_elements=["model", "hardware", "rho"], set_=changed),
        execution_options=FRESH,
    )
