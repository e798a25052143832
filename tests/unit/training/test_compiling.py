"""Whether blocks are compiled: decided once, remembered, and told.

Code is no other than the blocks' own where it is the decision that matters.
"""

import pytest
import torch

from core.errors import InvalidInput, ModelUnsupported, OutOfMemory
from core.training import compiled
from core.training.checkpoint import newest_checkpoint
from core.training.compiled import CompiledBlocks
from core.training.hooks import Control
from core.training.loop import fit
from core.training.recompute import repeated_blocks
from core.training_options import TrainingOptions
from tests.fixtures.compiling import ByTurns, Seen, compiling_job, stand_in, trained
from tests.fixtures.tiny_models import tiny_model


@pytest.fixture
def auto(monkeypatch):
    """Short jobs of small models are tried too, with this ratio."""

    def finds(ratio):
        monkeypatch.setattr(compiled, "_LEAST_STEPS", 1)
        monkeypatch.setattr(compiled, "_KIND_S", 0.0)
        monkeypatch.setattr(CompiledBlocks, "_compared", lambda _self: (1.0, ratio))

    return finds


@pytest.mark.parametrize("choice", ["off", "on", "auto"])
def test_flops_of_finding_out_are_spent(monkeypatch, auto, choice):
    auto(0.8)
    stand_in(monkeypatch)
    job, seen = compiling_job(choice=choice), Seen()
    result = fit(job, hooks=[seen])
    extra = sum(record.flops for record in seen.compilations)
    assert (extra > 0) is (choice != "off")
    assert result.selection_flops == extra
    assert result.flops - extra == pytest.approx(result.full_flops)


def test_auto_leaves_short_jobs_alone(monkeypatch):
    asked = stand_in(monkeypatch)
    seen, _ = trained(compiling_job(choice="auto"))
    [record] = seen.compilations
    assert not record.is_kept
    assert record.text == "Not compiled: 8 steps are fewer than the 1000 that measuring it takes"
    assert record.flops == 0
    assert asked == []


def test_auto_does_not_try_what_cannot_pay(auto, monkeypatch):
    auto(0.5)
    asked = stand_in(monkeypatch)
    monkeypatch.setattr(compiled, "_KIND_S", 1e6)
    seen, _ = trained(compiling_job(choice="auto"))
    assert "cannot earn back" in seen.compilations[0].text
    assert asked == []


@pytest.mark.parametrize(
    ("ratio", "is_kept", "words"),
    [(0.8, True, "which pays for it in"), (1.1, False, "which does not pay for compiling")],
)
def test_auto_keeps_what_is_faster_and_remembers(
    monkeypatch, auto, tmp_path, ratio, is_kept, words
):
    stand_in(monkeypatch)
    auto(ratio)
    polls = iter([Control.CONTINUE] * 3 + [Control.CHECKPOINT_AND_STOP])
    seen, _ = trained(
        compiling_job(choice="auto"), checkpoints=tmp_path, control=lambda: next(polls)
    )
    [record] = seen.compilations
    assert record.is_kept is is_kept
    assert words in record.text
    assert newest_checkpoint(tmp_path).state.compiled is is_kept
    # another process would measure otherwise, and does not ask
    auto(0.8 if ratio > 1 else 1.1)
    resumed, _ = trained(compiling_job(choice="auto"), checkpoints=tmp_path)
    assert [each.is_kept for each in resumed.compilations] == [True] * is_kept
    assert all(each.ratio is None for each in resumed.compilations)


def test_the_ratio_is_measured_on_the_jobs_batches(auto, monkeypatch):
    """Whatever it is for code that is no other: FLOPs tell the passes that it took."""
    compared = CompiledBlocks._compared
    auto(0.5)
    monkeypatch.setattr(CompiledBlocks, "_compared", compared)
    stand_in(monkeypatch)
    job, seen = compiling_job(choice="auto"), Seen()
    fit(job, hooks=[seen])
    [record] = seen.compilations
    assert 0 < record.ratio < 10
    # a pass to warm up and one to time, one that compiles, five pairs
    assert record.flops == pytest.approx(13 * job.profile.full_flops, rel=0.3)


def test_compiling_again_and_again_must_pay_too(monkeypatch, auto):
    """Every selection needs its own code: what is spared must be more than the next ones take."""
    stand_in(monkeypatch)
    auto(0.9999)
    seen, _ = trained(compiling_job(choice="auto", method="green", selection_interval=0.25))
    assert [record.is_kept for record in seen.compilations] == [False]


def test_auto_goes_on_where_nothing_can_be_compiled(monkeypatch, auto):
    auto(0.5)
    stand_in(monkeypatch, lambda _forward: _broken)
    plain, _ = trained(compiling_job(choice="off"))
    seen, _ = trained(compiling_job(choice="auto"))
    [record] = seen.compilations
    assert record.text == "Not compiled: no compiler here"
    assert seen.losses == plain.losses


def test_on_refuses_what_cannot_be_compiled(monkeypatch):
    stand_in(monkeypatch, lambda _forward: _broken)
    with pytest.raises(ModelUnsupported) as caught:
        trained(compiling_job())
    assert caught.value.param == "green.training.compile"
    assert "no compiler here; leave green.training.compile out" in caught.value.message


def test_auto_goes_on_where_a_later_selection_cannot_be_compiled(monkeypatch, auto):
    auto(0.01)
    stand_in(monkeypatch)
    n_blocks = len(repeated_blocks(tiny_model("llama")))
    made = []

    def make(forward):
        made.append(forward)
        return forward if len(made) <= n_blocks else _broken

    stand_in(monkeypatch, make)
    seen, _ = trained(compiling_job(choice="auto", method=ByTurns(), selection_interval=0.5))
    assert [record.is_kept for record in seen.compilations] == [True, False]
    assert seen.compilations[1].text == "Not compiled: no compiler here"
    assert len(seen.losses) == 8


def test_memory_that_runs_out_is_no_reason_to_go_on(monkeypatch, auto):
    auto(0.5)
    stand_in(monkeypatch, lambda _forward: _exhausted)
    with pytest.raises(OutOfMemory):
        trained(compiling_job(choice="auto"))


def test_auto_refuses_code_that_computes_something_else(monkeypatch, auto):
    auto(0.5)
    stand_in(monkeypatch, lambda forward: lambda *args, **kwargs: 1.5 * forward(*args, **kwargs))
    plain, _ = trained(compiling_job(choice="off"))
    seen, _ = trained(compiling_job(choice="auto"))
    assert "the loss is" in seen.compilations[0].why
    assert seen.losses == plain.losses


def test_the_choice_is_one_of_three():
    with pytest.raises(InvalidInput) as caught:
        TrainingOptions(compile="fast")
    assert caught.value.param == "green.training.compile"
    assert "off, auto, on" in caught.value.message


def _broken(*_args, **_kwargs):
    raise RuntimeError("no compiler here\nand more")


def _exhausted(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")
