"""Rankings train what they say, from the same start."""

import argparse
from pathlib import Path

import pytest

from benchmarks.budget_run import Task
from benchmarks.rankings import endings, page, rank, reach_down_to

SETTINGS = argparse.Namespace(
    model="tiny", data=Path("sums"), rho=0.85, steps=6, batch_size=4, held_out=2, seeds=[0],
    by=["0", "0.5", "random", "equal", "default"], lowest=[0],
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory, chat_lines, tiny_model):
    folder = tmp_path_factory.mktemp("sums")
    (folder / "train.jsonl").write_bytes(chat_lines(48))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    task = Task(model=str(tiny_model), data=folder, batch_size=4, n_questions=0)
    return endings(task, SETTINGS, 0)


def test_nobody_predicts_more_than_the_ranking_by_drops(found):
    by_label = {each.label: each for each in found}
    assert len(by_label) == 6
    by_drop = by_label["drop / elements^0"]
    assert all(each.drop <= by_drop.drop * (1 + 1e-9) for each in found)
    assert by_label["drop, lowest block 0"].lowest == 0
    assert len({each.loss for each in found}) > 1


def test_rankings():
    drops, elements = {"a": 8.0, "b": 1.0}, {"a": 16, "b": 1}
    assert rank("0.5", drops, elements, 0) == {"a": 2.0, "b": 1.0}
    assert rank("equal", drops, elements, 0) == {"a": 1.0, "b": 1.0}
    assert rank("random", drops, elements, 0) != rank("random", drops, elements, 1)
    with pytest.raises(ValueError, match="best"):
        rank("best", drops, elements, 0)
    blocks = [["top"], ["middle"], ["bottom"]]
    reached = reach_down_to(1, {"top": 2.0, "middle": 1.0, "bottom": 3.0, "head": 1.0}, blocks)
    assert reached == {"top": 2.0, "middle": 1e9, "head": 1.0}


def test_the_page_has_a_row_for_each(found):
    text = page(found, SETTINGS)
    assert all(f"| {each.label} | " in text for each in found)
