"""The emissions report as JSON, as codecarbon's CSV and as the model card's entry.

Figures are rounded here and only here: to a millionth of a Wh, of a gram and of a g/kWh.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from core.carbon.account import EmissionsReport, Sum, row_emissions_g
from core.carbon.coverage import missing_s
from core.carbon.energy import MeteredRow
from core.carbon.held_out import quality_section
from core.units import joules_to_kwh, joules_to_wh

DIGITS = 6
#: rows shown before neighbours are merged, and the widths of the merged intervals (s)
MAX_INTERVALS = 500
_WIDTHS_S = (60, 300, 900, 3_600, 4 * 3_600, 24 * 3_600)
_GRAMS_PER_KG = 1_000.0
_TOKENS = 1_000
_NOT_INCLUDED = "not known for this hardware: counted as 0"

_ATTRIBUTION: dict[str | None, str] = {
    None: "Not recorded for this job's attempts.",
    "mixed": 'Attempts differ, see each of them: "machine" charges everything that CPUs and RAM '
    'used, "process" the training\'s share; cards are charged whole.',
    "machine": "Everything the machine's CPUs and RAM used while the job ran is charged to it; "
    "cards are charged whole. Other work on the host at that time is included.",
    "process": "CPU energy is this process's share of the cores' work (idle power of the host is "
    "charged to nobody); RAM by codecarbon's model; cards are charged whole.",
}

_BASELINE_RANGE = {
    "calibrated": "what measured steps repeat to, +-5 %; the meter's own error is not in it: it is "
    "the same on both sides",
    "modelled": "from nothing to everything being proportional to FLOPs; the meter's own error is "
    "not in it: it is the same on both sides",
}

#: columns of codecarbon 3.3's emissions.csv, in its order
CSV_COLUMNS = [
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
]


def to_dict(report: EmissionsReport) -> dict[str, Any]:
    """Plain JSON types; the body of ``GET /v1/fine_tuning/jobs/{id}/emissions``."""
    return {
        "object": "fine_tuning.job.emissions",
        "job_id": report.job_id,
        "zone": report.zone,
        "submitted_at": stamp(report.submitted_at),
        "started_at": stamp(report.rows[0].started_at) if report.rows else None,
        "ended_at": stamp(max(r.ended_at for r in report.rows)) if report.rows else None,
        "pue": report.pue,
        "attribution": {
            "scope": report.attribution,
            "note": _ATTRIBUTION[report.attribution],
        },
        "energy_wh": _energy(report),
        "measured": {s.name: "+".join(s.methods) for s in report.by_device},
        "measured_share": _round(report.measured_share),
        "co2e_g": _round(report.total.emissions_g),
        "co2e_g_range": _range(report),
        "intensity_g_per_kwh": _intensity(report),
        "devices": [_line(s) | {"methods": list(s.methods)} for s in report.by_device],
        "attempts": _attempts(report),
        "overheads": [_line(s) for s in report.by_overhead],
        "other_kinds": [_line(s) for s in report.by_other_kind],
        "unaccounted": _unaccounted(report),
        "revised": {
            "intervals": report.n_revised,
            "co2e_g_before": _round(report.first_emissions_g),
        },
        "baseline": _baseline(report),
        "savings": _savings(report),
        "quality": quality_section(report.held_out),
        "trained_tokens": report.trained_tokens,
        "flops_share": None if report.flops_share is None else _round(report.flops_share),
        "sci": _sci(report),
        "co2_eq_emissions": model_card_entry(report),
        "intervals": [_interval(group, report) for group in intervals(report.rows)],
        "notes": _notes(report),
    }


def model_card_entry(
    report: EmissionsReport, *, hardware: str | None = None, training_type: str = "fine-tuning"
) -> dict[str, Any]:
    """``co2_eq_emissions`` of a Hugging Face model card; emissions in grams."""
    return {
        "emissions": _round(report.total.emissions_g),
        "source": "greentune; energy by "
        + (", ".join(sorted({m for s in report.by_device for m in s.methods})) or "no meter"),
        "training_type": training_type,
        "geographical_location": report.zone,
        "hardware_used": hardware or "not recorded",
    }


def to_csv(report: EmissionsReport, *, project_name: str = "greentune") -> str:
    """Codecarbon's columns and units (kg, kWh, W; PUE included), one row per attempt.

    What this service does not know of the host is left empty.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for number in sorted({r.attempt for r in report.rows}):
        rows = [r for r in report.rows if r.attempt == number]
        writer.writerow(_csv_row(report, rows, project_name))
    return out.getvalue()


