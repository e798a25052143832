"""What people type and see around estimates."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from api.estimate_table import moment_of, print_estimate, save_estimate
from core.errors import InvalidInput

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (None, None),
        ("+90m", "2026-03-02T07:30:00+00:00"),
        ("+12h", "2026-03-02T18:00:00+00:00"),
        ("+1.5d", "2026-03-03T18:00:00+00:00"),
        ("2026-12-24T06:00Z", "2026-12-24T06:00:00+00:00"),
        ("2026-12-24T06:00+02:00", "2026-12-24T04:00:00+00:00"),
    ],
)
def test_moments(text: str | None, moment: str | None) -> None:
    assert moment_of("--deadline", text, NOW) == moment


@pytest.mark.parametrize("text", ["tomorrow", "+12", "12h", ""])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InvalidInput, match="--deadline must be a moment"):
        moment_of("--deadline", text, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "+99999999999h",
        "-99999999999d",
        "+36526d",
        f"+{'9' * 400}h",
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+14:00",
        "2200-01-01T00:00Z",
    ],
)
def test_a_moment_that_is_too_far_off(text: str) -> None:
    with pytest.raises(InvalidInput, match="--deadline must be within 100 years of now; got"):
        moment_of("--deadline", text, NOW)


def test_a_report_may_begin_long_ago() -> None:
    assert moment_of("--start", "0001-01-01T00:00Z", NOW) == "0001-01-01T00:00:00+00:00"


def test_the_table_marks_what_nothing_beats_and_says_what_is_assumed() -> None:
    option = {
        "rho": 0.5,
        "schedule": "green",
        "start": "2026-03-02T12:00:00+00:00",
        "finish": "2026-03-02T13:00:00+00:00",
        "duration_s": 3600.0,
        "energy_wh": 50.0,
        "co2e_g": 2.0,
        "co2e_share_of_full_now": 0.25,
        "quality": 0.84,
        "is_pareto": True,
    }
    document = {
        "zone": "FR",
        "left_out": 2,
        "rho_too_low": [0.1],
        "options": [option, {**option, "rho": 1.0, "is_pareto": False}],
        "full_now": {**option, "energy_wh": 100.0, "co2e_g": 8.0},
        "basis": {
            "hardware": None,
            "rho_min": 0.25,
            "n_tokens": 1000,
            "n_epochs": 3,
            "quality": {"basis": "stored", "n_selections": 4},
        },
    }
    text = io.StringIO()
    print_estimate(document, Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert (
        " ".join(lines[1].split()) == "* 0.50 03-02 12:00Z green 03-02 13:00Z 1:00:00 50 2 25% 0.84"
    )
    assert not lines[2].startswith("*")
    assert lines[3] == "rho 0.1: below 0.25, the lowest that this model can do."
    assert lines[4].startswith("2 combinations do not fit the deadline")
    assert "100 Wh, 8 gCO2e" in lines[5]
    assert "assumed" in lines[6]
    narrow = io.StringIO()
    print_estimate(document, Console(file=narrow, width=80))
    assert narrow.getvalue().splitlines()[1].split()[-1] == "0.84", "a line per option"


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    document = {
        "made_at": "2026-03-02T06:00:00+00:00",
        "zone": "FR",
        "kind": "average",
        "source": "test",
        "left_out": 7,
        "rho_too_low": [],
        "options": [],
        "full_now": {
            "co2e_g": 8.0,
            "energy_wh": 100.0,
            "duration_s": 60.0,
            "quality": 1.0,
            "finish": "2026-03-02T07:00:00+00:00",
        },
        "basis": {
            "hardware": None,
            "rho_min": 0.25,
            "n_tokens": 1000,
            "n_epochs": 3,
            "quality": {"basis": "assumed", "n_selections": 0},
        },
    }
    save_estimate(document, tmp_path / "a.html", model="tiny")
    page = (tmp_path / "a.html").read_text()
    assert "Plotly" in page
    assert "7 combinations do not fit" in page
    with pytest.raises(InvalidInput, match="cannot be written"):
        save_estimate(document, tmp_path / "no" / "a.html", model="tiny")
