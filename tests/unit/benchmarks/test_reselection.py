"""Policies at a new selection: they part after the first epoch and differ as they say."""

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import Contender
from benchmarks.lab import Lab
from benchmarks.reselection import AVERAGED, CARRIED, DROPPED, ONCE, POLICIES, Run, page

RHO = 0.8


@pytest.fixture(scope="module")
def endings(tmp_path_factory, chat_lines, tiny_model):
    folder = tmp_path_factory.mktemp("sums")
    (folder / "train.jsonl").write_bytes(chat_lines(24))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    task = Task(model=str(tiny_model), data=folder, batch_size=4, n_questions=0)
    contender = Contender(method="green", rho=RHO)

    def run():
        torch.manual_seed(0)
        prepared = prepared_for(task, contender, n_steps=18, rate=None, seed=0)
        return Run(Lab(prepared), contender, 0).endings()

    return run(), run()


def test_each_policy_is_its_own_and_repeats_itself(endings):
    found, again = endings
    assert found == again
    by_policy = {each.policy: each for each in found}
    assert tuple(by_policy) == POLICIES
    assert by_policy[ONCE].kept == 1
    assert all(0 <= each.kept <= 1 for each in found)
    losses = {by_policy[policy].loss for policy in (ONCE, CARRIED, DROPPED)}
    assert len(losses) == 3, "they would not differ if a policy were not followed"


def test_the_page_has_a_row_for_each_policy(endings):
    arguments = argparse.Namespace(
        model="tiny", data=Path("sums"), rho=RHO, samples=24, epochs=3, batch_size=4, seeds=[0]
    )
    text = page(endings[0], arguments)
    assert all(f"| {policy} | " in text for policy in POLICIES)
    assert AVERAGED in text