def _csv_row(
    report: EmissionsReport, rows: Sequence[MeteredRow], project_name: str
) -> dict[str, Any]:
    start, end = min(r.started_at for r in rows), max(r.ended_at for r in rows)
    duration_s = (end - start).total_seconds()
    kg = sum(row_emissions_g(r, report.kind, report.pue) for r in rows) / _GRAMS_PER_KG
    row: dict[str, Any] = {
        "timestamp": end.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "project_name": project_name,
        "run_id": f"{report.job_id}#{rows[0].attempt}",
        "experiment_id": report.job_id,
        "duration": duration_s,
        "emissions": kg,
        "emissions_rate": kg / duration_s if duration_s > 0 else 0.0,
        "region": report.zone,
        "tracking_mode": report.attribution or "",
        "on_cloud": "N",
        "pue": report.pue,
        "wue": 0,
        "water_consumed": 0,
    }
    total_j = 0.0
    for device in ("cpu", "gpu", "ram"):
        energy_j = report.pue * sum(r.energy_j for r in rows if r.device == device)
        total_j += energy_j
        row[f"{device}_energy"] = joules_to_kwh(energy_j)
        row[f"{device}_power"] = energy_j / duration_s if duration_s > 0 else 0.0
    row["energy_consumed"] = joules_to_kwh(total_j)
    return row


def intervals(rows: Sequence[MeteredRow], limit: int = MAX_INTERVALS) -> list[list[MeteredRow]]:
    """Rows in order of time; beyond ``limit``, neighbours of one device, attempt, method and
    intensity share an interval of the narrowest width that brings the number down to it, as far as
    a year of changing intensities allows.
    """
    groups = [[row] for row in rows]
    for width_s in _WIDTHS_S:
        if len(groups) <= limit:
            break
        merged: dict[tuple[Any, ...], list[MeteredRow]] = {}
        for row in rows:
            bin_ = row.started_at.timestamp() // width_s
            value = (row.intensity_g_per_kwh, row.intensity_source)
            key = (bin_, row.attempt, row.device, row.method, *value)
            merged.setdefault(key, []).append(row)
        groups = list(merged.values())
    return groups


def _interval(rows: Sequence[MeteredRow], report: EmissionsReport) -> dict[str, Any]:
    first = rows[0]
    known = first.intensity_g_per_kwh is not None
    grams = sum(row_emissions_g(r, first.intensity_kind, report.pue) for r in rows)
    return {
        "attempt": first.attempt,
        "device": first.device,
        "started_at": stamp(first.started_at),
        "ended_at": stamp(max(r.ended_at for r in rows)),
        "energy_wh": _round(joules_to_wh(sum(r.energy_j for r in rows))),
        "method": first.method,
        "measured": first.method != "estimate",
        "intensity_g_per_kwh": first.intensity_g_per_kwh,
        "kind": first.intensity_kind,
        "source": first.intensity_source,
        "zone": first.zone,
        "is_estimated": first.intensity_is_estimated,
        "co2e_g": _round(grams) if known else None,
    }


def _energy(report: EmissionsReport) -> dict[str, float]:
    """Computing energy per device, the building's share, and their total."""
    computing_wh = joules_to_wh(report.total.energy_j)
    by_device = {s.name: _round(joules_to_wh(s.energy_j)) for s in report.by_device}
    return {
        **{device: by_device.pop(device, 0.0) for device in ("gpu", "cpu", "ram")},
        **by_device,
        "pue": _round(computing_wh * (report.pue - 1)),
        "total": _round(computing_wh * report.pue),
    }


def _range(report: EmissionsReport) -> dict[str, Any]:
    return {
        "low": _round(report.emissions_low_g),
        "high": _round(report.emissions_high_g),
        "note": "measured energy +-5 %, estimated energy within a factor of two; the error of the "
        "intensity is not in it",
    }


def _intensity(report: EmissionsReport) -> dict[str, Any]:
    known = [r for r in report.rows if r.intensity_kind == report.kind and report.kind]
    mean = report.mean_intensity_g_per_kwh
    return {
        "mean": None if mean is None else _round(mean),
        "kind": report.kind,
        "source": sorted({r.intensity_source for r in known if r.intensity_source}),
        "zone": report.zone,
        "as_of": stamp(max(r.ended_at for r in known)) if known else None,
        "is_estimated": any(r.intensity_is_estimated for r in known),
        "stale": report.stale,
    }


def _line(part: Sum) -> dict[str, Any]:
    return {
        "name": part.name,
        "energy_wh": _round(joules_to_wh(part.energy_j)),
        "co2e_g": _round(part.emissions_g),
    }


