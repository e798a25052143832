"""FLOPs of every batch, for every trained set, from a handful of profiled shapes.

A batch's matrix products are sums of terms in its shape: projections grow with B*T, attention with
B*T*T, rotary tables with T, the head with N; an encoder-decoder adds B*U, B*U*U, B*T*U and U
(B samples, T input tokens, U decoder tokens, N labels). Costs are linear in these terms, so as many
profiles as there are terms price every batch exactly: padding inside the batch included because it
is computed too, padding to some maximum not, because it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.errors import ModelUnsupported
from core.training.costs import FlopsProfile, add_term
from core.training.flops import profile
from core.training.graph import meta_copy
from core.training.meta_trace import MetaTrace
from core.training.step import LossStep, StepInputs

#: B, T, U (0 for causal models), N: see `StepInputs.shape`
Shape = tuple[int, int, int, int]
_CAUSAL_SHAPES: tuple[Shape, ...] = ((1, 16, 0, 8), (2, 16, 0, 8), (1, 32, 0, 8), (1, 16, 0, 16))
_PAIR_SHAPES: tuple[Shape, ...] = (
    (1, 16, 24, 8),
    (1, 32, 12, 8),
    (1, 32, 24, 8),
    (1, 48, 24, 8),
    (2, 16, 12, 8),
    (2, 16, 24, 8),
    (2, 32, 12, 8),
    (1, 16, 12, 16),
)
#: a check shape outside both lists, odd because a model that pads to multiples of a window has no
#: cost of this form; and the error it may show
_CHECK_SHAPES: tuple[Shape, Shape] = ((3, 37, 0, 19), (3, 37, 23, 19))
_TOLERANCE = 1e-3
#: share of the largest term below which a combined term is rounding
_DUST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """FLOPs of one micro-batch as a function of its shape."""

    coefficients: npt.NDArray[np.float64]

    def __call__(self, shape: Shape) -> float:
        return float(_terms(shape, len(self.coefficients)) @ self.coefficients)

    def cached(self, rows: int, n_new: int, n_seen: float, n_encoded: int = 0) -> float:
        """A forward pass of ``n_new`` tokens a row in front of a cache: they attend to ``n_seen``
        (themselves included; the layers' mean) and to ``n_encoded`` of an encoder; logits of the
        last one alone.
        """
        own = self.coefficients[4:7] if n_encoded else self.coefficients[:2]
        grown = np.array([n_new, n_new * n_seen, n_new * n_encoded], np.float64) * rows
        tables = self.coefficients[7 if n_encoded else 2] * n_new
        return float(grown[: len(own)] @ own + tables + self.coefficients[3] * rows)

    def encoder(self, rows: int, n_tokens: int) -> float:
        """A pass through an encoder, the keys and values that decoders take from it included."""
        terms = np.array([rows * n_tokens, rows * n_tokens**2, n_tokens], np.float64)
        return float(terms @ self.coefficients[:3])


class StepPrices:
    """Prices for one model, whatever the batch.

    ``profiles[i]`` was taken at ``shapes[i]``; as many shapes as terms, in general position.
    """

    def __init__(self, shapes: Sequence[Shape], profiles: Sequence[FlopsProfile]) -> None:
        self._shapes = tuple(shapes)
        self._profiles = tuple(profiles)
        self._matrix = np.stack([_terms(shape, len(shapes)) for shape in shapes])
        #: price of the forward pass, and of full fine-tuning's step
        self.forward = self._price([p.forward_flops for p in profiles])
        self.full = self._price([p.full_flops for p in profiles])

    def of(self, names: Collection[str]) -> Price:
        """Price of a step that trains ``names``: the forward pass and their backward."""
        return self._price([profile.step_flops(names) for profile in self._profiles])

    def mean_profile(self, shapes: Sequence[Shape]) -> FlopsProfile:
        """The profile of the mean batch of ``shapes`` (at least one): what to select on."""
        n_terms = len(self._profiles)
        mean = np.mean([_terms(shape, n_terms) for shape in shapes], axis=0)
        weights = np.linalg.solve(self._matrix.T, mean)
        terms: dict[int, float] = {}
        for part, weight in zip(self._profiles, weights, strict=True):
            for members, flops in part.terms:
                add_term(terms, members, float(weight) * flops)
        dust = _DUST * max(terms.values(), default=0.0)
        forward = sum(
            float(w) * p.forward_flops for w, p in zip(weights, self._profiles, strict=True)
        )
        return FlopsProfile(
            names=self._profiles[0].names,
            forward_flops=forward,
            terms=tuple((members, flops) for members, flops in terms.items() if flops > dust),
            connected=self._profiles[0].connected,
            reference_flops=None
            if self._profiles[0].reference_flops is None
            else sum(float(w) * p.full_flops for w, p in zip(weights, self._profiles, strict=True)),
        )

    def against(self, full: StepPrices, names: Collection[str]) -> StepPrices:
        """Prices where only ``names`` may be trained, beside full fine-tuning at ``full``'s price:
        of a model with adapters, and of the same model without.
        """
        profiles = [
            own.limited(names, full_flops=base.full_flops)
            for own, base in zip(self._profiles, full._profiles, strict=True)
        ]
        return StepPrices(self._shapes, profiles)

    def _price(self, flops: Sequence[float]) -> Price:
        return _solved(self._shapes, flops)


def price_steps(model: Any, *, recomputes: bool = False) -> StepPrices:
    """Profile ``model`` at the few shapes that price all others, on the meta device.

    Args:
        recomputes: with gradient checkpointing.

    Raises:
        ModelUnsupported: the model cannot be profiled, or its cost has other terms.
    """
    is_pair = bool(model.config.is_encoder_decoder)
    shapes = _PAIR_SHAPES if is_pair else _CAUSAL_SHAPES
    check = _CHECK_SHAPES[is_pair]
    measured = profile_shape(model, check, recomputes=recomputes).full_flops
    profiles = [
        profile_shape(model, shape, recomputes=recomputes, is_checked=False) for shape in shapes
    ]
    prices = StepPrices(shapes, profiles)
    _require_close(model, check, measured, prices.full(check))
    return prices


def profile_shape(
    model: Any, shape: Shape, *, recomputes: bool = False, is_checked: bool = True
) -> FlopsProfile:
    """The model's profile on a batch of this shape, with the loss that training really takes.

    ``is_checked`` as in `core.training.flops.profile`.
    """

    def loss(traced: Any, tensors: Any) -> torch.Tensor:
        return LossStep(traced)(_inputs(tensors, shape)).loss_sum

    return profile(model, _tensors(shape), loss=loss, recomputes=recomputes, is_checked=is_checked)


def price_blocks(model: Any, paths: Collection[str]) -> dict[str, Price]:
    """Forward price of each of the submodules ``paths``, as part of a whole pass.

    Raises:
        ModelUnsupported: the model cannot be traced, or a cost has other terms.
    """
    shadow: Any = meta_copy(model)
    is_pair = bool(model.config.is_encoder_decoder)
    shapes = _PAIR_SHAPES if is_pair else _CAUSAL_SHAPES
    spent = [_spent_in(shadow, paths, shape) for shape in shapes]
    prices = {path: _solved(shapes, [each[path] for each in spent]) for path in paths}
    check = _CHECK_SHAPES[is_pair]
    for path, measured in _spent_in(shadow, paths, check).items():
        _require_close(model, check, measured, prices[path](check))
    return prices


def _spent_in(shadow: Any, paths: Collection[str], shape: Shape) -> dict[str, float]:
    """FLOPs of one forward pass inside each of ``paths``."""
    spent = dict.fromkeys(paths, 0.0)
    with MetaTrace() as mode, torch.enable_grad(), ExitStack() as hooks:

        def count(path: str, sign: int) -> Callable[..., None]:
            def add(*_: Any) -> None:
                spent[path] += sign * mode.forward_flops

            return add

        for path in paths:
            module = shadow.get_submodule(path)
            hooks.callback(module.register_forward_pre_hook(count(path, -1)).remove)
            hooks.callback(module.register_forward_hook(count(path, 1)).remove)
        LossStep(shadow)(_inputs(_tensors(shape), shape))
    return spent


def _tensors(shape: Shape) -> dict[str, torch.Tensor]:
    B, T, U, N = shape
    batch = {
        "input_ids": torch.zeros(B, T, dtype=torch.long),
        "positions": torch.zeros(N, dtype=torch.long),
        "targets": torch.zeros(N, dtype=torch.long),
    }
    if U:
        batch["decoder_input_ids"] = torch.zeros(B, U, dtype=torch.long)
    return batch


def _inputs(tensors: Any, shape: Shape) -> StepInputs:
    B, T, U, _ = shape
    return StepInputs(
        model_inputs={k: v for k, v in tensors.items() if k.endswith("input_ids")},
        positions_N=tensors["positions"],
        targets_N=tensors["targets"],
        n_samples=B,
        n_tokens=B * (T + U),
    )


def _solved(shapes: Sequence[Shape], flops: Sequence[float]) -> Price:
    matrix = np.stack([_terms(shape, len(shapes)) for shape in shapes])
    solved = np.linalg.solve(matrix, np.asarray(flops, np.float64))
    return Price(coefficients=solved.astype(np.float64))


def _require_close(model: Any, shape: Shape, measured: float, predicted: float) -> None:
    if abs(predicted - measured) > _TOLERANCE * measured:
        raise ModelUnsupported(
            f"{type(model).__name__}'s cost does not follow from its batch's shape "
            f"(predicted {predicted:.6g} FLOPs at {shape}, measured {measured:.6g}).",
            param="model",
        )


def _terms(shape: Shape, n_terms: int) -> npt.NDArray[np.float64]:
    B, T, U, N = shape
    causal = [B * T, B * T * T, T, N]
    terms = causal if n_terms == len(causal) else [*causal, B * U, B * U * U, B * T * U, U]
    return np.array(terms, np.float64)
