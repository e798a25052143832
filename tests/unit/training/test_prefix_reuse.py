"""Runs with stored hidden states: the same bits as without, fewer FLOPs, exactly counted."""

import dataclasses

import pytest
import torch

from core.data.batches import BatchPlan, collate
from core.data.tokens import Sample
from core.training.hooks import Control, Hook
from core.training.interval import NOTHING_SPARED, min_rho
from core.training.loop import fit
from core.training.methods import Choice
from core.training.prefix import PrefixReuse
from core.training.prefix_layout import find_layout
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import fit_job
from tests.fixtures.tiny_models import CAUSAL, PAIRS, VOCABULARY, padded_batch, tiny_model

EXACT = PrefixReuse(memory_bytes=1 << 24)
N_SAMPLES, BATCH_SIZE = 11, 3


class Regrouped:
    """Samples of many lengths, in batches of another composition each epoch (or the same)."""

    def __init__(self, *, is_pair, is_fixed=False):
        generator = torch.Generator().manual_seed(5)

        def ids(low, high):
            length = int(torch.randint(low, high, (1,), generator=generator))
            return torch.randint(3, VOCABULARY, (length,), generator=generator).int().numpy()

        inputs = [ids(4, 20) for _ in range(N_SAMPLES)]
        labels = [ids(2, 9) if is_pair else sample.copy() for sample in inputs]
        if not is_pair:
            for each in labels:
                each[: len(each) // 2] = -100
        self._samples = [Sample(input_ids=i, labels=n) for i, n in zip(inputs, labels, strict=True)]
        self._plan = BatchPlan([len(i) for i in inputs], BATCH_SIZE, 1)
        self._is_fixed = is_fixed

    @property
    def batches_per_epoch(self):
        return self._plan.steps_per_epoch

    def batch(self, epoch, index):
        order = self._plan.epoch(0 if self._is_fixed else epoch)
        return collate([self._samples[at] for at in order[index]], 1)


class Steps(Hook):
    def __init__(self):
        self.steps, self.validations, self.selections = [], [], []

    def on_step(self, record):
        self.steps.append(record)

    def on_validation(self, record):
        self.validations.append(record)

    def on_selection(self, record):
        self.selections.append(record)


@dataclasses.dataclass
class Scripted:
    """Trains what it is told, one entry for each selection point."""

    script: list
    name = rate_rule = "green"
    reselects = True
    ranks = True

    def rho_min(self, profile, spared=NOTHING_SPARED):
        return min_rho(profile, spared)

    def quality(self, _point):
        return ()

    def choose(self, point):
        names = self.script.pop(0)
        if names is None:
            point.measure_importance()
            names = point.profile.trainable
        return Choice(names=tuple(names), rho=0.5, rho_planned=0.5, importance=None)


def _job(kind, *, reuse=EXACT, is_fixed=False, method=None, dropout=0.0, **options):
    is_pair = kind in PAIRS
    options = {"n_epochs": 3, "gradient_accumulation": 2, "learning_rate": 1e-2} | options
    return fit_job(
        kind,
        TrainingOptions(**{"selection_interval": 50.0} | options),
        model=tiny_model(kind, dropout=dropout),
        method=method or Scripted([_upper(kind)]),
        rho=0.5,
        feed=Regrouped(is_pair=is_pair, is_fixed=is_fixed),
        validation=[padded_batch(seed=7, is_pair=is_pair)],
        reuse=reuse,
    )


def _upper(kind, place=1):
    """Tensors of the last blocks: of the decoder where there are two."""
    layout = find_layout(tiny_model(kind))
    chain = layout.chains[-1]
    prefix = chain.blocks[place].path
    return [n for n in layout.first_use if n.startswith(f"{prefix}.")]


def _run(job, **kwargs):
    seen = Steps()
    result = fit(job, hooks=[seen], **kwargs)
    return result, seen, {n: p.detach().clone() for n, p in job.model.named_parameters()}


def _distance(one, other):
    return max(float((one[n] - other[n]).abs().max()) for n in one)


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS])
def test_losses_and_weights_are_those_without_reuse(kind):
    without, plain, expected = _run(_job(kind, reuse=None, is_fixed=True))
    reused, seen, found = _run(_job(kind, is_fixed=True))
    assert [step.loss for step in seen.steps] == [step.loss for step in plain.steps]
    assert [v.loss for v in seen.validations] == [v.loss for v in plain.validations]
    assert _distance(expected, found) == 0
    assert reused.full_flops == without.full_flops
    assert reused.flops < 0.95 * without.flops
    assert reused.evaluation_flops < 0.95 * without.evaluation_flops


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_rows_serve_batches_that_are_grouped_anew(kind):
    # equal bits here, too, on the machines seen so far; kernels are free to round otherwise
    without, plain, _ = _run(_job(kind, reuse=None))
    reused, seen, _ = _run(_job(kind))
    expected = [step.loss for step in plain.steps]
    assert [step.loss for step in seen.steps] == pytest.approx(expected, rel=1e-4)
    assert reused.flops < 0.95 * without.flops


