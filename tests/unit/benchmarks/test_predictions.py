"""Predicted against realised drops: every contender starts from the same state."""

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL
from benchmarks.lab import Lab
from benchmarks.predictions import CONTENDERS, intervals, page

INTERVAL = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, chat_lines, tiny_model):
    folder = tmp_path_factory.mktemp("sums")
    (folder / "train.jsonl").write_bytes(chat_lines(40))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    task = Task(model=str(tiny_model), data=folder, batch_size=4, n_questions=0)
    return prepared_for(task, FULL, n_steps=12, rate=None, seed=0)


def test_trying_contenders_leaves_the_run_as_it_would_have_been(prepared):
    parameters = dict(prepared.loaded.model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}

    def ends_with(points):
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
        found = intervals(Lab(prepared, held_out=2), points, INTERVAL, seed=0)
        return found, {name: p.detach().clone() for name, p in parameters.items()}

    found, interrupted = ends_with([0, 3])
    _, plain = ends_with([3])
    assert all(torch.equal(interrupted[name], plain[name]) for name in parameters)
    assert any(not torch.equal(interrupted[name], before[name]) for name in parameters)
    assert {each.point for each in found} == {0, 3}
    # the last block of so small a model costs more than half
    assert {each.label for each in found} == {c.label for c in CONTENDERS} - {"last_k 0.5"}
    # the same set, once at the common rate and once at its share's own: the prediction is linear
    for one in found:
        if one.is_rule:
            common = next(
                e for e in found
                if (e.label, e.point, e.is_rule) == (one.label, one.point, False)
            )  # fmt: skip
            assert one.predicted / common.predicted == pytest.approx(one.rate / common.rate)
    # more FLOPs, no less predicted
    shares = sorted((e.share, e.predicted) for e in found if e.point == 0 and "green" in e.label
                    and not e.is_rule)  # fmt: skip
    assert [p for _, p in shares] == sorted(p for _, p in shares)

    arguments = argparse.Namespace(
        model="tiny", data=Path("sums"), batch_size=4, interval=INTERVAL, held_out=2, seeds=[0]
    )
    text = page(found, arguments)
    assert "## After 3 steps of full fine-tuning" in text
    assert text.count("| full | ") == 2
