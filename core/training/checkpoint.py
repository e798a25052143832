"""Checkpoints, whole or absent: safetensors and JSON, no pickle, hashed, renamed into place.

A checkpoint is a folder ``step-<n>``::

    weights.safetensors      every tensor that was ever trained, as it is now
    optimizer.safetensors    <name>/step, <name>/exp_avg, <name>/exp_avg_sq of the trained set
    random.safetensors       torch's generator states
    best.safetensors         with early stopping: the weights of the best step, if it is another
    state.json               position, sums, selection: `TrainState`
    checkpoint.json          SHA-256 and size of all of the above; written last

What a trained model is made of is in `WEIGHT_FILES`; of all else only a run that goes on has a use.

It is written beside its place, flushed to the disk file by file, then renamed: a crash leaves
either the old checkpoints or the new one. Loading verifies every hash before a byte is used.
Tensors that were never trained are the base model's and are not stored; the base's fingerprint is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from core.errors import InvalidInput, ModelUnavailable, StorageUnavailable
from core.training.rates import Rates, rates_from
from core.training_options import Precision

FORMAT: Final = 1
# not "manifest.json": that is the object store's name for its own list of a folder's files
MANIFEST: Final = "checkpoint.json"
_WEIGHTS, _OPTIMIZER, _RANDOM, _BEST = "weights", "optimizer", "random", "best"
_STATE: Final = "state.json"
#: what `load_weights` reads
WEIGHT_FILES: Final = (f"{_WEIGHTS}.safetensors", _STATE, MANIFEST)
_BLOCK_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Where a run stands between two steps: all that is not a tensor. JSON types only."""

    #: steps done
    step: int = 0
    fingerprint: str = ""
    #: that the run computes in, "auto" resolved; "auto": written before this was remembered
    precision: Precision = "auto"
    #: trained tensors in force, the share asked for them, and the step that they were chosen at
    names: tuple[str, ...] = ()
    ever_trained: tuple[str, ...] = ()
    rho: float = 1.0
    #: prices of the currency that rho counts in; None: FLOPs
    rates: Rates | None = None
    #: share that the learning rate belongs to; None: ``rho``
    rate_rho: float | None = None
    selected_at: int | None = None
    #: step of the next selection; None: written before this was remembered, or at none
    select_at: int | None = None
    #: of hidden states that were stored: the station, and the steps done when the first was
    #: (`core.training.step.Stored`); None: none were, or written before this was remembered
    stored_boundary: int | None = None
    stored_since: int | None = None
    #: whether blocks are compiled; None: not decided, or not asked for
    compiled: bool | None = None
    #: factor of the last gradient clipping, 0..1
    clip: float = 1.0
    flops: float = 0.0
    full_flops: float = 0.0
    selection_flops: float = 0.0
    evaluation_flops: float = 0.0
    tokens: int = 0
    train_duration_s: float = 0.0
    #: of the last step; the accuracy None where it was written before it was remembered
    train_loss: float | None = None
    train_token_accuracy: float | None = None
    first_validation_loss: float | None = None
    validation_loss: float | None = None
    validation_token_accuracy: float | None = None
    validated_at: int | None = None
    #: of the model's own answers, percent: before training, and last
    first_scores: dict[str, float] | None = None
    scores: dict[str, float] | None = None
    asked_at: int | None = None
    #: with early stopping: the lowest validation loss after training began, and where it was
    best_step: int | None = None
    best_loss: float | None = None
    best_token_accuracy: float | None = None
    #: whether patience has run out
    is_over: bool = False
    #: the step whose weights the model was given back at the end; None: it was given none
    kept_step: int | None = None

    @property
    def rate_share(self) -> float:
        """Share of full fine-tuning's FLOPs that the learning rate belongs to."""
        return self.rho if self.rate_rho is None else self.rate_rho

    @property
    def loss_now(self) -> float | None:
        """Validation loss of the weights as they are; None: not known."""
        return self.validation_loss if self.validated_at == self.step else None

    @property
    def token_accuracy_now(self) -> float | None:
        return self.validation_token_accuracy if self.validated_at == self.step else None

    @property
    def scores_now(self) -> dict[str, float] | None:
        return self.scores if self.asked_at == self.step else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    state: TrainState
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    random: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWeights:
    """``fingerprint`` is that of the base model, which the other tensors are to be taken from."""

    fingerprint: str
    tensors: Mapping[str, torch.Tensor]


