"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over a set of tensors that changes.

A tensor that leaves the set loses its moments at once, so optimiser memory follows the trained
share; one that comes back starts like new. A tensor that stays keeps its moments. Weight decay
applies to matrices only (two or more dimensions), as is usual.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
#: as torch's own clipping
_NORM_FLOOR = 1e-6
#: elements; 1 MiB in float32
_PIECE = 1 << 18


@torch.no_grad()
def adamw_gain(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    moments: Mapping[str, Any],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (BETA1, BETA2),
    epsilon: float = EPSILON,
    clip: float = 1.0,
) -> torch.Tensor:
    """``-sum(gradient * delta)`` for the update ``delta`` that AdamW's next step would make.

    Args:
        moments: torch's state of the parameter (step, exp_avg, exp_avg_sq); empty: fresh.
        clip: factor by which clipping shrinks the gradient before the optimiser sees it, 0..1.
    """
    t = int(moments["step"]) + 1 if moments else 1
    means, squares = (moments.get(name) for name in ("exp_avg", "exp_avg_sq"))
    total = torch.zeros((), device=gradient.device)
    for gradient_N, mean_N, square_N, weight_N in zip(
        *(_pieces(each, like=gradient) for each in (gradient, means, squares, parameter)),
        strict=True,
    ):
        g_N = gradient_N.float()
        direction_N = _direction(g_N * clip, mean_N, square_N, t, betas=betas, epsilon=epsilon)
        if weight_decay:
            direction_N.add_(weight_N, alpha=weight_decay)
        total += torch.dot(g_N, direction_N)
    return learning_rate * total


