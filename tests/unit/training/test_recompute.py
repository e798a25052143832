"""Gradient checkpointing: the same bits for less memory, every product done twice counted."""

import random

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from core.errors import InvalidInput, ModelUnsupported
from core.spec import GreenOptions, JobSpec, MethodOptions
from core.training.adapters import add_adapters
from core.training.hooks import Hook
from core.training.importance import measure_importance
from core.training.loop import fit
from core.training.low_rank import LowRankLinear
from core.training.methods import method_named
from core.training.optimiser import SelectiveAdamW
from core.training.prefix import PrefixReuse
from core.training.pricing import price_steps, profile_shape
from core.training.probing import draw_probes, measure
from core.training.recompute import blocks_of, recomputing
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import adapter_prices, fit_job
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model

ALL = [*CAUSAL, *PAIRS]


def _step(model, *, recomputes, **options):
    step = LossStep(model, **options)
    step.recomputes = recomputes
    return step


def _gradients(model, kind, *, recomputes, **options):
    torch.manual_seed(1)
    model.zero_grad()
    step = _step(model, recomputes=recomputes, **options)
    loss = step(step.inputs(padded_batch(is_pair=kind in PAIRS))).loss_sum
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ALL)
def test_loss_and_gradients_are_the_same_bits_with_dropout(kind, dtype):
    model = tiny_model(kind, dropout=0.3)
    for name, parameter in model.named_parameters():
        # some frozen, at every depth
        parameter.requires_grad_(len(name) % 3 != 0)
    loss, expected = _gradients(model, kind, recomputes=False, autocast_dtype=dtype)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    again, found = _gradients(model, kind, recomputes=True, autocast_dtype=dtype)
    assert torch.equal(again, loss)
    assert found.keys() == expected.keys() != set()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ALL)
def test_predicted_flops_are_those_spent_whatever_is_trained(kind, dropout):
    """A block's dropout keeps its mask: the product before it runs again for its sake."""
    model = tiny_model(kind, dropout=dropout)
    model.set_attn_implementation("eager")
    step = _step(model, recomputes=True)
    batch = padded_batch(is_pair=kind in PAIRS)
    inputs = step.inputs(batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    plain = profile_shape(model, inputs.shape)
    profile = profile_shape(model, inputs.shape, recomputes=True)
    assert profile.forward_flops == plain.forward_flops
    assert profile.full_flops > plain.full_flops
    draw = random.Random(kind)
    names = profile.trainable
    singles = ([name] for name in draw.sample(names, 12))
    for chosen in [names, *singles, *(draw.sample(names, 4) for _ in range(6))]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            step(inputs).loss_sum.backward()
        assert profile.step_flops(chosen) == counter.get_total_flops(), chosen


def test_prices_of_all_shapes_follow():
    model = tiny_model("llama")
    shape = (5, 23, 0, 31)
    prices = price_steps(model, recomputes=True)
    expected = profile_shape(model, shape, recomputes=True)
    some = expected.trainable[3:9:2]
    assert prices.of(some)(shape) == pytest.approx(expected.step_flops(some))
    assert prices.full(shape) == pytest.approx(expected.full_flops)


def _saved_bytes(step, inputs):
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # its graph must live while storages are told apart by address
        loss = step(inputs).loss_sum
    assert loss.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("kind", ALL)
def test_blocks_keep_nothing_but_their_inputs(kind):
    model, batch = tiny_model(kind), padded_batch(is_pair=kind in PAIRS)
    found = []
    for recomputes in (False, True):
        step = _step(model, recomputes=recomputes)
        found.append(_saved_bytes(step, step.inputs(batch)))
    assert found[1] < 0.5 * found[0]


def test_importance_is_the_same_and_draws_no_random_number():
    model = tiny_model("opt", dropout=0.3)
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    optimiser.select(parameters)
    found = []
    before = torch.get_rng_state()
    for recomputes in (False, True):
        step = _step(model, recomputes=recomputes)
        probes = [step.inputs(padded_batch())]
        found.append(measure_importance(step, probes, parameters, optimiser, learning_rate=1e-3))
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["green", "green_lora"])
def test_probes_that_run_again_choose_the_same_for_their_own_price(method):
    chosen, measured = [], []
    for runs_again in (False, True):
        model = tiny_model("llama")
        if method == "green_lora":
            model = add_adapters(model, method, MethodOptions(), base_name="tiny", seed=0)
        model.set_attn_implementation("eager")
        job = _probed_job(model, method, runs_again=runs_again)
        record = _selection(job)
        chosen.append((record.names, record.importance, record.n_trained_parameters))
        step, probes = LossStep(model), draw_probes(job, LossStep(model), 0)
        assert record.flops == probes.flops
        parameters = dict(model.named_parameters())
        optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
        with FlopCounterMode(display=False) as counter:
            measure(job, step, probes, parameters, optimiser, step=0, learning_rate=1e-3, clip=1.0)
        assert probes.flops == pytest.approx(counter.get_total_flops(), rel=1e-12)
        measured.append(probes.flops)
        assert not step.recomputes
        assert all(m.is_fused for m in model.modules() if isinstance(m, LowRankLinear))
    (names, importance, n_trained), (again, importance_again, n_again) = chosen
    assert (again, n_again) == (names, n_trained)
    assert importance_again == pytest.approx(importance, rel=1e-5)
    assert 1.1 * measured[0] < measured[1] < 1.5 * measured[0]


