"""What a job has spent, metered: the past that each new plan starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from core.carbon.account import row_emissions_g
from core.carbon.energy import MeteredRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Computing energy, and grams with PUE, over all attempts; neither ever falls."""

    energy_j: float = 0.0
    emissions_g: float = 0.0

    @classmethod
    def of(cls, rows: Iterable[MeteredRow], *, kind: str, pue: float = 1.0) -> Self:
        """Sum of stored samples; grams of one kind of intensity only."""
        kept = tuple(rows)
        return cls(
            energy_j=sum(r.energy_j for r in kept),
            emissions_g=sum(row_emissions_g(r, kind, pue) for r in kept),
        )

    def after(self, *, energy_j: float, emissions_g: float) -> Self:
        """With another interval's spending; neither amount is negative."""
        assert energy_j >= 0, energy_j
        assert emissions_g >= 0, emissions_g
        return type(self)(
            energy_j=self.energy_j + energy_j, emissions_g=self.emissions_g + emissions_g
        )
