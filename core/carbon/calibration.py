"""What a trained token costs on a machine: measured where a job has run, assumed before that.

A job's first steps are timed and metered (work that counts, nothing is thrown away); each
measurement is one point (rho, seconds, joules) per trained token. Until there is one, the cost is
assumed from the model's size: 6 FLOPs per parameter and token for full fine-tuning (Kaplan et al.,
arXiv 2001.08361, section 2.1), at the throughput and power of a plain host, and in proportion to
rho.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from core.carbon.work import CostPoint, StepCost
from core.units import FLOPS_PER_GFLOP, FLOPS_PER_TFLOP

#: where the figures of a plan come from, best first
Basis = Literal["measured", "stored", "assumed"]

FLOPS_PER_PARAMETER_AND_TOKEN: Final = 6.0
#: sustained FLOP/s and watts: two cores of a server without an accelerator; one data-centre card
#: at 30 % of its dense bf16 peak. Both are replaced by the first measurement.
ASSUMED_HOST: Final[dict[str, tuple[float, float]]] = {
    "cpu": (60 * FLOPS_PER_GFLOP, 50.0),
    "cuda": (100 * FLOPS_PER_TFLOP, 500.0),
}
#: of a model whose name does not say: the smallest one in common use
ASSUMED_PARAMETERS: Final = 135e6
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """Seconds and joules per trained token, and where they come from."""

    cost: StepCost
    basis: Basis

    def per_step(self, tokens_per_step: float) -> StepCost:
        return scaled(self.cost, seconds=tokens_per_step, joules=tokens_per_step)


def parameters_of(model: str) -> float:
    """As the model's name states it ("...-135M-..."), else `ASSUMED_PARAMETERS`."""
    found = _SIZE.search(model.rsplit("/", 1)[-1].replace("-", " ").replace("_", " "))
    if found is None:
        return ASSUMED_PARAMETERS
    return float(found[1]) * {"m": 1e6, "b": 1e9}[found[2].lower()]


def assumed(full_flops_per_token: float, device: str = "cpu") -> TokenCost:
    """Before any measurement.

    Args:
        full_flops_per_token: forward and backward of full fine-tuning.
        device: "cpu" or "cuda".
    """
    flops_per_s, power_w = ASSUMED_HOST.get(device, ASSUMED_HOST["cpu"])
    seconds = full_flops_per_token / flops_per_s
    cost = StepCost.proportional(full_s_per_step=seconds, full_j_per_step=seconds * power_w)
    return TokenCost(cost=cost, basis="assumed")


def assumed_of(model: str) -> TokenCost:
    """`assumed` by the name alone."""
    return assumed(FLOPS_PER_PARAMETER_AND_TOKEN * parameters_of(model))


def fitted(points: Iterable[CostPoint], basis: Basis) -> TokenCost:
    """Through measured points, made to rise with rho: neighbours that fall are averaged (pool
    adjacent violators, the least-squares rising fit).
    """
    ordered = sorted(points, key=lambda p: p.rho)
    seconds = _rising([p.s_per_step for p in ordered])
    joules = _rising([p.j_per_step for p in ordered])
    found = tuple(
        CostPoint(rho=p.rho, s_per_step=s, j_per_step=j)
        for p, s, j in zip(ordered, seconds, joules, strict=True)
    )
    return TokenCost(cost=StepCost(points=found), basis=basis)


def through(base: TokenCost, measured: CostPoint) -> TokenCost:
    """``base``'s course over rho, scaled to pass through the one point that was measured here."""
    return TokenCost(
        cost=scaled(
            base.cost,
            seconds=measured.s_per_step / base.cost.s_per_step(measured.rho),
            joules=measured.j_per_step / base.cost.j_per_step(measured.rho),
        ),
        basis="measured",
    )


def scaled(cost: StepCost, *, seconds: float, joules: float) -> StepCost:
    return StepCost(
        points=tuple(
            CostPoint(
                rho=p.rho, s_per_step=p.s_per_step * seconds, j_per_step=p.j_per_step * joules
            )
            for p in cost.points
        )
    )


def _rising(values: list[float]) -> list[float]:
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            earlier_total, earlier_count = pools.pop()
            total, count = total + earlier_total, count + earlier_count
        pools.append((total, count))
    flat = [total / count for total, count in pools for _ in range(count)]
    assert all(math.isfinite(v) for v in flat), values
    return flat
