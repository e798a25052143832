"""Whether the samples are still those that were stored: two records were kept apart from them.

`core.carbon.verify` finds every figure in the rows, and so says nothing about a row that was
changed since: the report is then made of the changed row. Against that stand

``kept``        the sums at the job and its attempts, added to whenever samples were stored
``delivered``   the report file that came with the result, written once

Whoever changes all of them alike is not found out: nothing here is signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from core.carbon.energy import MeteredRow
from core.carbon.evidence import Evidence
from core.carbon.verify import Check, verify_spent
from core.units import joules_to_wh

_J_PER_WH = 3600
_J_PER_KWH = 3_600_000
#: what a report still has in common with rows whose intensity was revised since
_LISTS = ("devices.", "attempts.", "overheads.")
_FIGURES = ("measured_share", "trained_tokens", "flops_share")


def check_kept(evidence: Evidence) -> tuple[Check, ...]:
    """Energy and grams of the samples beside the sums that were kept; none kept, none checked."""
    if not evidence.kept:
        return ()
    stated = {part.attempt: part for part in evidence.kept}
    attempts = {row.attempt for row in evidence.samples} | (stated.keys() - {None})
    return tuple(
        check
        for attempt in (None, *sorted(n for n in attempts if n is not None))
        for check in _sums(
            "kept.job" if attempt is None else f"kept.attempts.{attempt}",
            stated.get(attempt),
            [row for row in evidence.samples if attempt in (None, row.attempt)],
        )
    )


def _sums(name: str, part: Any, rows: list[MeteredRow]) -> Iterator[Check]:
    joules = sum((Fraction(row.energy_j) for row in rows), Fraction(0))
    grams = sum(
        (
            Fraction(row.energy_j) * Fraction(row.intensity_g_per_kwh)
            for row in rows
            if row.intensity_g_per_kwh is not None
        ),
        Fraction(0),
    )
    yield Check(
        figure=f"{name}.energy_wh",
        stated=None if part is None else joules_to_wh(part.energy_j),
        exact=joules / _J_PER_WH,
    )
    yield Check(
        figure=f"{name}.co2e_g",
        stated=None if part is None else part.emissions_g,
        exact=grams / _J_PER_KWH,
    )


def check_delivered(delivered: dict[str, Any], evidence: Evidence) -> tuple[Check, ...]:
    """The delivered report's figures beside what the samples come to now.

    All that follows from samples; where intensities were revised since, energy and work alone (of
    whole attempts and devices), for grams have rightly become others.
    """
    checks = verify_spent(delivered, evidence)
    if any(row.revised_from is not None for row in evidence.samples):
        checks = tuple(check for check in checks if _outlasts_revision(check.figure))
    return tuple(
        Check(figure=f"delivered.{c.figure}", stated=c.stated, exact=c.exact) for c in checks
    )


def _outlasts_revision(figure: str) -> bool:
    is_energy = figure.startswith(_LISTS) and figure.endswith(".energy_wh")
    return is_energy or figure.startswith("energy_wh.") or figure in _FIGURES
