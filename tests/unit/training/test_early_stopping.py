"""Early stopping: when training ends, and whose weights the model then has, to the bit."""

import dataclasses

import pytest
import torch

from core.errors import InvalidInput
from core.spec import JobSpec
from core.training.checkpoint import TrainState, newest_checkpoint
from core.training.early_stopping import EarlyStopping
from core.training.evaluate import Evaluation, evaluate
from core.training.hooks import Control, EvaluationRecord, Hook
from core.training.loop import fit
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import fit_job
from tests.fixtures.tiny_models import Batches, tiny_model

BATCHES = 3
EPOCHS = 9


class Told(Hook):
    """Validations, and the weights that each was of."""

    def __init__(self, model):
        self._model = model
        self.losses, self.weights, self.kept = {}, {}, []

    def on_validation(self, record):
        self.losses[record.step] = record.loss
        self.weights[record.step] = _weights(self._model)

    def on_best_kept(self, record):
        self.kept.append(record)


def _in_another_order(batch):
    """The same answers' tokens at other places: how often each occurs can be learnt from it, and
    is first; which one comes where cannot, and what is learnt of that makes them less likely.
    """
    labels = batch["labels"].clone()
    rows, columns = torch.nonzero(labels != -100, as_tuple=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    labels[rows, columns] = labels[rows[order], columns[order]]
    return {**batch, "labels": labels}


def _job(*, patience=2, rate=3e-2, rho=0.9, method="green", ask=None, **options):
    feed = Batches(BATCHES)
    training = TrainingOptions(
        **{"n_epochs": EPOCHS, "learning_rate": rate, "schedule": "constant"}
        | {"early_stopping_patience": patience}
        | options
    )
    return fit_job(
        "llama",
        training,
        model=tiny_model("llama", dropout=0.1),
        method=method,
        rho=rho,
        feed=feed,
        validation=[_in_another_order(feed.batch(0, at)) for at in range(BATCHES)],
        ask=ask,
    )


def _weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _best(losses):
    after = {step: loss for step, loss in losses.items() if step > 0}
    return min(after, key=after.get)


@pytest.mark.parametrize("method", ["green", "full"])
def test_training_ends_when_patience_has_run_out_and_the_best_weights_are_kept(method):
    job = _job(method=method)
    told = Told(job.model)
    result = fit(job, hooks=[told])
    best = _best(told.losses)
    assert best > BATCHES
    assert result.outcome == "finished"
    assert result.step == best + 2 * BATCHES < result.total_steps
    assert result.kept_step == best
    assert result.validation_loss == told.losses[best] < told.losses[result.step]
    step = LossStep(job.model)
    assert evaluate(step, map(step.inputs, job.validation)).loss == result.validation_loss
    for name, weight in _weights(job.model).items():
        assert torch.equal(weight, told.weights[best][name]), name
    (kept,) = told.kept
    assert (kept.step, kept.kept_step, kept.loss) == (result.step, best, told.losses[best])
    assert f"ended early after step {result.step} of {result.total_steps}" in kept.text


def test_what_is_first_trained_after_the_best_step_is_the_base_again():
    names = ("always", "later", "never")
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in names}
    stopping = EarlyStopping(parameters, patience=4)

    def train(*trained):
        stopping.cover(trained)
        with torch.no_grad():
            for name in trained:
                parameters[name].add_(1)

    state = TrainState(step=2, ever_trained=("always",))
    train("always")
    stopping.note(state, Evaluation(loss=1.0, token_accuracy=0.5, n_tokens=1))
    train("always", "later")
    state.step, state.ever_trained = 4, ("always", "later")
    stopping.note(state, Evaluation(loss=2.0, token_accuracy=0.4, n_tokens=1))
    assert not state.is_over
    assert set(stopping.tensors(state)) == {"always", "later"}
    assert stopping.put_back(state)
    assert [float(p.detach()[0]) for p in parameters.values()] == [1.0, 0.0, 0.0]
    assert (state.kept_step, state.validation_loss) == (2, 1.0)
    assert not stopping.put_back(state)


def test_all_epochs_pass_where_patience_is_long_and_the_best_is_kept_all_the_same():
    job = _job(patience=EPOCHS)
    told = Told(job.model)
    result = fit(job, hooks=[told])
    assert result.step == result.total_steps
    assert result.kept_step == _best(told.losses) < result.step
    assert "Training ended after step" in told.kept[0].text


def test_nothing_is_put_back_where_the_last_is_the_best():
    job = _job(rate=1e-3, method="full", n_epochs=3)
    told = Told(job.model)
    result = fit(job, hooks=[told])
    assert _best(told.losses) == result.step == result.total_steps
    assert result.kept_step is None
    assert told.kept == []


def _ended_after(end, job, **rest):
    told = Told(job.model)
    orders = iter([Control.CONTINUE] * end)
    result = fit(
        job,
        hooks=[told],
        control=lambda: next(orders, Control.KEEP_BEST_AND_STOP),
        **rest,
    )
    return result, told


