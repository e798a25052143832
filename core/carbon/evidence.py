"""The raw rows that every figure of a report follows from, on their way to whoever checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

from core.carbon.account import EmissionsReport, Overhead, OverheadRow
from core.carbon.compose import JobFacts
from core.carbon.energy import MeteredEnergy, MeteredRow, Original
from core.carbon.report import stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSlot:
    """A value of the grid's that the baseline counts with; ``ended_at`` None: from there on."""

    started_at: datetime
    ended_at: datetime | None
    intensity_g_per_kwh: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSum:
    """What an attempt, or (``attempt`` None) the job, has come to: added up as its samples were
    stored, and kept apart from them. Computing energy; grams without PUE, of all kinds together.
    """

    attempt: int | None
    energy_j: float
    emissions_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Stored rows, to the last bit, and what the job's row says of its work.

    Args:
        samples: of all attempts.
        kept: of the job and of every attempt; empty where none are kept (`greentune run`).
        overheads: times that went into something other than training steps.
        grid: from the submission on, as long as the baseline lasts; empty without a baseline.
        full_s_per_token, full_j_per_token: full fine-tuning as measured; None: never was.
    """

    samples: tuple[MeteredRow, ...]
    kept: tuple[KeptSum, ...] = ()
    overheads: tuple[OverheadRow, ...] = ()
    grid: tuple[GridSlot, ...] = ()
    trained_tokens: int = 0
    spent_flops: float = 0.0
    full_flops: float = 0.0
    full_s_per_token: float | None = None
    full_j_per_token: float | None = None
    embodied_g_per_hour: float | None = None

    @classmethod
    def of(
        cls,
        report: EmissionsReport,
        job: JobFacts,
        overheads: Sequence[OverheadRow] = (),
        kept: Sequence[KeptSum] = (),
    ) -> Self:
        cost = job.full_cost
        return cls(
            samples=report.rows,
            kept=tuple(kept),
            overheads=tuple(overheads),
            grid=tuple(
                GridSlot(
                    started_at=slot.moment,
                    ended_at=slot.until,
                    intensity_g_per_kwh=slot.value_g_per_kwh,
                )
                for slot in (() if report.baseline is None else report.baseline.slots)
            ),
            trained_tokens=job.trained_tokens,
            spent_flops=job.spent_flops,
            full_flops=job.full_flops,
            full_s_per_token=None if cost is None else cost.s_per_token,
            full_j_per_token=None if cost is None else cost.j_per_token,
            embodied_g_per_hour=job.embodied_g_per_hour,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "samples": [_stamped(asdict(_own(row))) for row in self.samples],
            "kept": [asdict(part) for part in self.kept],
            "overheads": [
                _stamped({name: getattr(o, name) for name in ("kind", "started_at", "ended_at")})
                for o in self.overheads
            ],
            "grid": [_stamped(asdict(slot)) for slot in self.grid],
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        return cls(
            **{name: body[name] for name in _NUMBERS},
            samples=tuple(_row_of(row) for row in body["samples"]),
            kept=tuple(KeptSum(**part) for part in body.get("kept", ())),
            overheads=tuple(Overhead(**_parsed(row)) for row in body["overheads"]),
            grid=tuple(GridSlot(**_parsed(row)) for row in body["grid"]),
        )


_NUMBERS = (
    "trained_tokens",
    "spent_flops",
    "full_flops",
    "full_s_per_token",
    "full_j_per_token",
    "embodied_g_per_hour",
)


def _own(row: MeteredRow) -> MeteredEnergy:
    own = {name: getattr(row, name) for name in MeteredEnergy.__dataclass_fields__}
    if row.revised_from is not None:
        names = Original.__dataclass_fields__
        own["revised_from"] = Original(**{n: getattr(row.revised_from, n) for n in names})
    return MeteredEnergy(**own)


def _row_of(body: Mapping[str, Any]) -> MeteredEnergy:
    row = _parsed(body)
    if row["revised_from"] is not None:
        row["revised_from"] = Original(**row["revised_from"])
    return MeteredEnergy(**row)


def _stamped(body: dict[str, Any]) -> dict[str, Any]:
    return {k: stamp(v) if isinstance(v, datetime) else v for k, v in body.items()}


def _parsed(body: Mapping[str, Any]) -> dict[str, Any]:
    moments = ("started_at", "ended_at")
    return {
        name: datetime.fromisoformat(value) if name in moments and value is not None else value
        for name, value in body.items()
    }
