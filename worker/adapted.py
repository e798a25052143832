"""The model that a job's method trains: with its adapters on, if it has some, and its prices."""

from __future__ import annotations

import dataclasses

from core.errors import InvalidInput, ModelUnsupported
from core.spec import ADAPTER_METHODS, METHODS, JobSpec
from core.training.adapters import add_adapters, base_name_of, is_adapted
from core.training.models import LoadedModel
from core.training.pricing import StepPrices, price_steps
from core.training.step import looks_ahead


def adapted(spec: JobSpec, loaded: LoadedModel) -> tuple[LoadedModel, StepPrices]:
    """The model with what its method adds to it, priced beside full fine-tuning of it without.

    Raises:
        InvalidInput: the model was tuned by prefix, which cannot be trained on from; or the job's
            prefix takes all of the model's context.
        ModelUnsupported: it sees what it is to predict, cannot be priced, or not tuned by this
            method.
    """
    if is_adapted(loaded.model):
        raise InvalidInput(
            f"{spec.model} was tuned by prefix, which is no change of weights to train on from; "
            f"name its base model, {base_name_of(loaded.model)}.",
            param="model",
        )
    if looks_ahead(loaded.model):
        raise ModelUnsupported(
            f"{spec.model} ({type(loaded.model).__name__}) reads ahead: its logits depend on "
            "tokens that come after, so that it would be told its labels. Name a causal or an "
            "encoder-decoder model.",
            param="model",
        )
    recomputes, method = spec.training.gradient_checkpointing, spec.green.method
    plain = price_steps(loaded.model, recomputes=recomputes)
    if method not in ADAPTER_METHODS:
        return loaded, plain
    _require_room(spec, loaded)
    try:
        model = add_adapters(
            loaded.model,
            method,
            spec.green.options,
            base_name=spec.model,
            seed=spec.seed,
            recomputes=recomputes,
        )
        prices = price_steps(model, recomputes=recomputes)
    except ModelUnsupported as error:  # of the adapters: the model itself has its price
        is_told = error.param == "green.method"
        reason = "" if is_told else f"{spec.model} cannot be tuned by {method}: "
        others = ", ".join(name for name in METHODS if name not in ADAPTER_METHODS)
        raise ModelUnsupported(
            f"{reason}{error.message.rstrip('.')}. Methods that train the model's own tensors can "
            f"do it: {others}.",
            param="green.method",
        ) from error
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return dataclasses.replace(loaded, model=model), prices.against(plain, trained)


def _require_room(spec: JobSpec, loaded: LoadedModel) -> None:
    n_prefix, context = spec.green.options.n_virtual_tokens, loaded.context_tokens
    if spec.green.method == "prefix" and n_prefix >= context:
        raise InvalidInput(
            f"A prefix of {n_prefix} tokens leaves no room for text in the context of "
            f"{spec.model}, which is {context} tokens; ask for a shorter one.",
            param="green.options.n_virtual_tokens",
        )
