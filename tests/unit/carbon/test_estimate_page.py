"""The Pareto picture: it opens offline, shows every option once, and marks the front."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from core.carbon.estimate import estimate
from core.carbon.estimate_page import to_html
from core.carbon.intensity import Intensity
from core.carbon.planner import StepCost, Wish, Work, plan

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
FORECAST = [
    Intensity(
        value_g_per_kwh=500.0 if hour % 24 < 12 else 100.0,
        zone="XX",
        source="a <b>grid</b>",
        moment=NOW + hour * HOUR,
        until=NOW + (hour + 1) * HOUR,
    )
    for hour in range(48)
]
COST = StepCost.proportional(full_s_per_step=3600.0, full_j_per_step=3.6e6)
WORK = Work(steps=4, cost=COST, rho_min=0.3)


@pytest.fixture
def document():
    told = estimate(WORK, FORECAST, NOW).to_dict()
    told["options"] = [{**o, "is_pareto": o["on_front"]} for o in told["options"]]
    told["basis"] = {"rho_min": WORK.rho_min}
    return told


def figures(page):
    text = page[page.rindex("<script>") + len("<script>") :]
    return json.loads(text[: text.index(".forEach(")])


def test_every_option_is_shown_and_the_front_is_marked(document):
    page = to_html(document, model="tiny", words="4 tokens, assumed")
    charts = figures(page)
    assert len(charts) == 3
    options = document["options"]
    for chart in charts:
        points = {trace["name"]: len(trace["x"]) for trace in chart["data"]}
        assert points["nothing beats it"] == sum(o["is_pareto"] for o in options)
        assert points["beaten by another"] == sum(not o["is_pareto"] for o in options)
        assert points["full fine-tuning now"] == 1
    line = charts[0]["data"][0]
    assert line["y"] == sorted(line["y"])
    assert line["x"] == sorted(line["x"])
    # greenest of all: the least rho in the clean hours, 4 kWh x .35 at 100 g/kWh
    assert line["x"][0] == pytest.approx(4 * 0.35 * 100, rel=1e-6)
    # no point lies above the line
    for trace in charts[0]["data"][1:]:
        for x, y in zip(trace["x"], trace["y"], strict=True):
            assert y <= max(b for a, b in zip(line["x"], line["y"], strict=True) if a <= x + 1e-9)


def test_it_is_one_file_of_well_formed_html_that_asks_for_nothing(document):
    page = to_html(document, model="<script>x", words="none")
    assert "<script>x" not in page
    assert "<b>grid" not in page

    asked = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            asked.extend(value for name, value in attrs if name in ("src", "href"))

    Checker().feed(page)
    assert asked == []


def test_the_table_says_how_to_ask_for_an_option(document):
    page = to_html(document, model="tiny", words="none")
    greenest = min(document["options"], key=lambda o: o["co2e_g"])
    (flags,) = re.findall(r"--rho 0\.35 --schedule green --deadline (\S+Z)", page)
    room = datetime.fromisoformat(flags) - datetime.fromisoformat(greenest["finish"])
    # a tenth of the work, and what is left of the quarter of an hour
    assert timedelta(0) <= room - 0.1 * timedelta(seconds=greenest["duration_s"]) <= HOUR / 4
    wish = Wish(rho=0.35, deadline=datetime.fromisoformat(flags))
    again = plan(wish, WORK, FORECAST, NOW)
    assert again.emissions_g == pytest.approx(greenest["co2e_g"], rel=1e-3)
    assert "--rho 0.35 --earliest-start 2026-03-02T06:00Z" in page


def test_nothing_fits(document):
    page = to_html({**document, "options": [], "left_out": 12}, model="tiny", words="none")
    assert "12 combinations do not fit the deadline" in page
    assert len(figures(page)[0]["data"]) == 2
