"""The model that a job begins with, brought to this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.jobs import ids, store
from core.jobs.database import Database
from core.objects.folders import get_folder
from core.objects.store import ObjectStore
from core.spec import ADAPTER_METHODS, JobSpec
from core.training.adapters import add_adapters, is_adapted, is_adapter_folder, merged, tuned
from core.training.checkpoint import WEIGHT_FILES, load_weights
from core.training.models import LoadedModel, load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """``models``: the id that was asked for -> its folder, or None where the id itself is loaded.
    ``parent``: what it was tuned from; the id itself if it is one of the server's.
    """

    models: Mapping[str, str | None]
    parent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFetcher:
    """Where base models come from, for one tenant.

    Args:
        offered: the server's models -> local folder, or None where the id itself is loaded.
        cache: folder of unpacked packaged models.
    """

    database: Database
    objects: ObjectStore
    tenant: str
    offered: Mapping[str, str | None]
    cache: Path

    def fetch(self, model: str, folder: Path) -> Base:
        """A model of the server's as it is; the tenant's own is brought to ``folder``, where one
        that is there already stays.

        Raises:
            ModelNotFound: neither, or a base that it was tuned from is gone.
            InvalidInput: it was tuned by prefix, which no model can be made of.
            StorageUnavailable: the store cannot be used, or a file is not what was stored.
        """
        if model in self.offered:
            return Base(models=self.offered, parent=model)
        if ids.is_checkpoint_model(model):
            return self._fetch_checkpoint(model, folder)
        with self.database.read() as session:
            record = store.get_model(session, self.tenant, model)
        if not folder.exists():
            parts = folder.with_name(f"{folder.name}-tuned")
            get_folder(self.objects, record.prefix, parts)
            if is_adapter_folder(parts):
                self._merge(record.base_model, parts, folder)
            else:
                parts.rename(folder)
        return Base(models={model: str(folder)}, parent=record.base_model)

    def _fetch_checkpoint(self, model: str, folder: Path) -> Base:
        """A checkpoint holds what was trained; the rest is its own job's base model."""
        with self.database.read() as session:
            record = store.get_checkpoint(session, self.tenant, model)
            spec = store.get_job(session, self.tenant, record.job_id).spec
        if not folder.exists():
            parts = folder.with_name(f"{folder.name}-parts")
            stored = parts / "checkpoint"
            # the other files are gone once its job has ended
            get_folder(self.objects, record.prefix, stored, only=WEIGHT_FILES)
            self._assemble(spec, parts, folder)
        return Base(models={model: str(folder)}, parent=spec.model)

    def _assemble(self, spec: JobSpec, parts: Path, folder: Path) -> None:
        trained = load_weights(parts / "checkpoint")
        loaded = self._load(spec.model, parts / "base", trained.fingerprint)
        model, green = loaded.model, spec.green
        if green.method in ADAPTER_METHODS:
            model = add_adapters(
                model, green.method, green.options, base_name=spec.model, seed=spec.seed
            )
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in trained.tensors.items():
                parameters[name].copy_(weight)
        self._save(merged(model) if is_adapted(model) else model, loaded.tokenizer, folder)

    def _merge(self, base: str, adapter: Path, folder: Path) -> None:
        """The base with ``adapter`` merged into it, in ``folder``."""
        loaded = self._load(base, folder.with_name(f"{folder.name}-below"), None)
        model = tuned(loaded.model, adapter)
        self._save(merged(model) if is_adapted(model) else model, loaded.tokenizer, folder)

    def _load(self, model: str, folder: Path, fingerprint: str | None) -> LoadedModel:
        below = self.fetch(model, folder)
        return load_model(
            model, folder=below.models[model], cache=self.cache, fingerprint=fingerprint
        )

    def _save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        unfinished = folder.with_name(f".{folder.name}")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