def test_a_run_that_is_told_to_end_keeps_its_best_weights_too(tmp_path):
    job = _job(patience=EPOCHS)
    whole = Told(job.model)
    fit(job, hooks=[whole])
    best = _best(whole.losses)
    end = best + BATCHES + 1
    job = _job(patience=EPOCHS)
    result, told = _ended_after(end, job, checkpoints=tmp_path)
    assert (result.outcome, result.step, result.kept_step) == ("paused", end, best)
    assert result.validation_loss == whole.losses[best]
    assert [record.kept_step for record in told.kept] == [best]
    for name, weight in _weights(job.model).items():
        assert torch.equal(weight, whole.weights[best][name]), name
    # killed before it was delivered: the same again
    again = _job(patience=EPOCHS)
    resumed, _ = _ended_after(0, again, checkpoints=tmp_path)
    assert (resumed.step, resumed.kept_step) == (end, best)
    for name, weight in _weights(again.model).items():
        assert torch.equal(weight, whole.weights[best][name]), name


def test_a_run_that_is_told_to_end_without_patience_keeps_what_it_has(tmp_path):
    job = _job(patience=None)
    result, told = _ended_after(BATCHES + 1, job, checkpoints=tmp_path)
    assert (result.step, result.kept_step, told.kept) == (BATCHES + 1, None, [])
    assert not all(
        torch.equal(weight, told.weights[BATCHES][name])
        for name, weight in _weights(job.model).items()
    )


def test_without_patience_the_last_weights_stay():
    job = _job(patience=None)
    told = Told(job.model)
    result = fit(job, hooks=[told])
    assert _best(told.losses) < result.step == result.total_steps
    assert (result.kept_step, told.kept) == (None, [])
    assert result.validation_loss == told.losses[result.step]


def test_questions_are_asked_of_what_is_kept():
    asked = []

    def ask():
        asked.append(_weights(job.model))
        return EvaluationRecord(
            step=0, epoch=0, scores={}, answers=(), n_cut=0, n_tokens=0, flops=0, duration_s=0
        )

    job = _job(ask=ask)
    told = Told(job.model)
    result = fit(job, hooks=[told])
    before, after = asked
    for name, weight in before.items():
        assert torch.equal(weight, told.weights[0][name]), name
    for name, weight in after.items():
        assert torch.equal(weight, told.weights[result.kept_step][name]), name


def test_stopped_and_resumed_at_every_step_gives_the_same_bits(tmp_path):
    options = {"selection_interval": 0.67}
    straight_job = _job(**options)
    straight = fit(straight_job, checkpoints=tmp_path / "straight")
    expected = _weights(straight_job.model)

    for stop in range(straight.step):
        polls = iter(range(10**6))

        def control(polls=polls, stop=stop):
            is_due = next(polls) == stop
            return Control.CHECKPOINT_AND_STOP if is_due else Control.CONTINUE

        folder = tmp_path / str(stop)
        assert fit(_job(**options), checkpoints=folder, control=control).step == stop
        job = _job(**options)
        resumed = fit(job, checkpoints=folder)
        assert _without_time(resumed) == _without_time(straight)
        for name, weight in _weights(job.model).items():
            assert torch.equal(weight, expected[name]), (stop, name)

    # the process died after its last checkpoint, before the result was delivered
    job = _job(**options)
    told = Told(job.model)
    again = fit(job, checkpoints=tmp_path / "straight", hooks=[told])
    assert _without_time(again) == _without_time(straight)
    assert told.losses == {}
    for name, weight in _weights(job.model).items():
        assert torch.equal(weight, expected[name]), name


def _without_time(result):
    return dataclasses.replace(result, train_duration_s=0.0)


def test_a_checkpoint_holds_the_best_weights_only_where_they_are_others(tmp_path):
    job = _job(patience=EPOCHS)
    told = Told(job.model)
    fit(job, hooks=[told])
    best = _best(told.losses)
    for stop, is_there in ((best, False), (best + 1, True)):
        polls = iter(range(10**6))

        def control(polls=polls, stop=stop):
            is_due = next(polls) == stop
            return Control.CHECKPOINT_AND_STOP if is_due else Control.CONTINUE

        folder = tmp_path / str(stop)
        fit(_job(patience=EPOCHS), checkpoints=folder, control=control)
        assert bool(newest_checkpoint(folder).best) is is_there


@pytest.mark.parametrize("patience", [0, -1, 51, 1.5, True, "2"])
def test_a_patience_that_is_no_number_of_epochs_is_refused(patience):
    with pytest.raises(InvalidInput, match="whole number of epochs") as caught:
        TrainingOptions(early_stopping_patience=patience)
    assert caught.value.param == "green.training.early_stopping_patience"


def test_without_a_validation_file_there_is_nothing_to_stop_by():
    training = TrainingOptions(early_stopping_patience=1)
    with pytest.raises(InvalidInput, match="give validation_file") as caught:
        JobSpec(model="m", training_file="t", training=training)
    assert caught.value.param == "green.training.early_stopping_patience"
    JobSpec(model="m", training_file="t", validation_file="v", training=training)
