"""How good a job is expected to become at each rho: by its own selections, else by assumption.

A selection measures what every budget's best set of tensors would gain, as a share of the most
that could be gained (`core.training.quality`). One selection looks at a few batches, so the mean
over the latest of them is taken, and of that the upper concave hull: a budget between two sets is
spent on the one for a while and on the other for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.carbon.rho import ALPHA
from core.carbon.work import QualityCurve

#: (rho, share 0..1), both rising
Points = tuple[tuple[float, float], ...]
Basis = Literal["measured", "stored", "assumed"]

#: selections whose mean is taken: enough against noise, few enough to follow the training
LATEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedQuality:
    """Args:
    basis: "measured": by the job's own selections; "stored": by an earlier job on the same base
        model; "assumed": the documented default.
    """

    curve: QualityCurve
    basis: Basis
    n_selections: int = 0

    @property
    def words(self) -> str:
        if self.basis == "assumed":
            return f"quality assumed as rho^{ALPHA:g}"
        plural = "s" if self.n_selections > 1 else ""
        whose = "" if self.basis == "measured" else " of an earlier job"
        return f"quality measured by {self.n_selections} selection{plural}{whose}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "basis": self.basis,
            "n_selections": self.n_selections,
            "points": [list(point) for point in self.curve.points],
        }


def expected_quality(own: Sequence[Points], stored: Sequence[Points] = ()) -> ExpectedQuality:
    """The best that is known.

    Args:
        own: curves of the job's selections, oldest first; empty ones are passed over.
        stored: of an earlier job on the same base model.
    """
    measured: tuple[tuple[Basis, Sequence[Points]], ...] = (("measured", own), ("stored", stored))
    for basis, curves in measured:
        latest = [curve for curve in curves if curve][-LATEST:]
        if latest:
            curve = QualityCurve(points=_hull(_mean(latest)))
            return ExpectedQuality(curve=curve, basis=basis, n_selections=len(latest))
    return ExpectedQuality(curve=QualityCurve(), basis="assumed")


def told_curves(remarks: Iterable[Mapping[str, Any] | None]) -> tuple[Points, ...]:
    """The curves in stored selections' ``data``."""
    found = (data.get("quality_curve") for data in remarks if data is not None)
    return tuple(tuple((float(rho), float(q)) for rho, q in curve) for curve in found if curve)


def _mean(curves: Sequence[Points]) -> Points:
    """At every rho that any of them names, and at 1; scaled to end at 1."""
    rhos = np.unique([1.0, *(min(rho, 1.0) for curve in curves for rho, _ in curve)])
    shares = np.mean(
        [np.interp(rhos, [0.0, *(r for r, _ in c)], [0.0, *(q for _, q in c)]) for c in curves],
        axis=0,
    )
    return tuple(zip(rhos.tolist(), (shares / shares[-1]).tolist(), strict=True))


def _hull(points: Points) -> Points:
    """Upper concave hull from (0, 0) on (Andrew's monotone chain)."""
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    for rho, share in points:
        while len(hull) > 1:
            (rho_1, share_1), (rho_2, share_2) = hull[-2:]
            if (share_2 - share_1) * (rho - rho_2) > (share - share_2) * (rho_2 - rho_1):
                break
            hull.pop()
        hull.append((rho, share))
    return tuple(hull[1:])
