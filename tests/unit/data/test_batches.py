"""Every sample once an epoch, little padding, and the same batches from wherever one starts."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data.batches import BatchPlan, collate
from core.data.tokens import IGNORED, Sample
from core.errors import InvalidInput

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


def lognormal(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).lognormal(4.6, 0.6, n).astype(int).clip(1).tolist()


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_every_sample_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int):
    plan = BatchPlan(lengths, size, seed)
    batches = plan.epoch(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == plan.steps_per_epoch
    assert sorted(len(batch) for batch in batches)[1:] == [size] * (len(batches) - 1)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(0, 60))
def test_the_order_does_not_depend_on_where_one_starts(
    lengths: list[int], size: int, seed: int, start: int
):
    whole = list(islice(BatchPlan(lengths, size, seed).batches(), start + 12))
    resumed = list(islice(BatchPlan(lengths, size, seed).batches(start), 12))
    assert resumed == whole[start:]
    assert [batch.step for batch in whole] == list(range(start + 12))


def test_epochs_and_seeds_differ_and_repeat():
    lengths = lognormal(500)
    plan = BatchPlan(lengths, 8, 1)
    assert plan.epoch(0) == BatchPlan(lengths, 8, 1).epoch(0)
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(0) != BatchPlan(lengths, 8, 2).epoch(0)


def test_the_order_is_the_same_in_every_version():
    """Written down once: a job may be resumed by a newer release."""
    assert BatchPlan([5, 1, 4, 2, 3, 9, 8], 2, 42).epoch(3) == [[5, 6], [4, 3], [0, 2], [1]]


@pytest.mark.parametrize("size", [4, 16])
def test_padding_is_a_fraction_of_what_random_batches_pad(size: int):
    lengths = lognormal(4000)
    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    random = [order[at : at + size] for at in range(0, len(order), size)]

    def padding(batches: list[list[int]]) -> int:
        return sum(
            len(b) * max(lengths[i] for i in b) - sum(lengths[i] for i in b) for b in batches
        )

    grouped = padding(BatchPlan(lengths, size, 0).epoch(0))
    assert grouped < 0.15 * padding(random)
    assert grouped < 0.08 * sum(lengths)


def test_the_order_of_batches_stays_random():
    lengths = lognormal(2000)
    means = [np.mean([lengths[i] for i in batch]) for batch in BatchPlan(lengths, 8, 0).epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15
    firsts = np.mean([BatchPlan(lengths, 8, seed).epoch(0)[1] for seed in range(200)])
    assert abs(firsts - 999.5) < 120  # the mean index of 1600 draws: sigma 14 if independent


def test_the_longest_sample_comes_first():
    lengths = lognormal(1000)
    for epoch in range(3):
        assert int(np.argmax(lengths)) in BatchPlan(lengths, 8, 5).epoch(epoch)[0]


@pytest.mark.parametrize(("lengths", "size"), [([], 1), ([1], 0)])
def test_impossible_plans_are_refused(lengths: list[int], size: int):
    with pytest.raises(InvalidInput):
        BatchPlan(lengths, size, 0)


def sample(ids: list[int], labels: list[int]) -> Sample:
    return Sample(input_ids=np.array(ids, np.int32), labels=np.array(labels, np.int32))


def test_collate_pads_right_to_the_longest_of_the_batch():
    batch = collate([sample([5, 6, 7], [IGNORED, 6, 7]), sample([8], [IGNORED])], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_pads_replies_apart():
    batch = collate([sample([1, 2, 3], [4]), sample([5], [6, 7])], pad_id=0)
    assert batch["input_ids"].shape == (2, 3)
    assert batch["labels"].tolist() == [[4, IGNORED], [6, 7]]
