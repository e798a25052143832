"""What a job has spent of its budgets."""

from __future__ import annotations

from core.carbon.planner import Ledger
from core.jobs.records import Claim
from core.units import joules_to_wh
from worker.calibration import Calibration
from worker.energy import EnergyLog


class Purse:
    """Metered over all attempts: those before from the job's row, this one from the meter."""

    def __init__(
        self, claim: Claim, log: EnergyLog, calibration: Calibration, *, pue: float
    ) -> None:
        self._claim = claim
        self._log = log
        self._calibration = calibration
        self._pue = pue

    def ledger(self, rho: float) -> Ledger:
        """With what was used since the last sample, at the measured power of ``rho``: samples come
        every few seconds, and what lies between two of them is spent already.
        """
        before, log, token_cost = self._claim.job, self._log, self._calibration.token_cost
        energy_j = before.energy_j + log.energy_j
        emissions_g = before.emissions_g + log.emissions_g
        if token_cost.basis != "assumed":
            more_j = log.since_s * token_cost.cost.power_w(rho)
            energy_j += more_j
            emissions_g += more_j * log.g_per_joule
        return Ledger(energy_j=energy_j, emissions_g=emissions_g * self._pue)

    def overdrawn(self, spent: Ledger) -> str | None:
        """A sentence about the budget that is spent, if one is."""
        green = self._claim.spec.green
        grams, energy_wh = green.carbon_budget_g, green.energy_budget_wh
        if grams is not None and spent.emissions_g >= grams:
            return f"The carbon budget of {grams:.6g} g is spent."
        if energy_wh is not None and self.as_shown(spent)["energy_wh"] >= energy_wh:
            return f"The energy budget of {energy_wh:.6g} Wh is spent."
        return None

    def as_shown(self, spent: Ledger) -> dict[str, float]:
        """As the caller counts: with the building's share."""
        return {
            "energy_wh": joules_to_wh(spent.energy_j * self._pue),
            "co2e_g": spent.emissions_g,
        }
