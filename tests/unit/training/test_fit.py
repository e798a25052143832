"""The loop: same bits however often it is stopped, and every FLOP and flag accounted for."""

import dataclasses

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from core.errors import ModelUnavailable, NanLoss, OutOfMemory, RhoInfeasible
from core.training.hooks import Control, Hook
from core.training.importance import measure_crossed_importance
from core.training.loop import fit
from core.training.optimiser import SelectiveAdamW
from core.training.probing import probe_batches
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import fit_job
from tests.fixtures.tiny_models import Batches, tiny_model

BATCHES = 5


class Records(Hook):
    def __init__(self):
        self.selections, self.steps, self.validations, self.checkpoints = [], [], [], []
        self.starts, self.ends = [], []

    def on_start(self, record):
        self.starts.append(record)

    def on_selection(self, record):
        self.selections.append(record)

    def on_step(self, record):
        self.steps.append(record)

    def on_validation(self, record):
        self.validations.append(record)

    def on_checkpoint(self, record):
        self.checkpoints.append(record)

    def on_end(self, result):
        self.ends.append(result)


def _job(kind="llama", *, method="green", rho=0.6, seed=3, dropout=0.0, model=None, **options):
    options = {"n_epochs": 2, "gradient_accumulation": 2, "weight_decay": 0.01} | options
    return fit_job(
        kind,
        TrainingOptions(**options),
        model=model or tiny_model(kind, dropout=dropout),
        method=method,
        rho=rho,
        n_batches=BATCHES,
        seed=seed,
    )


def _weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _stop_before(step):
    polls = iter(range(10**6))

    def control():
        return Control.CHECKPOINT_AND_STOP if next(polls) == step else Control.CONTINUE

    return control


@pytest.mark.parametrize(
    ("kind", "method"), [("llama", "green"), ("opt", "green"), ("t5", "green"), ("opt", "full")]
)
def test_stopped_and_resumed_at_every_step_gives_the_same_bits(kind, method, tmp_path):
    # dropout draws random numbers; half-epoch selections fall between checkpoints
    options = {"method": method, "dropout": 0.2, "selection_interval": 0.67}
    straight_job = _job(kind, **options)
    straight = fit(straight_job)
    expected = _weights(straight_job.model)
    assert straight.outcome == "finished"
    assert straight.step == straight.total_steps == 6

    for stop in range(straight.total_steps):
        folder = tmp_path / str(stop)
        first = fit(_job(kind, **options), checkpoints=folder, control=_stop_before(stop))
        assert (first.outcome, first.step) == ("paused", stop)
        resumed_job, seen = _job(kind, **options), Records()
        resumed = fit(resumed_job, checkpoints=folder, hooks=[seen])
        for name, weight in _weights(resumed_job.model).items():
            assert torch.equal(weight, expected[name]), (stop, name)
        assert resumed.outcome == "finished"
        assert seen.starts[0].step == stop
        ignored = {"train_duration_s"}
        assert {k: v for k, v in dataclasses.asdict(resumed).items() if k not in ignored} == {
            k: v for k, v in dataclasses.asdict(straight).items() if k not in ignored
        }


