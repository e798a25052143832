"""An estimate in the terminal and as a page, and moments as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from api.watch import duration
from core.carbon.estimate_page import left_out_of, to_html
from core.errors import InvalidInput
from core.moments import LONGEST, LONGEST_SAID
from core.spec import BYTES_PER_TOKEN
from core.training_options import auto_epochs

#: of options that take one that lies ahead
MOMENT = "Such as 2026-12-24T06:00Z, or +12h."
_RELATIVE = re.compile(r"([+-]\d+(?:\.\d+)?)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def moment_of(option: str, text: str | None, now: datetime) -> str | None:
    """RFC 3339 of "2026-12-24T06:00Z", or of "+12h" or "-7d" (m, h or d from now).

    Raises:
        InvalidInput: it is neither, over `LONGEST` ahead, or beyond the calendar.
    """
    if text is None:
        return None
    try:
        moment = _moment(text, now)
    except ValueError:
        raise InvalidInput(
            f"{option} must be a moment such as 2026-12-24T06:00Z, +12h or -7d; got {text!r}."
        ) from None
    except OverflowError:
        is_near = False
    else:
        is_near = moment - now <= LONGEST
    if not is_near:
        raise InvalidInput(f"{option} must be within {LONGEST_SAID} of now; got {text!r}.")
    return moment.isoformat()


def _moment(text: str, now: datetime) -> datetime:
    if found := _RELATIVE.fullmatch(text):
        return now + timedelta(**{_UNITS[found[2]]: float(found[1])})
    # without a zone it is the caller's own clock that is meant
    return datetime.fromisoformat(text).astimezone(UTC)


def amount_of(file: Path) -> tuple[int, int]:
    """About as many tokens as the file trains on, and passes over them where nobody says how
    many.
    """
    with file.open("rb") as lines:
        n_examples = sum(1 for line in lines if line.strip())
    return max(round(file.stat().st_size / BYTES_PER_TOKEN), 1), auto_epochs(n_examples)


def print_estimate(document: dict[str, Any], console: Console) -> None:
    """One line per option; those that nothing else beats are marked."""
    full = document["full_now"]
    # narrow enough for a terminal of 80 columns, where a cell that wraps makes two lines of each
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("", "RHO", "START", "FINISH", "TRAINING", "Wh", "gCO2e", "OF FULL NOW", "QUALITY"):
        is_text = name in ("", "START", "FINISH")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text)
    for option in document["options"]:
        share = option["co2e_share_of_full_now"]
        table.add_row(
            "*" if option["is_pareto"] else "",
            f"{option['rho']:.2f}",
            _clock(option["start"]) + (" green" if option["schedule"] == "green" else ""),
            _clock(option["finish"]),
            duration(option["duration_s"]),
            f"{option['energy_wh']:.4g}",
            f"{option['co2e_g']:.4g}",
            "-" if share is None else f"{share:.0%}",
            f"{option['quality']:.2f}",
        )
    console.print(table)
    for line in left_out_of(document):
        console.print(line, markup=False)
    console.print(
        f"* nothing else is greener, sooner and better at once. Full fine-tuning now: "
        f"{full['energy_wh']:.4g} Wh, {full['co2e_g']:.4g} gCO2e, {duration(full['duration_s'])}.",
        markup=False,
    )
    console.print(
        f"{basis_of(document)} green: the planner's own hours, pauses included.", markup=False
    )


def save_estimate(document: dict[str, Any], target: Path, *, model: str) -> None:
    """The Pareto picture as a page that opens offline.

    Raises:
        InvalidInput: ``target`` cannot be written.
    """
    try:
        target.write_text(to_html(document, model=model, words=basis_of(document)), "utf-8")
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}.") from error


def basis_of(document: dict[str, Any]) -> str:
    """What an estimate rests on, in a sentence."""
    basis = document["basis"]
    said = "assumed: no job has measured this model here yet"
    if basis["hardware"] is not None:
        said = f"measured on {basis['hardware']}"
    quality = basis["quality"]
    epochs = "1 epoch" if basis["n_epochs"] == 1 else f"{basis['n_epochs']} epochs"
    expected = "assumed from rho alone"
    if quality["basis"] != "assumed":
        expected = f"as {quality['n_selections']} selections of the latest job on it measured"
    return (
        f"{basis['n_tokens']} tokens x {epochs} in {document['zone']}; costs "
        f"{said}; quality {expected}."
    )


def _clock(text: str) -> str:
    return f"{datetime.fromisoformat(text):%m-%d %H:%MZ}"
