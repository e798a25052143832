"""Adapters by the PEFT library: a few trained tensors on a model that stays as it is.

``lora``: low-rank factors beside the query and value projections (Hu et al., arXiv 2106.09685), by
PEFT's own table of architectures; every linear layer where asked, or where the table does not know
the architecture.
``green_lora``: on every linear layer, for the selector to choose from. ``prefix``: trained keys and
values in front of every layer's own (Li and Liang, arXiv 2101.00190).

The experts of a mixture, which transformers has in one tensor, and routers are no linear layers:
they get no adapters.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import peft
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.errors import InvalidInput, ModelUnavailable, ModelUnsupported
from core.spec import ADAPTER_METHODS, MethodOptions
from core.training.graph import meta_copy
from core.training.low_rank import fuse, replace_layers
from core.training.meta_trace import MetaTrace

#: PEFT's name for its description of an adapter folder
ADAPTER_CONFIG: Final = "adapter_config.json"


def add_adapters(
    model: Any,
    method: str,
    options: MethodOptions,
    *,
    base_name: str,
    seed: int,
    recomputes: bool = False,
) -> Any:
    """``model`` inside its adapters; nothing else of it can be trained from here on.

    Args:
        method: of `core.spec.ADAPTER_METHODS`.
        base_name: what the adapter's own files call the model.
        seed: of the adapters' first weights; torch's generators are left as they are.
        recomputes: with gradient checkpointing.

    Raises:
        ModelUnsupported: PEFT cannot adapt this model.
    """
    assert method in ADAPTER_METHODS, method
    config = _prefix(model, options) if method == "prefix" else _lora(model, method, options)
    try:
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, config)
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be tuned by {method}: {error}", param="green.method"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base_name
    fuse(adapted, is_fused=not recomputes)
    return adapted.train()


def is_adapted(model: Any) -> bool:
    return isinstance(model, peft.PeftModel)


def base_name_of(model: Any) -> str:
    """What an adapted model's adapter calls the model inside it."""
    return str(model.active_peft_config.base_model_name_or_path)


def merged(model: Any) -> Any:
    """The plain model with its adapters added in. In place: ``model`` is of no use afterwards.

    Raises:
        InvalidInput: a prefix, which is no change of weights.
    """
    if n_virtual_tokens(model):
        raise InvalidInput(
            "A model tuned by prefix cannot be merged into plain weights; use its base model with "
            "the adapter, or tune from the base.",
            param="model",
        )
    with _quiet():
        return model.merge_and_unload()


def is_adapter_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """What the adapter in ``folder`` calls its base model. Raises ModelUnavailable."""
    try:
        return str(json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(
            f"{folder} is not a whole adapter: {error!r}.", param="model"
        ) from error


def tuned(model: Any, folder: Path) -> Any:
    """``model`` as the adapter in ``folder`` makes it: merged, or inside its prefix.

    Raises:
        ModelUnavailable: the adapter belongs to another model, or its files are damaged.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with _quiet():
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"The adapter in {folder} does not fit {base_of(folder)}, or is damaged: {error!r}",
            param="model",
        ) from error
    if n_virtual_tokens(adapted):
        return adapted
    plain = merged(adapted)
    # PEFT froze the model to put the adapter on, and gives it back frozen
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(flags[name])
    return plain


def n_virtual_tokens(model: Any) -> int:
    """Places of its context that a model's prefix takes; 0 without one."""
    if not is_adapted(model) or not model.active_peft_config.is_prompt_learning:
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def _lora(model: Any, method: str, options: MethodOptions) -> peft.LoraConfig:
    table = TARGETS.get(model.config.model_type)
    by_table = method == "lora" and options.target_modules == "default" and table is not None
    config = peft.LoraConfig(
        task_type=_task(model),
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=table if by_table else "all-linear",
        exclude_modules=_routers(model) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    if _reaches_experts(model, config):
        found = {name.rpartition(".")[2] for name, _ in _linear(model)}
        config.target_modules = {
            name
            for name in found
            if not _reaches_experts(model, peft.LoraConfig(target_modules=[name]))
        }
    replace_layers(config)
    return config


def _linear(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and their names, but for the one that gives the logits."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            yield name, module


def _reaches_experts(model: Any, config: peft.LoraConfig) -> bool:
    """Whether PEFT would read ``config`` as meaning the experts of a mixture too. Transformers has
    them in one tensor, which is no layer that an adapter could go around: PEFT computes every
    expert's change of weights in full at each pass, and the costs of that cannot be traced.
    """
    read = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(read, model, None)
    except ValueError:  # one of two projections that are one tensor now
        return True
    return bool(read.target_parameters)


@torch.no_grad()
def _routers(model: Any) -> list[str]:
    """Linear layers whose forward gives more than a projection."""
    return [
        name
        for name, layer in _linear(model)
        if isinstance(layer, nn.Linear)
        and type(layer).forward is not nn.Linear.forward
        and not isinstance(layer(layer.weight.new_ones(1, layer.in_features)), torch.Tensor)
    ]


def _prefix(model: Any, options: MethodOptions) -> peft.PrefixTuningConfig:
    n_layers, n_heads, width = _kept_shape(model)
    return peft.PrefixTuningConfig(
        task_type=_task(model),
        num_virtual_tokens=options.n_virtual_tokens,
        num_layers=n_layers,
        num_attention_heads=n_heads,
        token_dim=n_heads * width,
    )


def _kept_shape(model: Any) -> tuple[int, int, int]:
    """Decoder layers, heads of each, and width of a head, of the keys that the model keeps.

    Seen in a pass over one token, on shapes alone: PEFT's guess from the configuration takes the
    encoder's depth for the decoder's, and a head for a share of the hidden size, which it is not
    in every T5 nor in Falcon.

    Raises:
        ModelUnsupported: it keeps none, or layers differ.
    """
    ids = torch.zeros(1, 1, dtype=torch.long)
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    shadow = meta_copy(model)
    with MetaTrace(), torch.no_grad():
        cache = shadow(input_ids=ids, use_cache=True, **inputs).get("past_key_values")
    # the decoder's attention to itself; not that to the encoder
    cache = getattr(cache, "self_attention_cache", cache)
    kept = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", ())]
    shapes = {None if keys is None else (keys.shape[1], keys.shape[3]) for keys in kept}
    if len(shapes) != 1 or None in shapes:
        found = ", ".join(sorted(map(str, shapes))) or "none"
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be tuned by prefix: a prefix goes before the keys and "
            f"values of every layer, all of one shape; (heads, width) of its layers' are: {found}.",
            param="green.method",
        )
    ((n_heads, width),) = (shape for shape in shapes if shape is not None)
    return len(kept), n_heads, width


def _task(model: Any) -> str:
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


@contextmanager
def _quiet() -> Iterator[None]:
    """Two warnings that nobody can act on: PEFT asks for an attribute that transformers 5 has
    renamed; and an untied T5 stays untied when merged, though its configuration says tied.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        yield