def test_the_same_seed_repeats_and_another_differs():
    runs = []
    for seed in (3, 3, 4):
        job = _job("opt", dropout=0.2, seed=seed)
        fit(job)
        runs.append(_weights(job.model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
    assert any(not torch.equal(runs[0][n], runs[2][n]) for n in runs[0])


def test_only_selected_tensors_change_and_no_other_holds_a_gradient():
    job = _job(n_epochs=1)
    before, seen, held = _weights(job.model), Records(), []

    def look(*_):
        held.append({n for n, p in job.model.named_parameters() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(look)
    try:
        result = fit(job, hooks=[seen])
    finally:
        handle.remove()
    after = _weights(job.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = set(seen.selections[0].names)
    assert held == [trained] * 3
    assert changed == set(result.trained_names) == trained
    assert 0 < len(changed) < len(before)


def test_every_flop_is_accounted_for():
    job, seen = _job(rho=0.6), Records()
    result = fit(job, hooks=[seen])
    price = {s.step: job.prices.of(s.names) for s in seen.selections}
    step_flops, full = 0.0, 0.0
    for step in range(result.total_steps):
        epoch, within = divmod(step, 3)
        for index in range(within * 2, min(within * 2 + 2, BATCHES)):
            batch = job.feed.batch(epoch, index)
            n_labels = int((batch["labels"][:, 1:] != -100).sum())
            shape = (3, 12, 0, n_labels)
            step_flops += price[3 * epoch](shape)
            full += job.prices.full(shape)
    assert result.full_flops == pytest.approx(full)
    assert result.flops - result.selection_flops == pytest.approx(step_flops)
    assert result.selection_flops == pytest.approx(sum(s.flops for s in seen.selections))
    assert result.selection_flops > 0
    assert result.evaluation_flops == pytest.approx(sum(v.flops for v in seen.validations))
    assert all(s.rho_planned <= 0.6 for s in seen.selections)
    assert result.tokens == 2 * sum(
        int(job.feed.batch(0, i)["attention_mask"].sum()) for i in range(BATCHES)
    )


def test_records_tell_the_whole_run():
    job, seen = _job(), Records()
    result = fit(job, hooks=[seen])
    assert [s.step for s in seen.selections] == [0, 3]
    assert [s.step for s in seen.steps] == [1, 2, 3, 4, 5, 6]
    assert [v.step for v in seen.validations] == [0, 3, 6]
    assert seen.validations[0].loss == result.first_validation_loss
    assert seen.validations[-1].loss == result.validation_loss
    assert seen.ends == [result]
    assert all(p.requires_grad for p in job.model.parameters())


def test_only_a_measured_loss_drop_gives_a_quality_curve():
    curves = {}
    for name in ("importance", "magnitude"):
        seen = Records()
        fit(dataclasses.replace(_job(max_steps=1), importance=name), hooks=[seen])
        (selection,) = seen.selections
        curves[name] = selection.quality_curve
    assert curves["magnitude"] == ()
    within = [share for rho, share in curves["importance"] if rho <= selection.rho]
    assert 0 < within[-1] < 1
    assert curves["importance"][-1][1] == 1


class Noting(Hook):
    """A feed that notes which batches are asked of it, and a hook that notes the steps done."""

    def __init__(self, feed):
        self._feed = feed
        self.seen = []

    @property
    def batches_per_epoch(self):
        return self._feed.batches_per_epoch

    def batch(self, epoch, index):
        self.seen.append((epoch, index))
        return self._feed.batch(epoch, index)

    def on_step(self, record):
        self.seen.append(f"step {record.step}")


def test_each_batch_is_made_once_and_before_the_step_ahead_of_it_is_over():
    job = _job(method="full", n_epochs=2, gradient_accumulation=2)
    noting = Noting(job.feed)
    fit(dataclasses.replace(job, feed=noting), hooks=[noting])
    firsts, seconds = [[(e, 0), (e, 1)] for e in (0, 1)], [[(e, 2), (e, 3)] for e in (0, 1)]
    assert noting.seen == [
        *firsts[0],
        *(*seconds[0], "step 1"),
        *((0, 4), "step 2"),
        *(*firsts[1], "step 3"),
        *(*seconds[1], "step 4"),
        *((1, 4), "step 5"),
        "step 6",
    ]


def test_accumulated_micro_batches_equal_one_large_batch():
    whole = {
        key: torch.cat([Batches(2).batch(0, i)[key] for i in range(2)])
        for key in ("input_ids", "attention_mask", "labels")
    }

    class One:
        batches_per_epoch = 1

        def batch(self, _epoch, _index):
            return whole

    apart = dataclasses.replace(_job(method="full", n_epochs=1), feed=Batches(2))
    together = dataclasses.replace(_job(method="full", n_epochs=1), feed=One())
    results = [fit(apart), fit(together)]
    assert results[0].train_loss == pytest.approx(results[1].train_loss, rel=1e-6)
    pairs = zip(apart.model.parameters(), together.model.parameters(), strict=True)
    for one, other in pairs:
        # Adam's first step is a sign: rounding may flip only what is next to zero
        assert (one - other).abs().max() < 2e-5


def test_rho_may_change_at_a_selection_point():
    job, seen = _job(), Records()
    shares = {0: 0.8, 3: 0.5}
    fit(dataclasses.replace(job, rho=shares.__getitem__), hooks=[seen])
    assert [s.rho for s in seen.selections] == [0.8, 0.5]
    assert seen.selections[0].rho_planned > 0.5 >= seen.selections[1].rho_planned
    assert seen.steps[3].learning_rate / seen.steps[2].learning_rate > 1  # lower rho, higher rate


def test_a_rho_below_the_minimum_is_refused():
    with pytest.raises(RhoInfeasible) as caught:
        fit(_job(rho=0.05))
    assert caught.value.rho_min > 0.33


def test_loss_falls():
    seen = Records()
    fit(_job(method="full", n_epochs=10, learning_rate=3e-2), hooks=[seen])
    assert seen.steps[-1].loss < 0.9 * seen.steps[0].loss


def test_stop_writes_nothing(tmp_path):
    result = fit(_job(), checkpoints=tmp_path / "c", control=lambda: Control.STOP)
    assert (result.outcome, result.step) == ("cancelled", 0)
    assert not (tmp_path / "c").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_spares_the_weights():
    job = _job(n_epochs=1)
    poison = 2

    class Poisoned(Hook):
        def on_step(self, record):
            if record.step == poison:
                self.before = _weights(job.model)
                job.model.get_output_embeddings().register_forward_hook(
                    lambda _m, _a, out: out * float("nan")
                )

    hook = Poisoned()
    with pytest.raises(NanLoss, match="step 3 of 3"):
        fit(job, hooks=[hook])
    assert all(torch.equal(w, hook.before[n]) for n, w in _weights(job.model).items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_named(error):
    class Full(Hook):
        def on_step(self, _record):
            raise error

    with pytest.raises(OutOfMemory, match="batch_size"):
        fit(_job(), hooks=[Full()])


def test_other_runtime_errors_pass_unchanged():
    class Broken(Hook):
        def on_step(self, _record):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fit(_job(), hooks=[Broken()])


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    fit(_job(), checkpoints=tmp_path, control=_stop_before(2))
    other = _job(model=tiny_model("llama", seed=8))
    with pytest.raises(ModelUnavailable, match="another base model"):
        fit(other, checkpoints=tmp_path)


def test_old_checkpoints_are_pruned_after_they_were_told(tmp_path):
    seen = Records()
    fit(_job(n_epochs=4), checkpoints=tmp_path, keep_checkpoints=2, hooks=[seen])
    assert [c.step for c in seen.checkpoints] == [3, 6, 9, 12]
    assert all(c.is_milestone for c in seen.checkpoints)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-00000009", "step-00000012"]


def test_a_finished_run_resumes_as_finished(tmp_path):
    first = fit(_job(), checkpoints=tmp_path)
    job, seen = _job(), Records()
    again = fit(job, checkpoints=tmp_path, hooks=[seen])
    assert again == first
    assert not seen.steps


def test_max_steps_ends_the_run_with_a_validation():
    seen = Records()
    result = fit(_job(max_steps=4), hooks=[seen])
    assert result.step == result.total_steps == 4
    assert seen.validations[-1].step == 4


def test_a_short_run_over_long_data_probes_for_the_steps_it_makes():
    job = _job(max_steps=2, gradient_accumulation=1)
    long_data = dataclasses.replace(job, feed=Batches(2000, is_pair=False))
    result = fit(long_data)
    whole_batch = job.prices.full((3, 12, 0, 33))
    # two probes of two samples each
    assert 0 < result.selection_flops < 1.5 * whole_batch


@pytest.mark.parametrize("accumulation", [1, 2])
def test_importance_under_accumulation_is_that_of_the_probes_alone(accumulation):
    job, seen = _job(gradient_accumulation=accumulation, max_steps=1), Records()
    model = tiny_model("llama")
    step, parameters = LossStep(model), dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.01)
    probes = [step.inputs(batch) for batch in probe_batches(job, 0)]
    expected = measure_crossed_importance(
        step, probes, parameters, optimiser, learning_rate=job.learning_rate(0.6, 0)
    )
    fit(job, hooks=[seen])
    [found] = seen.selections
    assert found.importance == pytest.approx(sum(expected[n] for n in found.names), rel=1e-5)
