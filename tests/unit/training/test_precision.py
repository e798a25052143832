"""bfloat16 autocast over float32 weights: near float32's numbers, and as repeatable."""

import dataclasses

import pytest
import torch

from core.errors import InvalidInput
from core.training.checkpoint import newest_checkpoint
from core.training.evaluate import evaluate
from core.training.hooks import Control, Hook
from core.training.loop import fit
from core.training.prefix import PrefixReuse
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import BFLOAT16, FLOAT32, fit_job
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model

#: bfloat16 has 8 bits; the tiny models' losses are about ln(97)
ROUNDING = 2e-2


class Told(Hook):
    def __init__(self):
        self.steps, self.starts, self.selections = [], [], []

    def on_start(self, record):
        self.starts.append(record)

    def on_step(self, record):
        self.steps.append(record)

    def on_selection(self, record):
        self.selections.append(record)


def _job(kind="llama", *, numerics=BFLOAT16, method="green", reuse=None, dropout=0.0, **options):
    options = {"n_epochs": 2, "gradient_accumulation": 2, "selection_interval": 2.0} | options
    return fit_job(
        kind,
        TrainingOptions(**options),
        model=tiny_model(kind, dropout=dropout),
        method=method,
        numerics=numerics,
        reuse=reuse,
    )


def _run(job, **given):
    told = Told()
    return fit(job, hooks=[told], **given), told


def _weights(job):
    return {name: p.detach().clone() for name, p in job.model.named_parameters()}


def _pause_before(step):
    polls = iter(range(10**6))
    return lambda: Control.CHECKPOINT_AND_STOP if next(polls) == step else Control.CONTINUE


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS])
def test_loss_and_gradients_are_near_float32s_and_weights_stay_float32(kind):
    model, batch = tiny_model(kind).eval(), padded_batch(is_pair=kind in PAIRS)
    found = []
    for numerics in (FLOAT32, BFLOAT16):
        step = LossStep(model, autocast_dtype=numerics.autocast_dtype)
        inputs = step.inputs(batch)
        model.zero_grad()
        loss = step(inputs).loss_sum / inputs.n_labels
        loss.backward()
        assert loss.dtype is torch.float32
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert {g.dtype for g in gradients} == {torch.float32}
        found.append((float(loss.detach()), torch.cat(gradients)))
    (loss, gradient), (rounded_loss, rounded_gradient) = found
    assert rounded_loss == pytest.approx(loss, rel=ROUNDING)
    assert rounded_loss != loss, "nothing was computed in bfloat16"
    assert float((rounded_gradient - gradient).norm() / gradient.norm()) < 5 * ROUNDING
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_learns_like_float32s_and_chooses_what_it_chooses():
    (plain, told_plain), (rounded, told) = (_run(_job(numerics=n)) for n in (FLOAT32, BFLOAT16))
    assert rounded.validation_loss == pytest.approx(plain.validation_loss, rel=ROUNDING)
    assert rounded.flops == pytest.approx(plain.flops, rel=0.05)
    measured, expected = told.selections[0].importance, told_plain.selections[0].importance
    assert measured == pytest.approx(expected, rel=5 * ROUNDING)
    for found, wanted in zip(told.steps, told_plain.steps, strict=True):
        assert found.loss == pytest.approx(wanted.loss, rel=ROUNDING)


@pytest.mark.parametrize("reuse", [None, PrefixReuse(memory_bytes=1 << 24)])
@pytest.mark.parametrize(("kind", "dropout"), [("llama", 0.0), ("opt", 0.2), ("t5", 0.2)])
def test_stopped_and_resumed_gives_the_same_bits(kind, dropout, reuse, tmp_path):
    straight = _job(kind, dropout=dropout, reuse=reuse)
    fit(straight)
    expected = _weights(straight)
    for stop in (1, 3):
        folder = tmp_path / str(stop)
        job = _job(kind, dropout=dropout, reuse=reuse)
        fit(job, checkpoints=folder, control=_pause_before(stop))
        resumed = _job(kind, dropout=dropout, reuse=reuse)
        fit(resumed, checkpoints=folder)
        for name, weight in _weights(resumed).items():
            assert torch.equal(weight, expected[name]), (stop, name)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_reused_rows_are_what_the_skipped_blocks_give(kind):
    reuse = PrefixReuse(memory_bytes=1 << 24)
    options = {"method": "last_k", "n_epochs": 3}
    plain, reusing = _job(kind, **options), _job(kind, reuse=reuse, **options)
    (without, told_without), (with_rows, told_with) = _run(plain), _run(reusing)
    assert with_rows.flops < without.flops
    for found, wanted in zip(told_with.steps, told_without.steps, strict=True):
        assert found.loss == wanted.loss
    for name, weight in _weights(reusing).items():
        assert torch.equal(weight, _weights(plain)[name]), name


def test_evaluation_computes_as_training_does():
    model, batch = tiny_model("llama"), padded_batch()
    step = LossStep(model, autocast_dtype=torch.bfloat16)
    inputs = step.inputs(batch)
    expected = float(step(inputs).loss_sum.detach()) / inputs.n_labels
    assert evaluate(step, [inputs]).loss == expected


def test_a_checkpoint_keeps_its_precision_and_refuses_another(tmp_path):
    fit(_job(), checkpoints=tmp_path, control=_pause_before(1))
    assert newest_checkpoint(tmp_path).state.precision == "bf16"
    with pytest.raises(InvalidInput, match="was computed in bf16, not in fp32") as caught:
        fit(_job(numerics=FLOAT32), checkpoints=tmp_path)
    assert caught.value.param == "green.training.precision"


def test_a_record_of_the_precision_and_its_probe_opens_the_run():
    numerics = dataclasses.replace(BFLOAT16, probe="256x512x512 products: float32 1 ms")
    _, told = _run(_job(numerics=numerics))
    assert told.starts[0].precision == "bfloat16 autocast"
    assert told.starts[0].probe == numerics.probe


@pytest.mark.parametrize("precision", ["bfloat16", "", None, 16])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(InvalidInput, match="precision must be one of auto, fp32, bf16") as caught:
        TrainingOptions(precision=precision)
    assert caught.value.param == "green.training.precision"
