"""/v1/models: the base models that jobs may name and the caller's fine-tuned ones."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from fastapi import APIRouter

from api.deps import AfterCommit, ModelsCaller, Now, Reader, SettingsDep, Transaction
from api.schemas import Deleted, ListOf, ModelOut
from api.views import model_out, unix
from core.errors import ModelNotFound, PermissionRefused
from core.jobs import ids, service, store

router = APIRouter(prefix="/v1/models", tags=["models"])

_FINE_TUNED = re.compile(r"ft:[A-Za-z0-9._:-]{1,250}")
# Base models carry no date of ours; the client wants an integer.
_BASE_MODELS_SINCE = datetime(2024, 1, 1, tzinfo=UTC)


@router.get("")
def list_models(caller: ModelsCaller, session: Reader, settings: SettingsDep) -> ListOf:
    own = [model_out(record) for record in store.list_models(session, caller.tenant)]
    base = [_base_model(name) for name in settings.model_folders]
    return ListOf(data=base + own, has_more=False)


@router.get("/{model:path}")
def retrieve_model(
    model: str, caller: ModelsCaller, session: Reader, settings: SettingsDep
) -> ModelOut:
    if model in settings.model_folders:
        return _base_model(model)
    if not is_fine_tuned_name(model):
        raise unknown_model(model)
    if ids.is_checkpoint_model(model):
        # a job may start from it, though it is not listed
        checkpoint = store.get_checkpoint(session, caller.tenant, model)
        return ModelOut(id=model, created=unix(checkpoint.created_at), owned_by=caller.tenant)
    return model_out(store.get_model(session, caller.tenant, model))


@router.delete("/{model:path}")
def delete_model(
    model: str,
    caller: ModelsCaller,
    session: Transaction,
    outbox: AfterCommit,
    settings: SettingsDep,
    now: Now,
) -> Deleted:
    """A model with the checkpoints of its job, or one checkpoint of a job that has ended; 409 while
    a job that has not ended starts from them.
    """
    if model in settings.model_folders:
        raise PermissionRefused(
            "Base models belong to the server and cannot be deleted.", code="model_not_allowed"
        )
    if not is_fine_tuned_name(model):
        raise unknown_model(model)
    if ids.is_checkpoint_model(model):
        checkpoint = service.delete_checkpoint(session, tenant=caller.tenant, model=model, now=now)
        outbox.delete_folder(checkpoint.prefix)
    else:
        record = service.delete_model(session, tenant=caller.tenant, model_id=model, now=now)
        outbox.delete_folder(record.prefix)
    return Deleted(id=model, object="model")


def is_fine_tuned_name(model: str) -> bool:
    """Whether ``model`` has the shape of a fine-tuned model's name; others are never looked up."""
    return _FINE_TUNED.fullmatch(model) is not None


def unknown_model(model: str) -> ModelNotFound:
    return ModelNotFound(
        f"The model {model[:128]!r} does not exist or is not offered here; "
        "GET /v1/models lists what is.",
        param="model",
    )


def _base_model(name: str) -> ModelOut:
    return ModelOut(id=name, created=unix(_BASE_MODELS_SINCE), owned_by="base")
