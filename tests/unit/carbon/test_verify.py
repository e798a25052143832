"""A report is borne out by its own samples, and one that was changed is not."""

import dataclasses
import json

import pytest

from core.carbon.evidence import Evidence
from core.carbon.page import to_html
from core.carbon.report import to_dict
from core.carbon.verify import verify
from tests.unit.carbon.rows import CALIBRATED, full_report, report


def wrong(body, evidence):
    return {check.figure for check in verify(body, evidence) if not check.agrees}


def numbers(value, path=()):
    """Every number of the JSON with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif isinstance(value, float):
        yield path, value


def changed(body, path, value):
    copy = json.loads(json.dumps(body))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("cost", [None, CALIBRATED])
def test_a_report_is_borne_out_by_its_samples_and_a_forged_one_is_not(cost):
    told, evidence = full_report(cost=cost)
    body = json.loads(json.dumps(to_dict(told)))
    assert wrong(body, evidence) == set()
    assert len(verify(body, evidence)) > 600
    fewer = dataclasses.replace(evidence, samples=evidence.samples[:-1])
    lost = wrong(body, fewer)
    assert lost >= {"co2e_g", "devices.gpu.energy_wh", "sci.g_per_model", "energy_wh.gpu"}
    found = wrong(body, dataclasses.replace(evidence, overheads=()))
    kinds = ("preparation", "selection")
    lines = {f"overheads.{kind}.{part}" for kind in kinds for part in ("co2e_g", "energy_wh")}
    assert {figure for figure in found if figure.startswith("overheads.")} == lines
    # a modelled baseline takes preparation as it was
    assert ("baseline.energy_wh" in found) is (cost is None)
    assert body["baseline"]["basis"] == ("modelled" if cost is None else "calibrated")
    assert body["unaccounted"]["gaps"][0]["started_at"] == "2026-05-01T08:01:40Z"


def test_evidence_survives_json():
    told, evidence = full_report(40, CALIBRATED)
    sent = json.loads(json.dumps(evidence.to_dict()))
    assert Evidence.from_dict(sent) == evidence
    assert wrong(to_dict(told), Evidence.from_dict(sent)) == set()


@pytest.mark.parametrize("cost", [None, CALIBRATED])
def test_no_figure_can_be_changed_unnoticed(cost):
    told, evidence = full_report(40, cost)
    body = json.loads(json.dumps(to_dict(told)))
    body["intervals"] = body["intervals"][:3]
    seen = 0
    for path, value in numbers(body):
        # what names an interval: no sample has another one's intensity
        if path[0] == "intervals" and path[-1] == "intensity_g_per_kwh":
            continue
        seen += 1
        assert wrong(changed(body, path, value + 2e-6), evidence), path
    assert seen > 45


def test_no_samples_is_a_report_too():
    told = to_dict(report([]))
    assert (told["co2e_g"], told["savings"], told["intensity_g_per_kwh"]["mean"]) == (0, None, None)
    json.dumps(told, allow_nan=False)
    assert wrong(told, Evidence(samples=())) == set()
    assert "<html" in to_html(report([]))
