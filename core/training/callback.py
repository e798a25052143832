"""GreenTrainer inside somebody else's script: a callback for transformers' Trainer and TRL's.

::

    Trainer(model=..., args=..., train_dataset=..., callbacks=[GreenTrainerCallback(rho=0.5)])

The same engine as in our own loop (profile, importance, selector); data, loss, optimiser, precision
and checkpoints stay the trainer's. At each selection a probe batch goes through the model once,
importance is taken from the trainer's own Adam moments, and the chosen tensors' requires_grad flags
are set. Nothing else is touched: weights, gradients, moments and random numbers are what they were.

Costs are those of ``model(**batch).loss`` on batches of the training data, with gradient
checkpointing where the trainer has it switched on. Where a trainer computes its loss another way
(TRL's fused head), the share spent differs by what that way costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from core.errors import InvalidInput, RhoInfeasible, UnsupportedMethod
from core.training.costs import FlopsProfile
from core.training.flops import profile
from core.training.importance import CrossedGain, sum_over_gradients
from core.training.loader_samples import CollatedBatch, drawn_batches, labelled_halves
from core.training.methods import adapters_of
from core.training.optimiser import adamw_update, chosen
from core.training.ranking import rank
from core.training.selector import select
from core.training_options import is_number

#: batches whose mean cost is taken for the data's
_PROFILED_BATCHES: Final = 4
#: where accelerate and TRL put a wrapped forward: on the instance, in front of the class's own
_WRAPPED: Final[tuple[str, ...]] = ("forward", "_original_forward")
#: model -> parameters that a callback froze and has not given back: at work, or interrupted
_FROZEN: Final[WeakKeyDictionary[torch.nn.Module, set[str]]] = WeakKeyDictionary()
#: model -> hooks that a callback put on its embeddings and has not taken off
_ENDS: Final[WeakKeyDictionary[torch.nn.Module, list[RemovableHandle]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """One selection, in force from the optimiser step after ``step``."""

    step: int
    epoch: float
    names: tuple[str, ...]
    #: share of full fine-tuning's FLOPs that a mean step will cost
    rho_planned: float


class GreenTrainerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # no types
    """Trains what is worth it: at most ``rho`` of full fine-tuning's FLOPs a step.

    Args:
        rho: share of full fine-tuning's FLOPs, (0, 1].
        every: optimiser steps between two selections, or "epoch".
        n_probes: batches that importance is averaged over, each in two halves; each costs a full
            training step.
        seed: of the probe batches' samples.

    Attributes:
        selections: `Selected`, the newest last; saved and restored with the trainer's checkpoints.

    Raises (in training):
        RhoInfeasible: no tensor can be trained for that share; carries the lowest feasible one.
        UnsupportedMethod: an optimiser other than AdamW, a model spread over processes, or
            reentrant gradient checkpointing.
        InvalidInput: data without a length or without a label, which no probe can be drawn from;
            an optimiser that lacks what an interrupted training had left frozen.
        ModelUnsupported: a model that cannot be profiled.
    """

    def __init__(
        self,
        rho: float = 0.5,
        *,
        every: int | Literal["epoch"] = "epoch",
        n_probes: int = 1,
        seed: int = 0,
    ) -> None:
        if not (is_number(rho) and 0 < rho <= 1):
            raise InvalidInput(f"rho must be above 0 and at most 1; got {rho!r}.", param="rho")
        if every != "epoch" and not _is_count(every):
            raise InvalidInput(
                f'every must be 1 or more, or "epoch"; got {every!r}.', param="every"
            )
        if not _is_count(n_probes):
            raise InvalidInput(f"n_probes must be 1 or more; got {n_probes!r}.", param="n_probes")
        self.rho = rho
        self.every = every
        self.n_probes = n_probes
        self.seed = seed
        self.selections: list[Selected] = []
        self._profile: FlopsProfile | None = None
        # what is trained as one -> its tensors: the factors of an adapter, else a tensor alone
        self._groups: dict[str, tuple[str, ...]] = {}
        # of those that may be trained, what the optimiser holds
        self._candidates: dict[str, torch.nn.Parameter] = {}
        self._flagged: dict[str, torch.nn.Parameter] = {}

    # ---- saved with the trainer's checkpoints

    def state(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("rho", "every", "n_probes", "seed")}
        return {"args": settings, "attributes": {"history": [asdict(s) for s in self.selections]}}

    @property
    def history(self) -> list[dict[str, Any]]:
        """``selections`` as plain JSON, which is how a trainer stores them."""
        return [asdict(selected) for selected in self.selections]

    @history.setter
    def history(self, stored: Sequence[Mapping[str, Any]]) -> None:
        self.selections = [Selected(**{**one, "names": tuple(one["names"])}) for one in stored]

    # ---- the trainer's events

    def on_train_begin(self, args: Any, state: Any, _control: Any, **given: Any) -> None:
        """Profile the model, and take up the selection of the checkpoint if there is one."""
        if args.parallel_mode is ParallelMode.DISTRIBUTED:
            raise UnsupportedMethod(
                "GreenTrainerCallback works in one process: trained tensors may not change under "
                "DistributedDataParallel. Use `greentune run`, or one process."
            )
        if args.gradient_checkpointing and _is_reentrant(args):
            raise UnsupportedMethod(
                "Reentrant gradient checkpointing computes the gradients of every block, whatever "
                "is trained; set gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        if not isinstance(_inner(given["optimizer"]), torch.optim.AdamW):
            raise UnsupportedMethod(
                "GreenTrainerCallback needs torch's AdamW, whose next step it can tell; got "
                f"{type(_inner(given['optimizer'])).__name__}. Set optim='adamw_torch'."
            )
        name = type(self).__name__
        # the state of a training that starts at 0 holds what this object chose in an earlier one
        stored = state.stateful_callbacks.get(name) if state.global_step else None
        self.history = stored["attributes"]["history"] if stored else []
        # a trainer can save no callback that its state lacks: one that joins at a checkpoint
        state.stateful_callbacks.setdefault(name, self.state())
        model = given["model"]
        self._flagged, self._candidates = _trainable(model, given["optimizer"])
        self._profile = self._costs(model, args, given["train_dataloader"])
        _ENDS[model] = [
            module.register_forward_hook(_end_where_frozen)
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding)
        ]
        if self.selections:
            self._train_only(model, self.selections[-1].names)

    def on_step_begin(self, args: Any, state: Any, _control: Any, **given: Any) -> None:
        """Before the first micro-batch of an optimiser step."""
        if not self._is_due(state):
            return
        assert self._profile is not None, "training has begun"
        model = given["model"]
        halves = self._halves(model, args, given["train_dataloader"], state.global_step)
        importance = sum_over_gradients(
            model,
            [_on(model.device, half) for half in halves],
            lambda batch: model(**batch).loss,
            {n: p for n, p in self._candidates.items() if n in set(self._profile.trainable)},
            CrossedGain(partial(_updates, self._candidates, _inner(given["optimizer"]))),
        )
        full_flops = self._profile.full_flops
        drops = {g: math.fsum(importance[n] for n in names) for g, names in self._groups.items()}
        moved = {
            group: sum(self._candidates[name].numel() for name in names)
            for group, names in self._groups.items()
        }
        grouped = self._profile.grouped(self._groups)
        budget_flops = self.rho * full_flops
        found = select(grouped, rank(grouped, drops, moved, budget_flops), budget_flops)
        names = tuple(name for group in found.names for name in self._groups[group])
        self._train_only(model, names)
        selected = Selected(
            step=state.global_step,
            epoch=float(state.epoch or 0.0),
            names=names,
            rho_planned=found.flops / full_flops,
        )
        self.selections.append(selected)

    def on_train_end(self, *_: Any, **given: Any) -> None:
        """Everything that was trainable before is trainable again."""
        _give_back(given["model"])

    # ---- parts

    def _is_due(self, state: Any) -> bool:
        if not self.selections:
            return True
        last = self.selections[-1]
        if self.every == "epoch":
            # sums of steps' shares of an epoch
            return math.floor((state.epoch or 0.0) + 1e-6) > math.floor(last.epoch + 1e-6)
        return int(state.global_step) - last.step >= self.every

    def _train_only(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        trained = set(names)
        _FROZEN[model] = self._flagged.keys() - trained
        for name, parameter in self._flagged.items():
            parameter.requires_grad_(name in trained)

    def _costs(self, model: Any, args: Any, loader: Any) -> FlopsProfile:
        """Of a mean batch; wrapped forwards (autocast, fused heads) are taken off meanwhile."""
        size = int(args.per_device_train_batch_size)
        seed = f"{self.seed} 0"
        batches = drawn_batches(loader, seed=seed, n_batches=_PROFILED_BATCHES, size=size)
        with _unwrapped(model):
            profiles = [
                profile(model, batch, recomputes=args.gradient_checkpointing) for batch in batches
            ]
        mean = FlopsProfile.mean(profiles, [1.0] * len(profiles))
        costs = mean.limited(self._candidates, full_flops=mean.full_flops)
        self._groups = adapters_of(costs)
        rho_min = costs.grouped(self._groups).min_rho
        if self.rho < rho_min:
            raise RhoInfeasible(
                f"rho {self.rho:g} is below the lowest feasible one for this model and data, "
                f"{math.ceil(1e3 * rho_min) / 1e3}.",
                rho_min=rho_min,
            )
        return costs

    def _halves(self, model: Any, args: Any, loader: Any, step: int) -> list[CollatedBatch]:
        return labelled_halves(
            loader,
            seed=f"{self.seed} {step}",
            n_batches=self.n_probes,
            # a half needs a sample
            size=max(2, int(args.per_device_train_batch_size)),
            is_shifted=not model.config.is_encoder_decoder,
        )


def _is_reentrant(args: Any) -> bool:
    return bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


def _end_where_frozen(
    embedding: torch.nn.Embedding, _args: Any, output_BTH: torch.Tensor
) -> torch.Tensor:
    """For gradient checkpointing and adapters, transformers makes what comes out of embeddings
    require a gradient. The whole backward pass would run, whatever is trained.
    """
    return output_BTH if embedding.weight.requires_grad else output_BTH.detach()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _trainable(
    model: torch.nn.Module, optimizer: Any
) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    """What the model's flags let be trained, and of that what the optimiser trains.

    Raises InvalidInput where an interrupted training left less to the optimiser than there was.
    """
    given_back = _give_back(model)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    flagged = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {n: p for n, p in flagged.items() if id(p) in optimised}
    if missing := sorted(given_back - found.keys()):
        raise InvalidInput(
            f"An interrupted training had left {len(missing)} tensors frozen, such as "
            f"{missing[0]}, so that this trainer's optimiser lacks them. They can be trained again "
            "now: make a new trainer."
        )
    if not found:
        raise InvalidInput("The trainer's optimiser holds no trainable parameter of the model.")
    return flagged, found


def _give_back(model: torch.nn.Module) -> set[str]:
    """Makes trainable again what was frozen in ``model``; the names. Takes our hooks off."""
    for end in _ENDS.pop(model, []):
        end.remove()
    names = _FROZEN.pop(model, set())
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    return names


@contextmanager
def _unwrapped(model: torch.nn.Module) -> Iterator[None]:
    """Inside, every forward is its class's own: accelerate wraps that of the trainer's model, TRL
    that of the model inside the adapters.
    """
    wrapped = [
        (vars(module), {name: vars(module)[name] for name in _WRAPPED if name in vars(module)})
        for module in model.modules()
    ]
    for attributes, taken in wrapped:
        for name in taken:
            del attributes[name]
    try:
        yield
    finally:
        for attributes, taken in wrapped:
            attributes.update(taken)


def _updates(
    parameters: Mapping[str, torch.nn.Parameter],
    adamw: torch.optim.AdamW,
    names: Sequence[str],
    elements: Sequence[slice],
    gradients: Sequence[torch.Tensor],
) -> torch.Tensor:
    """As `CrossedGain` wants them."""
    each = zip(names, gradients, elements, strict=True)
    return torch.cat([_update(parameters, adamw, *one) for one in each])


def _update(
    parameters: Mapping[str, torch.nn.Parameter],
    adamw: torch.optim.AdamW,
    name: str,
    gradient_N: torch.Tensor,
    elements: slice,
) -> torch.Tensor:
    """AdamW's next update at the group's peak rate: warm-up may start at 0."""
    parameter = parameters[name]
    group = next(g for g in adamw.param_groups if any(p is parameter for p in g["params"]))
    return adamw_update(
        parameter.detach().reshape(-1)[elements],
        gradient_N,
        chosen(adamw.state.get(parameter, {}), elements),
        learning_rate=float(group.get("initial_lr", group["lr"])),
        weight_decay=group["weight_decay"],
        betas=group["betas"],
        epsilon=group["eps"],
    )


def _inner(optimizer: Any) -> Any:
    """The optimiser inside accelerate's wrapper."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