def test_reuse_lasts_from_one_selection_to_the_next_where_the_boundary_holds():
    last, both = _upper("llama", 2), [*_upper("llama", 1), *_upper("llama", 2)]
    importance_first, sinks = [None, last, last], [last, both, both]
    for script, is_sparing in ((importance_first, [False, False, True]), (sinks, [False] * 2)):
        kinds = {"selection_interval": 1.0, "n_epochs": 3, "is_fixed": True}
        _, plain, expected = _run(_job("llama", reuse=None, method=Scripted([*script]), **kinds))
        _, seen, found = _run(_job("llama", method=Scripted([*script]), **kinds))
        assert _distance(expected, found) == 0
        spent = [step.flops for step in seen.steps]
        without = [step.flops for step in plain.steps]
        for epoch, spares in enumerate(is_sparing):
            end = (epoch + 1) * 2
            saved = (without[end - 1] - spent[end - 1]) > (
                without[end - 3] - spent[end - 3] if epoch else 0
            )
            assert saved == spares, (script is sinks, epoch)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_stopped_and_resumed_gives_the_same_bits(kind, tmp_path):
    straight, _, expected = _run(_job(kind, dropout=0.2))
    for stop in (1, 3, 5):  # within an epoch that fills, one that reuses, the last
        assert stop < straight.total_steps
        folder = tmp_path / str(stop)
        polls = iter(range(100))
        _run(
            _job(kind, dropout=0.2),
            checkpoints=folder,
            control=lambda polls=polls, stop=stop: (
                Control.CHECKPOINT_AND_STOP if next(polls) == stop else Control.CONTINUE
            ),
        )
        resumed, _, found = _run(_job(kind, dropout=0.2), checkpoints=folder)
        assert _distance(expected, found) == 0, stop
        assert resumed.validation_loss == straight.validation_loss
        assert resumed.flops > straight.flops  # what was lost was computed again, and is counted


def test_rows_of_an_earlier_selection_are_there_again_after_a_stop(tmp_path):
    """Their boundary, too: blocks between it and the new selection's keep their dropout."""
    layout = find_layout(tiny_model("opt"))
    above_all = [n for n, use in layout.first_use.items() if use == len(layout.stations) - 1]

    def job():
        script = Scripted([_upper("opt"), above_all, above_all])
        return _job("opt", method=script, dropout=0.2, selection_interval=1.0)

    straight, seen, expected = _run(job())
    spent = [step.flops for step in seen.steps]
    assert spent[3] - spent[2] < spent[1] - spent[0], "the second selection finds rows stored"
    for stop in range(1, straight.total_steps):
        folder, polls = tmp_path / str(stop), iter(range(100))
        stopped = job()
        _run(
            stopped,
            checkpoints=folder,
            control=lambda polls=polls, stop=stop: (
                Control.CHECKPOINT_AND_STOP if next(polls) == stop else Control.CONTINUE
            ),
        )
        # selections that the interrupted run made are not asked for again
        rest = dataclasses.replace(job(), method=stopped.method)
        resumed, again, found = _run(rest, checkpoints=folder)
        losses = [step.loss for step in seen.steps[stop:]]
        assert [step.loss for step in again.steps] == losses, stop
        assert [v.loss for v in again.validations] == [
            v.loss for v in seen.validations if v.step > stop
        ]
        assert _distance(expected, found) == 0, stop
        assert resumed.evaluation_flops >= straight.evaluation_flops


def test_a_finished_run_is_not_refilled(tmp_path):
    first, _, _ = _run(_job("llama"), checkpoints=tmp_path)
    again, _, _ = _run(_job("llama"), checkpoints=tmp_path)
    assert again == first


@pytest.mark.parametrize("memory_bytes", [0, 1500])
def test_rows_on_disk_give_the_same_bits_and_a_full_store_only_saves_less(memory_bytes, tmp_path):
    _, _, expected = _run(_job("llama", reuse=None, is_fixed=True))
    in_memory, _, _ = _run(_job("llama", is_fixed=True))
    disk = PrefixReuse(memory_bytes=memory_bytes, disk_bytes=1 << 20, folder=tmp_path)
    on_disk, _, found = _run(_job("llama", reuse=disk, is_fixed=True))
    assert _distance(expected, found) == 0
    assert on_disk.flops == in_memory.flops
    assert list(tmp_path.iterdir()) == []
    small, _, found = _run(
        _job("llama", reuse=PrefixReuse(memory_bytes=memory_bytes), is_fixed=True)
    )
    assert _distance(expected, found) == 0
    assert small.flops > in_memory.flops
