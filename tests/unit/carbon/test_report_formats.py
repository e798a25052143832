"""A report as CSV and as a page, and as intervals for display."""

import csv
import dataclasses
import io
import json
import math

import pytest

from core.carbon.page import to_html
from core.carbon.report import CSV_COLUMNS, intervals, to_csv, to_dict
from core.jobs.records import HeldOutRecord
from tests.unit.carbon.rows import T0, at, full_report, report, row


def test_long_jobs_are_merged_for_display_without_losing_energy():
    told, _ = full_report()
    rows = told.rows
    groups = intervals(rows, limit=500)
    assert len(groups) <= 500
    assert sum(r.energy_j for g in groups for r in g) == pytest.approx(
        sum(r.energy_j for r in rows)
    )
    assert all(len({(r.device, r.attempt, r.intensity_g_per_kwh) for r in g}) == 1 for g in groups)


def test_csv_has_codecarbons_columns_and_units():
    emissions_data = pytest.importorskip("codecarbon.output_methods.emissions_data").EmissionsData
    assert [f.name for f in dataclasses.fields(emissions_data)] == list(CSV_COLUMNS)
    rows = [row(0, 2, 1.0, 300, device="gpu"), row(0, 2, 0.5, 300), row(3, 4, 1, 100, attempt=2)]
    lines = list(csv.DictReader(io.StringIO(to_csv(report(rows, pue=2.0)))))
    assert [float(line["emissions"]) for line in lines] == pytest.approx([0.9, 0.2])
    assert float(lines[0]["gpu_energy"]) == pytest.approx(2.0)
    assert float(lines[0]["cpu_power"]) == pytest.approx(500)
    assert float(lines[0]["duration"]) == 7200


def test_the_page_is_self_contained_and_escapes_what_users_wrote():
    told, _ = full_report()
    page = to_html(told, rho_history=[(T0, 0.5), (at(1), 0.4)], budget_g=150.0)
    assert "Plotly" in page
    assert "w&lt;1&gt;" in page
    assert "w<1>" not in page
    assert 'src="http' not in page
    assert page.count("class=chart") == 3


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, None),
        (
            {"first_validation_loss": 3.25, "validation_loss": math.nan},
            "validation loss 3.2500 before training, not known after.",
        ),
        (
            {"first_scores": {"f1": 1.0, "rougeL": 2.0}, "scores": {"f1": 2.0, "rougeL": 7.0}},
            "f1 1.00 before training, 2.00 after; rougeL 2.00 before training, 7.00 after.",
        ),
    ],
)
def test_the_page_tells_what_is_known_of_quality(figures, words):
    told = dataclasses.replace(full_report()[0], held_out=HeldOutRecord(**figures))
    json.dumps(to_dict(told), allow_nan=False)
    page = to_html(told)
    if words is None:
        assert to_dict(told)["quality"] is None
        assert "Held-out data" not in page
    else:
        assert f"<p>Held-out data: {words}</p>" in page
