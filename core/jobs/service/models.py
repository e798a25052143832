"""Fine-tuned models, and the jobs that need them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import ModelInUse, ModelNotFound
from core.jobs import ids
from core.jobs.lifecycle import ACTIVE
from core.jobs.records import CheckpointRecord, ModelRecord
from core.jobs.service.checkpoints import discard_checkpoints
from core.jobs.store.discarded import discard
from core.jobs.store.jobs import find_checkpoint
from core.jobs.store.models import find_model
from core.jobs.store.rows import FRESH, record
from core.jobs.tables import Checkpoint, Job
from core.spec import ADAPTER_METHODS, JobSpec


def delete_model(session: Session, *, tenant: str, model_id: str, now: datetime) -> ModelRecord:
    """Make a model and the checkpoints of its job unknown. Their objects are discarded; the model's
    may be deleted at once after the commit, by the returned ``prefix``.

    Raises:
        ModelNotFound: no such model.
        ModelInUse: a job that has not ended starts from it or one of the checkpoints, itself or by
            way of adapters that were trained on them.
    """
    row = find_model(session, tenant, model_id, lock=True)
    checkpoints = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == row.job_id, Checkpoint.deleted_at.is_(None))
        .with_for_update(),
        execution_options=FRESH,
    ).all()
    # asked under the locks: `hold_base` waits for them, or its job is to be seen here
    _require_unused(session, tenant, model_id, *(checkpoint.model for checkpoint in checkpoints))
    row.deleted_at = now
    discard(session, row.prefix, is_folder=True, due_at=now)
    discard_checkpoints(session, checkpoints, now=now)
    session.flush()
    return record(ModelRecord, row)


def delete_checkpoint(
    session: Session, *, tenant: str, model: str, now: datetime
) -> CheckpointRecord:
    """Make the checkpoint that bears the name ``model`` unknown, of a job that has ended. Its
    objects are discarded, and may be deleted at once after the commit, by the returned ``prefix``.

    Raises:
        ModelNotFound: there is none.
        ModelInUse: its own job has not ended, or another one that has not starts from it, itself or
            by way of adapters that were trained on it.
    """
    row = find_checkpoint(session, tenant, model, lock=True)
    status = session.scalars(select(Job.status).where(Job.id == row.job_id)).one()
    if not status.is_terminal:
        raise ModelInUse(
            f"Model {model} is a checkpoint of job {row.job_id}, which is {status} and may go on "
            "from it; cancel the job or wait for its end.",
            param="model",
        )
    # asked under the lock, as in `delete_model`
    _require_unused(session, tenant, model)
    discard_checkpoints(session, [row], now=now)
    return record(CheckpointRecord, row)


def _require_unused(session: Session, tenant: str, *names: str) -> None:
    needed = needed_models(session, tenant)
    for name in names:
        if name in needed:
            raise ModelInUse(
                f"Model {name} is in use by job {needed[name]}; cancel the job or wait for its "
                "end.",
                param="model",
            )


def hold_base(session: Session, tenant: str, spec: JobSpec) -> None:
    """Keep what a new job starts from until the job is there to protect it.

    Raises:
        ModelNotFound: a tuned model or checkpoint that it needs does not exist.
    """
    for _ in _lineage(session, tenant, spec.model, share=True):
        pass


def needed_models(session: Session, tenant: str) -> dict[str, str]:
    """Tuned models and checkpoints that jobs which have not ended need -> id of such a job."""
    statement = select(Job.id, Job.spec).where(
        Job.tenant == tenant,
        Job.status.in_(ACTIVE),
        Job.spec["model"].as_string().startswith(ids.TUNED, autoescape=True),
    )
    needed: dict[str, str] = {}
    for job_id, spec in session.execute(statement):
        try:
            for name in _lineage(session, tenant, spec.model):
                needed.setdefault(name, job_id)
        except ModelNotFound:
            # deleted before models were kept for their jobs; there is no more to keep
            continue
    return needed


def _lineage(session: Session, tenant: str, model: str, *, share: bool = False) -> Iterator[str]:
    """``model`` if it is a tuned one, then what that is put on top of, and so on.

    Checkpoints and adapters hold only what was trained; a plain model stands for itself.
    """
    while model.startswith(ids.TUNED):
        is_checkpoint = ids.is_checkpoint_model(model)
        if is_checkpoint:
            job_id = find_checkpoint(session, tenant, model, share=share).job_id
        else:
            job_id = find_model(session, tenant, model, share=share).job_id
        yield model
        spec = session.scalars(select(Job.spec).where(Job.id == job_id)).one()
        is_adapter = spec.green.method in ADAPTER_METHODS and not spec.green.options.merge
        if not (is_checkpoint or is_adapter):
            return
        model = spec.model
