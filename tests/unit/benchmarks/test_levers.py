"""Levers spend the same FLOPs, each in its own way."""

import argparse
from pathlib import Path

import pytest

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL
from benchmarks.lab import Lab
from benchmarks.levers import LEVERS, LeverRun, page

STEPS = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory, chat_lines, tiny_model):
    folder = tmp_path_factory.mktemp("sums")
    (folder / "train.jsonl").write_bytes(chat_lines(48))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    task = Task(model=str(tiny_model), data=folder, batch_size=4, n_questions=0)
    return Lab(prepared_for(task, FULL, n_steps=STEPS, rate=None, seed=0))


@pytest.fixture(scope="module")
def endings(lab):
    base, full = lab.weights(), lab.prepared.prices.full
    budget = sum(full(lab.inputs(lab.batch(step)).shape) for step in range(STEPS))
    levers = [lever for lever in LEVERS if all(rho >= 0.7 for _, rho in lever.parts)]
    found = []
    for lever in levers:
        lab.put(base)
        run = LeverRun(lab, lever, budget)
        found.append(run.end(0))
        # the last step may go over
        dearest = max(full(lab.inputs(lab.batch(step)).shape) for step in range(STEPS))
        assert budget <= run.spent_flops < budget + dearest
    return found


def test_everybody_spends_the_budget_and_gets_as_many_steps_as_it_pays_for(endings):
    steps = {each.label: each.n_steps for each in endings}
    assert steps["full"] == STEPS
    assert steps["half batches"] > steps["selective backpropagation"] > STEPS
    assert steps["green .7"] > steps["full, from a half on .7"] > STEPS
    assert len({each.loss for each in endings}) == len(endings)


def test_the_hardest_samples_are_those_of_the_highest_loss(lab):
    batch = lab.batch(0)
    kept = lab.hardest(batch, 2)

    def losses(of):
        return [
            lab.loss_of({n: t[at : at + 1] for n, t in of.items()})
            for at in range(len(of["labels"]))
        ]

    assert sorted(losses(kept)) == pytest.approx(sorted(losses(batch))[-2:])


def test_the_page_has_a_row_for_each(endings):
    arguments = argparse.Namespace(model="tiny", data=Path("sums"), batch_size=4, steps=STEPS)
    text = page(endings, arguments)
    assert all(f"| {each.label} | " in text for each in endings)
    assert "+0.000" in text