def save_checkpoint(parent: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` as ``parent/step-<n>`` and return that folder, durable.

    Raises:
        StorageUnavailable: the disk is full or refuses.
    """
    final = parent / f"step-{checkpoint.state.step:08d}"
    scratch = parent / f".{final.name}.{os.getpid()}"
    try:
        _discard(scratch)
        scratch.mkdir(parents=True)
        for name in (_WEIGHTS, _OPTIMIZER, _RANDOM, *((_BEST,) if checkpoint.best else ())):
            tensors: Mapping[str, torch.Tensor] = getattr(checkpoint, name)
            plain = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
            save_file(plain, _tensors(scratch, name))
        (scratch / _STATE).write_text(json.dumps(dataclasses.asdict(checkpoint.state)))
        files = {path.name: _sealed(path) for path in sorted(scratch.iterdir())}
        manifest = {"format": FORMAT, "step": checkpoint.state.step, "files": files}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _flush(scratch / MANIFEST)
        _flush(scratch)
        _discard(final)  # of a run that stopped here before: same step, same bytes
        scratch.rename(final)
        _flush(parent)
    except OSError as error:
        _discard(scratch)
        raise StorageUnavailable(f"The checkpoint {final} cannot be written: {error}.") from error
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after verifying it.

    Raises:
        StorageUnavailable: with code ``checkpoint_corrupt``: a file is missing, cut, changed, or
            of another format.
    """
    with _damage_named(folder):
        files = _sealed_files(folder)
        _verify(folder, files)
        raw = json.loads((folder / _STATE).read_text())
        has_best = _tensors(folder, _BEST).name in files
        tensors = {
            name: load_file(_tensors(folder, name))
            for name in (_WEIGHTS, _OPTIMIZER, _RANDOM, *((_BEST,) if has_best else ()))
        }
        raw.update(
            names=tuple(raw["names"]),
            ever_trained=tuple(raw["ever_trained"]),
            rates=rates_from(raw.get("rates")),
        )
        return Checkpoint(state=TrainState(**raw), **tensors)


def load_weights(folder: Path) -> TrainedWeights:
    """What was trained, of a checkpoint of which `WEIGHT_FILES` suffice, after verifying those.

    Raises:
        StorageUnavailable: as `load_checkpoint`.
    """
    with _damage_named(folder):
        files = _sealed_files(folder)
        _verify(folder, {name: files[name] for name in WEIGHT_FILES if name != MANIFEST})
        return TrainedWeights(
            fingerprint=json.loads((folder / _STATE).read_text())["fingerprint"],
            tensors=load_file(_tensors(folder, _WEIGHTS)),
        )


def state_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in a checkpoint's ``folder`` that `load_weights` does without."""
    return tuple(sorted(f.name for f in folder.iterdir() if f.name not in WEIGHT_FILES))


def checkpoint_folders(parent: Path) -> list[Path]:
    """Folders under ``parent`` that hold a finished checkpoint, newest first; not yet verified."""
    if not parent.is_dir():
        return []
    found = [f for f in parent.glob("step-*") if (f / MANIFEST).is_file()]
    return sorted(found, key=lambda folder: folder.name, reverse=True)


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are passed over. None: start anew."""
    for folder in checkpoint_folders(parent):
        try:
            return load_checkpoint(folder)
        except StorageUnavailable:
            continue
    return None


def require_continuable(state: TrainState, fingerprint: str, precision: Precision) -> None:
    """
    Args:
        fingerprint: of the base model that was loaded.
        precision: that the run computes in.

    Raises:
        ModelUnavailable: the checkpoint is of another base model.
        InvalidInput: it was computed in another precision.
    """
    if state.fingerprint != fingerprint:
        raise ModelUnavailable(
            "The checkpoint continues another base model than the one that was loaded; load that "
            "one, or start in an empty folder.",
            param="model",
        )
    if state.precision not in ("auto", precision):
        raise InvalidInput(
            f"The checkpoint was computed in {state.precision}, not in {precision}; ask for that "
            "precision, or start in an empty folder.",
            param="green.training.precision",
        )


def prune_checkpoints(parent: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what crashed writers left."""
    for folder in checkpoint_folders(parent)[keep:]:
        _discard(folder)
    for leftover in parent.glob(".step-*"):
        _discard(leftover)


def random_state() -> dict[str, torch.Tensor]:
    """States of torch's generators: the CPU's, and each CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_state(states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for device, state in states.items():
        if device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, device)


def _sealed_files(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise _corrupt(
            f"{folder} has checkpoint format {manifest['format']}; this version reads {FORMAT}."
        )
    files: dict[str, Any] = manifest["files"]
    return files


def _verify(folder: Path, files: Mapping[str, Any]) -> None:
    for name, expected in files.items():
        if _digest(folder / name) != expected:
            raise _corrupt(f"{folder / name} is not what was written there.")


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _corrupt(f"{folder} is not a complete checkpoint: {error!r}.") from error


def _corrupt(message: str) -> StorageUnavailable:
    return StorageUnavailable(message, code="checkpoint_corrupt")


def _tensors(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _sealed(path: Path) -> dict[str, Any]:
    _flush(path)
    return _digest(path)


def _digest(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "n_bytes": path.stat().st_size}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