@torch.no_grad()
def adamw_update(
    parameter_N: torch.Tensor,
    gradient_N: torch.Tensor,
    moments_N: Mapping[str, torch.Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (BETA1, BETA2),
    epsilon: float = EPSILON,
    clip: float = 1.0,
) -> torch.Tensor:
    """What AdamW's next step would take off ``parameter_N``, element by element; float32.

    Args:
        moments_N: as for `adamw_gain`, of the same elements.
    """
    t = int(moments_N["step"]) + 1 if moments_N else 1
    means_N, squares_N = (moments_N.get(name) for name in ("exp_avg", "exp_avg_sq"))
    clipped_N = gradient_N.float() * clip
    update_N = _direction(clipped_N, means_N, squares_N, t, betas=betas, epsilon=epsilon)
    return update_N.add_(parameter_N, alpha=weight_decay).mul_(learning_rate)


def _pieces(tensor: torch.Tensor | None, *, like: torch.Tensor) -> Sequence[Any]:
    """Flat pieces that stay in a core's cache with all that is computed from them: over whole
    tensors the arithmetic waits for memory, 7 to 14 times longer. On a GPU: the whole.
    """
    size = max(1, like.numel() if like.is_cuda else _PIECE)
    if tensor is None:
        return [None] * math.ceil(like.numel() / size)
    return torch.split(tensor.detach().reshape(-1), size)


def chosen(moments: Mapping[str, Any], elements: slice) -> dict[str, torch.Tensor]:
    """Torch's state of a parameter (empty: fresh), for some elements of the flattened tensor."""
    return {
        name: value if name == "step" else value.reshape(-1)[elements]
        for name, value in moments.items()
    }


def _direction(
    clipped_N: torch.Tensor,
    mean_N: torch.Tensor | None,
    square_N: torch.Tensor | None,
    t: int,
    *,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.Tensor:
    """AdamW's step number ``t`` without rate and decay; fresh moments cancel to the sign's form."""
    if mean_N is None or square_N is None:
        return clipped_N / clipped_N.abs().add_(epsilon)
    beta1, beta2 = betas
    moved_N = torch.addcmul(square_N * beta2, clipped_N, clipped_N, value=1 - beta2)
    scale_N = moved_N.div_(1 - beta2**t).sqrt_().add_(epsilon)
    return torch.add(mean_N * beta1, clipped_N, alpha=1 - beta1).div_(1 - beta1**t).div_(scale_N)


class SelectiveAdamW:
    """Args: ``parameters``: name -> tensor, all that may ever be trained."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], *, weight_decay: float
    ) -> None:
        self._parameters = dict(parameters)
        self._weight_decay = weight_decay
        self._adamw: torch.optim.AdamW | None = None
        self.names: tuple[str, ...] = ()

    def select(self, names: Collection[str]) -> None:
        """Train exactly ``names`` from now on: flags, gradients and moments follow.

        Raises:
            KeyError: a name that is no parameter.
        """
        chosen = set(names)
        if unknown := chosen - self._parameters.keys():
            raise KeyError(f"not a parameter: {min(unknown)}")
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in chosen)
            if name not in chosen:
                parameter.grad = None
        self.names = tuple(name for name in self._parameters if name in chosen)
        self._rebuild()

    def step(self, *, learning_rate: float, max_grad_norm: float) -> float:
        """Clip to ``max_grad_norm``, update, drop the gradients.

        Clipping takes no pass of its own: the fused kernel shrinks each gradient as it reads it.

        Returns:
            The norm before clipping. When it is not finite nothing was updated.
        """
        assert self._adamw is not None, "select() comes first"
        gradients = [self._parameters[name].grad for name in self.names]
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        if math.isfinite(found := float(norm)):
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            # what gradient scalers hand to fused optimisers: gradients are divided by it
            divisor = (norm + _NORM_FLOOR) / max_grad_norm if found > max_grad_norm else None
            vars(self._adamw)["grad_scale"] = divisor
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return found

    @torch.no_grad()
    def expected_gain(
        self, name: str, gradient: torch.Tensor, *, learning_rate: float, clip: float = 1.0
    ) -> torch.Tensor:
        """``-sum(gradient * delta)``: the first-order loss drop of the update that the next step
        would give this tensor; nothing is changed. A tensor outside the set counts as fresh.

        Args:
            clip: factor by which clipping shrinks the gradient before the optimiser sees it, 0..1.
        """
        parameter = self._parameters[name]
        return adamw_gain(
            parameter,
            gradient,
            self._adamw.state.get(parameter, {}) if self._adamw is not None else {},
            learning_rate=learning_rate,
            weight_decay=self._weight_decay if parameter.ndim >= 2 else 0.0,
            clip=clip,
        )

    @torch.no_grad()
    def expected_updates(
        self,
        names: Sequence[str],
        elements: Sequence[slice],
        gradients: Sequence[torch.Tensor],
        *,
        learning_rate: float,
        clip: float = 1.0,
    ) -> torch.Tensor:
        """What the next step would take off the chosen elements of each flattened tensor, were
        ``gradients`` theirs, one tensor after the other; arguments as `expected_gain`.
        """
        states = self._adamw.state if self._adamw is not None else {}
        own = [(self._parameters[name], states.get(self._parameters[name], {})) for name in names]
        if not self._weight_decay and not any(state for _, state in own):
            # nothing tells one tensor from another
            clipped_N = torch.cat(list(gradients)).mul_(clip)
            update_N = _direction(clipped_N, None, None, 1, betas=(BETA1, BETA2), epsilon=EPSILON)
            return update_N.mul_(learning_rate)
        return torch.cat(
            [
                adamw_update(
                    parameter.detach().reshape(-1)[chosen_ones],
                    gradient_N,
                    chosen(state, chosen_ones),
                    learning_rate=learning_rate,
                    weight_decay=self._weight_decay if parameter.ndim >= 2 else 0.0,
                    clip=clip,
                )
                for (parameter, state), chosen_ones, gradient_N in zip(
                    own, elements, gradients, strict=True
                )
            ]
        )

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """``<name>/<moment>`` -> tensor, for a checkpoint."""
        assert self._adamw is not None, "select() comes first"
        return {
            f"{name}/{moment}": self._adamw.state[self._parameters[name]][moment]
            for name in self.names
            if self._parameters[name] in self._adamw.state
            for moment in _MOMENTS
        }

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_tensors`, after `select` with the same names."""
        assert self._adamw is not None, "select() comes first"
        for name in self.names:
            parameter = self._parameters[name]
            if f"{name}/step" in tensors:
                self._adamw.state[parameter] = {
                    moment: tensors[f"{name}/{moment}"].to(parameter.device, copy=True)
                    for moment in _MOMENTS
                }

    def _rebuild(self) -> None:
        old = self._adamw.state if self._adamw is not None else {}
        trained = [self._parameters[name] for name in self.names]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self._weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, betas=(BETA1, BETA2), eps=EPSILON, fused=True)
        for parameter in trained:
            if parameter in old:
                self._adamw.state[parameter] = old[parameter]