def _attempts(report: EmissionsReport) -> list[dict[str, Any]]:
    sums = {s.name: s for s in report.by_attempt}
    named = {str(a.number): a for a in report.attempts}
    lines = []
    for name in sorted({*sums, *named}, key=int):
        part = sums.get(name, Sum(name=name, energy_j=0.0, emissions_g=0.0))
        attempt = named.get(name)
        lines.append(
            {
                "n": int(name),
                "worker": attempt.worker if attempt else None,
                "started_at": stamp(attempt.started_at) if attempt else None,
                "ended_at": stamp(attempt.ended_at) if attempt and attempt.ended_at else None,
                "reason": attempt.outcome if attempt else None,
                "attribution": attempt.attribution if attempt else None,
                "energy_wh": _round(joules_to_wh(part.energy_j)),
                "co2e_g": _round(part.emissions_g),
            }
        )
    return lines


def _unaccounted(report: EmissionsReport) -> dict[str, Any]:
    return {
        "energy_wh": _round(joules_to_wh(report.unaccounted_j)),
        "gaps": [
            {
                "started_at": stamp(gap.started_at),
                "ended_at": stamp(gap.ended_at),
                "devices": list(gap.devices),
                "reason": gap.reason,
            }
            for gap in report.gaps
        ],
    }


def _baseline(report: EmissionsReport) -> dict[str, Any] | None:
    against = report.baseline
    if against is None:
        return None
    effort = against.effort
    return {
        "basis": effort.basis,
        "what": "full fine-tuning of the same steps, started at submission",
        "method": effort.method,
        "energy_wh": _round(joules_to_wh(effort.energy_j * report.pue)),
        "duration_s": _round(effort.duration_s),
        "intensity_g_per_kwh": _round(against.intensity_g_per_kwh),
        "kind": against.kind,
        "source": against.source,
        "co2e_g": _round(against.emissions_g),
        "co2e_g_range": {
            "low": _round(against.low_g),
            "high": _round(against.high_g),
            "note": _BASELINE_RANGE[effort.basis],
        },
    }


def _savings(report: EmissionsReport) -> dict[str, Any] | None:
    savings = report.savings
    if savings is None:
        return None
    return {
        "co2e_g": _round(savings.emissions_g),
        "share": _round(savings.share),
        "share_range": {"low": _round(savings.share_low), "high": _round(savings.share_high)},
        "split_g": {
            "rho": _round(savings.rho_g),
            "shifting": _round(savings.shifting_g),
            "efficiency": _round(savings.efficiency_g),
        },
    }


def _sci(report: EmissionsReport) -> dict[str, Any]:
    """Software Carbon Intensity, ISO/IEC 21031:2024: ((E x I) + M) / R for two choices of R."""
    embodied = report.embodied
    embodied_g = 0.0 if embodied is None else embodied.emissions_g
    grams = report.total.emissions_g + embodied_g
    per_tokens = grams * _TOKENS / report.trained_tokens if report.trained_tokens else None
    return {
        "standard": "ISO/IEC 21031:2024",
        "operational_g": _round(report.total.emissions_g),
        "embodied_g": _round(embodied_g),
        "embodied_basis": _NOT_INCLUDED
        if embodied is None
        else f"{embodied.g_per_hour:.6g} g per hour of use x {embodied.hours:.6g} h",
        "g_per_model": _round(grams),
        "g_per_1k_trained_tokens": None if per_tokens is None else _round(per_tokens),
    }


def _notes(report: EmissionsReport) -> list[str]:
    notes = []
    if report.embodied is None:
        notes.append("The hardware's own (embodied) footprint is not included: M = 0 in the SCI.")
    if report.unaccounted_j > 0:
        notes.append("Some energy had no usable intensity: its grams are missing from co2e_g.")
    if report.by_other_kind:
        notes.append(
            f"co2e_g holds energy accounted with {report.kind} intensities only; the other kinds "
            "are listed apart, for the two do not add up."
        )
    if report.gaps:
        notes.append(
            f"{missing_s(report.gaps):.1f} s of the attempts' time were not metered "
            "(unaccounted.gaps); energy used in them is missing."
        )
    if report.measured_share < 1:
        notes.append(f"{1 - report.measured_share:.0%} of the energy is estimated, not measured.")
    if report.n_revised:
        notes.append(
            f"{report.n_revised} intervals were revised when the grid had told their intensity; "
            f"the total was {_round(report.first_emissions_g)} g of {report.kind} intensity before."
        )
    if report.stale:
        notes.append("The intensity was stale for part of the job.")
    return notes


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _round(value: float) -> float:
    return round(value, DIGITS)