class _Selected(Hook):
    def on_selection(self, record):
        self.record = record


def _selection(job):
    told = _Selected()
    fit(job, hooks=[told])
    return told.record


def _probed_job(model, method, *, runs_again):
    return fit_job(
        "llama",
        TrainingOptions(n_epochs=1, max_steps=1),
        model=model,
        method=method,
        rho=0.8,
        prices=adapter_prices(model, "llama"),
        n_batches=2,
        validation=[],
        probe_prices=price_steps(model, recomputes=True) if runs_again else None,
    )


def test_adapters_inside_blocks_get_the_same_gradients():
    model = add_adapters(
        tiny_model("llama"), "lora", MethodOptions(dropout=0.2), base_name="tiny", seed=0
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    _, expected = _gradients(model, "llama", recomputes=False)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    _, found = _gradients(model, "llama", recomputes=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def _job(kind, *, recomputes, reuse):
    model = tiny_model(kind, dropout=0.2)
    return fit_job(
        kind,
        TrainingOptions(n_epochs=3, gradient_checkpointing=recomputes),
        model=model,
        method=method_named("last_k", MethodOptions(k=1)),
        prices=price_steps(model, recomputes=recomputes),
        n_batches=3,
        validation=[],
        reuse=reuse,
    )


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_runs_that_also_reuse_their_frozen_part_end_with_the_same_bits(kind):
    reuse = PrefixReuse(memory_bytes=1 << 24)
    plain, again = (
        _job(kind, recomputes=False, reuse=reuse),
        _job(kind, recomputes=True, reuse=reuse),
    )
    expected, found = fit(plain), fit(again)
    assert found.trained_names == expected.trained_names
    assert found.flops > expected.flops
    for mine, theirs in zip(again.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_prefix_cannot_run_twice():
    with pytest.raises(InvalidInput, match="cannot run twice") as caught:
        JobSpec(
            model="tiny",
            training_file="train.jsonl",
            training=TrainingOptions(gradient_checkpointing=True),
            green=GreenOptions(method="prefix"),
        )
    assert caught.value.param == "green.training.gradient_checkpointing"


def test_blocks_are_as_they_were_afterwards():
    model = tiny_model("llama")
    with recomputing(model):
        assert all("forward" in vars(block) for block in blocks_of(model))
    assert not any("forward" in vars(block) for block in blocks_of(model))


def test_a_model_without_blocks_is_refused_by_name():
    config = transformers.CTRLConfig(
        vocab_size=20, n_positions=8, n_embd=8, dff=8, n_layer=1, n_head=2
    )
    model = transformers.CTRLLMHeadModel(config)
    with pytest.raises(ModelUnsupported, match="CTRLLMHeadModel has no blocks") as caught:
        blocks_of(model)
    assert "leave green.training.gradient_checkpointing out" in caught.value.message
    assert caught.value.param == "green.training.gradient_checkpointing"
