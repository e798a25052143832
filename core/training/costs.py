"""What a training step costs for any set of trained tensors, as a plain record (no torch here).

Source: GreenTrainer (arXiv 2309.13192), equation 3, on the real autograd graph instead of a chain::

    cost(S) = F + sum over terms (flops, U) with U intersecting S of flops

A *term* is one matrix product of the backward pass together with the set ``U`` of parameters that
need it: the gradient of a weight is needed by that weight alone, the gradient of an activation by
every parameter from which that activation was computed. The product is done exactly when a trained
parameter is in ``U``, which is autograd's own rule, so the sum is what torch spends.

Convention: one multiply-add is two FLOPs; only matrix products and convolutions are counted, as
``torch.utils.flop_counter`` does. Sets of parameters are bit sets: bit i stands for ``names[i]``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsProfile:
    """Predicted FLOPs of one training step (or of an average one) for any set of trained tensors.

    The same form holds what a step costs in another currency (`core.training.rates.priced`); all
    that is called FLOPs here is then in that one's unit.

    Attributes:
        names: every parameter once, in the order of ``model.named_parameters()``.
        forward_flops: cost of the forward pass, the loss included.
        terms: (bit set of the parameters that need the product, its FLOPs), each set once.
        connected: bit set of the parameters from which the loss was computed. A parameter outside
            it (an unused head, say) never gets a gradient, costs nothing and cannot be selected.
        reference_flops: what full fine-tuning costs where that is not training all of ``names``
            (adapters on a model); None where it is.
    """

    names: tuple[str, ...]
    forward_flops: float
    terms: tuple[tuple[int, float], ...]
    connected: int
    reference_flops: float | None = None
    _bits: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = {name: 1 << position for position, name in enumerate(self.names)}
        if len(bits) != len(self.names):
            raise InvalidInput("names of a profile must be unique.", param="names")
        object.__setattr__(self, "_bits", bits)

    def members(self, names: Iterable[str]) -> int:
        """Bit set of ``names``. Raises InvalidInput naming the first unknown one."""
        members = 0
        for name in names:
            bit = self._bits.get(name)
            if bit is None:
                raise InvalidInput(
                    f"{name!r} is not a parameter of this profile; it has {len(self.names)}, "
                    f"such as {', '.join(map(repr, self.names[:3]))}.",
                    param="names",
                )
            members |= bit
        return members

    def backward_flops(self, names: Iterable[str]) -> float:
        """FLOPs of the backward pass when exactly ``names`` are trained; 0 for no name.

        Raises InvalidInput for a name that is not in ``names``.
        """
        trained = self.members(names)
        return sum(flops for members, flops in self.terms if members & trained)

    def step_flops(self, names: Iterable[str]) -> float:
        """FLOPs of forward and backward when exactly ``names`` are trained."""
        return self.forward_flops + self.backward_flops(names)

    @property
    def full_flops(self) -> float:
        """FLOPs of full fine-tuning's step: forward and backward, every parameter trained."""
        if self.reference_flops is not None:
            return self.reference_flops
        return self.forward_flops + sum(flops for _, flops in self.terms)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The parameters from which the loss was computed, in the order of ``names``."""
        return tuple(name for name, bit in self._bits.items() if bit & self.connected)

    @property
    def min_rho(self) -> float:
        """Lowest feasible share (0..1): the cheapest step that trains anything over the full step.

        Costs only grow with the set, so the cheapest set is a single tensor. 0 if nothing costs.
        """
        full = self.full_flops
        if not full or not self.connected:
            return 0.0
        return min(self.step_flops((name,)) for name in self.trainable) / full

    def limited(self, names: Iterable[str], *, full_flops: float) -> FlopsProfile:
        """The same model where only ``names`` may ever be trained, beside a full fine-tuning that
        costs ``full_flops``. Raises InvalidInput for an unknown name.
        """
        allowed = self.members(names) & self.connected
        terms: dict[int, float] = {}
        for members, flops in self.terms:
            add_term(terms, members & allowed, flops)
        return FlopsProfile(
            names=self.names,
            forward_flops=self.forward_flops,
            terms=tuple(terms.items()),
            connected=allowed,
            reference_flops=full_flops,
        )

    def grouped(self, groups: Mapping[str, Collection[str]]) -> FlopsProfile:
        """Tensors that are trained together, as one: the profile of ``groups``' names.

        A set of groups costs what the set of all their tensors does. Raises InvalidInput for a
        tensor that is not in ``names``.
        """
        bits = [self.members(members) for members in groups.values()]

        def lifted(members: int) -> int:
            return sum(1 << place for place, group in enumerate(bits) if group & members)

        terms: dict[int, float] = {}
        for members, flops in self.terms:
            add_term(terms, lifted(members), flops)
        return FlopsProfile(
            names=tuple(groups),
            forward_flops=self.forward_flops,
            terms=tuple(terms.items()),
            connected=lifted(self.connected),
            reference_flops=self.full_flops,
        )

    @classmethod
    def chain(
        cls,
        names: Sequence[str],
        activation_flops: Sequence[float],
        weight_flops: Sequence[float],
    ) -> FlopsProfile:
        """A hand-made chain; index 0 is nearest the loss, the forward pass costs nothing.

        cost(S) = sum of ``weight_flops`` over S + sum of ``activation_flops`` up to and including
        the deepest tensor of S. Raises InvalidInput for unequal lengths or negative costs.
        """
        if not len(names) == len(activation_flops) == len(weight_flops):
            raise InvalidInput("names, activation_flops and weight_flops must be equally long.")
        if any(not flops >= 0 for flops in (*activation_flops, *weight_flops)):
            raise InvalidInput("FLOPs of a chain must be numbers of at least 0.")
        everything = (1 << len(names)) - 1
        terms: dict[int, float] = {}
        for position in range(len(names)):
            deeper = everything >> position << position
            add_term(terms, deeper, activation_flops[position])
            add_term(terms, 1 << position, weight_flops[position])
        return cls(
            names=tuple(names), forward_flops=0, terms=tuple(terms.items()), connected=everything
        )

    @classmethod
    def mean(cls, profiles: Sequence[FlopsProfile], weights: Sequence[float]) -> FlopsProfile:
        """Average step over a length distribution: profiles of one model, weighted.

        Args:
            profiles: at least one, all with the same ``names``.
            weights: how often each occurs; any scale, none negative, not all 0.
        """
        total = sum(weights)
        if not profiles or len(profiles) != len(weights):
            raise InvalidInput("mean needs at least one profile and one weight for each.")
        if any(not weight >= 0 for weight in weights) or not total > 0:
            raise InvalidInput("weights of profiles must be at least 0 and not all 0.")
        terms: dict[int, float] = {}
        connected = 0
        for profile, weight in zip(profiles, weights, strict=True):
            if profile.names != profiles[0].names:
                raise InvalidInput("only profiles of the same model can be averaged.")
            connected |= profile.connected
            for members, flops in profile.terms:
                add_term(terms, members, flops * weight)
        forward = sum(p.forward_flops * w for p, w in zip(profiles, weights, strict=True))
        return cls(
            names=profiles[0].names,
            forward_flops=forward / total,
            terms=tuple((members, flops / total) for members, flops in terms.items()),
            connected=connected,
            reference_flops=None
            if all(p.reference_flops is None for p in profiles)
            else sum(p.full_flops * w for p, w in zip(profiles, weights, strict=True)) / total,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; bit sets as hexadecimal strings."""
        return {
            "names": list(self.names),
            "forward_flops": self.forward_flops,
            "terms": [[format(members, "x"), flops] for members, flops in self.terms],
            "connected": format(self.connected, "x"),
            "reference_flops": self.reference_flops,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FlopsProfile:
        """Inverse of ``to_dict``."""
        return cls(
            names=tuple(stored["names"]),
            forward_flops=stored["forward_flops"],
            terms=tuple((int(members, 16), flops) for members, flops in stored["terms"]),
            connected=int(stored["connected"], 16),
            reference_flops=stored.get("reference_flops"),
        )


def add_term(terms: dict[int, float], members: int, flops: float) -> None:
    """Adds ``flops`` to the term of ``members``; terms that cost nothing or serve nobody vanish."""
    if members and flops:
        terms[members] = terms.get(members, 0) + flops
