"""Predicted bytes against those that torch's allocator and autograd say were really there."""

from functools import partial

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from core.errors import ModelUnsupported
from core.spec import MethodOptions
from core.training.adapters import add_adapters
from core.training.checkpoint import TrainState
from core.training.early_stopping import EarlyStopping
from core.training.evaluate import Evaluation
from core.training.frozen_weights import FrozenWeights, lowerable_embeddings
from core.training.importance import measure_importance
from core.training.memory import estimate
from core.training.optimiser import SelectiveAdamW
from core.training.pricing import profile_shape
from core.training.selector import select
from core.training.step import LossStep
from tests.fixtures.tiny_models import CAUSAL, PAIRS, VOCABULARY, tiny_model

ALL = [*CAUSAL, *PAIRS]
#: kernels' own room, which is a larger part of tiny models than of real ones
NEAR = 0.10
ROWS, TOKENS, REPLY = 8, 60, 20


def _batch(kind):
    """A padded batch and its shape; labels on the last third."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (ROWS, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, -1] = 0
    if kind in PAIRS:
        return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :REPLY]}
    labels = torch.where(torch.arange(TOKENS) >= 40, ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _trained(model, kind, rho):
    names = [name for name, _ in model.named_parameters()]
    if rho == 1:
        return names
    shape = LossStep(model).inputs(_batch(kind)).shape
    found = profile_shape(model, shape)
    sizes = {n: float(p.numel()) for n, p in model.named_parameters()}
    chosen = select(
        found, {n: sizes[n] for n in found.trainable}, max(rho, found.min_rho) * found.full_flops
    )
    return list(chosen.names)


def _peak(act):
    """Most bytes that torch's CPU allocator had given out during ``act`` beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        act()
    events = found.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def _saved(step, inputs):
    """Bytes that autograd keeps of the forward pass, weights left out, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    given = {t.untyped_storage().data_ptr() for t in inputs.model_inputs.values()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | given:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step(inputs).loss_sum
    assert loss.requires_grad
    return sum(storages.values())


def _check_step(model, kind, names, *, dtype=None, recomputes=False):
    optimiser = SelectiveAdamW(dict(model.named_parameters()), weight_decay=0.0)
    optimiser.select(names)
    step = LossStep(model, autocast_dtype=dtype)
    step.recomputes = recomputes
    inputs = step.inputs(_batch(kind))

    def one():
        torch.autograd.backward(step(inputs).loss_sum)
        optimiser.step(learning_rate=1e-4, max_grad_norm=1.0)

    found = estimate(model, names, inputs.shape, autocast_dtype=dtype, recomputes=recomputes)
    one()
    assert found.step_bytes == pytest.approx(_peak(one), rel=NEAR)
    moments = optimiser.state_tensors().items()
    assert found.moments_bytes == sum(t.nbytes for n, t in moments if not n.endswith("/step"))
    assert found.gradients_bytes == sum(
        p.nbytes for n, p in model.named_parameters() if n in set(names)
    )
    return found, _saved(step, inputs)


@pytest.mark.parametrize(
    ("kind", "rho"), [*((kind, 0.4) for kind in ALL), ("llama", 0.7), ("llama", 1), ("t5", 1)]
)
def test_a_step_takes_what_was_predicted(kind, rho):
    model = tiny_model(kind, dropout=0.1)
    found, saved = _check_step(model, kind, _trained(model, kind, rho))
    # what is kept and what is only still there when the loss is
    assert found.activations_bytes + found.logits_bytes == pytest.approx(saved, rel=NEAR)
    held = [*model.parameters(), *model.buffers()]
    assert found.weights_bytes == sum(tensor.nbytes for tensor in held)
    assert found.peak_bytes == found.weights_bytes + found.moments_bytes + found.step_bytes


@pytest.mark.parametrize(
    ("kind", "dtype", "recomputes", "saves"),
    [
        ("llama", torch.bfloat16, False, True),
        # its narrow heads attend in float32 (`cpu_attention`), which is most of what it keeps
        ("t5", torch.bfloat16, False, False),
        ("gpt2", None, True, True),
    ],
)
def test_precision_and_gradient_checkpointing_are_followed(kind, dtype, recomputes, saves):
    model = tiny_model(kind)
    plain = estimate(
        model, dict(model.named_parameters()), LossStep(model).inputs(_batch(kind)).shape
    )
    found, _ = _check_step(
        model, kind, dict(model.named_parameters()), dtype=dtype, recomputes=recomputes
    )
    assert (found.activations_bytes < plain.activations_bytes) is saves


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "bart"])
def test_frozen_matrices_in_bfloat16_are_counted_as_such(kind, is_rounded):
    """``is_rounded``: embeddings, too, where they are looked up as torch does (not BART's)."""
    model = tiny_model(kind)
    if is_rounded:
        model.bfloat16().float()
    names = _trained(model, kind, 0.4)
    optimiser = SelectiveAdamW(dict(model.named_parameters()), weight_decay=0.0)
    optimiser.select(names)
    step = LossStep(model, autocast_dtype=torch.bfloat16)
    inputs = step.inputs(_batch(kind))
    predict = partial(
        estimate,
        model,
        names,
        inputs.shape,
        autocast_dtype=torch.bfloat16,
        probe=inputs.shape,
        candidates=dict(model.named_parameters()),
    )
    found, plain = predict(lowers_frozen=True), predict()
    once = predict(lowers_frozen=True, reselects=False)

    def one():
        torch.autograd.backward(step(inputs).loss_sum)
        optimiser.step(learning_rate=1e-4, max_grad_norm=1.0)

    with FrozenWeights(model, torch.bfloat16) as frozen:
        frozen.lower_all_but(())
        before_selecting = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
        frozen.lower_all_but(names)
        held = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
        one()
        assert found.step_bytes == pytest.approx(_peak(one), rel=NEAR)
    assert bool(lowerable_embeddings(model, torch.bfloat16)) == (is_rounded and kind != "bart")
    assert found.weights_bytes == held < plain.weights_bytes
    assert once.selecting_bytes - once.selection_bytes == before_selecting < held
    assert found.step_bytes <= plain.step_bytes
    assert found.peak_bytes < plain.peak_bytes


def test_the_best_weights_lie_in_the_hosts_memory():
    model = tiny_model("llama")
    names = _trained(model, "llama", 0.7)
    shape = LossStep(model).inputs(_batch("llama")).shape
    plain = estimate(model, names, shape)
    keeping = estimate(model, names, shape, keeps_best=True)
    stopping = EarlyStopping(dict(model.named_parameters()), patience=1)
    state = TrainState(step=1, ever_trained=tuple(names))
    stopping.note(state, Evaluation(loss=1.0, token_accuracy=0.0, n_tokens=1))
    state.step = 2
    kept_bytes = sum(tensor.nbytes for tensor in stopping.tensors(state).values())
    assert keeping.peak_bytes - plain.peak_bytes == kept_bytes > 0


def test_lora_takes_what_was_predicted():
    options = MethodOptions(dropout=0.1)
    model = add_adapters(tiny_model("llama"), "lora", options, base_name="tiny", seed=0)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    _check_step(model, "llama", names)


@pytest.mark.parametrize(
    ("kind", "recomputes"), [("llama", False), ("bart", False), ("llama", True), ("opt", True)]
)
def test_measuring_importance_takes_what_was_predicted(kind, recomputes):
    model = tiny_model(kind)
    parameters = dict(model.named_parameters())
    names = _trained(model, kind, 0.7)
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    optimiser.select(names)
    step = LossStep(model)
    step.recomputes = recomputes
    inputs = step.inputs(_batch(kind))
    found = estimate(
        model,
        names,
        inputs.shape,
        probe=inputs.shape,
        candidates=list(parameters),
        probe_recomputes=recomputes,
    )

    def measure():
        measure_importance(step, [inputs], parameters, optimiser, learning_rate=1e-4)

    measure()
    assert found.selection_bytes == pytest.approx(_peak(measure), rel=NEAR)
    assert (found.selection_bytes > found.step_bytes) is not recomputes


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_what_is_kept_shrinks_with_the_depth_of_the_deepest_trained_tensor(kind):
    """Nothing of the frozen part is kept for the backward pass: autograd's own count."""
    model = tiny_model(kind)
    step = LossStep(model)
    inputs = step.inputs(_batch(kind))
    found = profile_shape(model, inputs.shape)
    # single tensors, by the backward FLOPs that reaching them takes: how deep they lie
    by_depth = sorted(found.trainable, key=lambda name: found.backward_flops([name]))
    by_depth = [by_depth[at * (len(by_depth) - 1) // 3] for at in range(4)]
    kept = {}
    for name in by_depth:
        for each, parameter in model.named_parameters():
            parameter.requires_grad_(each == name)
        kept[name] = _saved(step, inputs)
    nearest, deepest = by_depth[0], by_depth[-1]
    assert kept[nearest] < 0.5 * kept[deepest]
    for name in by_depth:
        parameter_alone = estimate(model, [name], inputs.shape)
        assert parameter_alone.activations_bytes + parameter_alone.logits_bytes == pytest.approx(
            kept[name], rel=2 * NEAR
        )


def test_memory_falls_with_rho():
    model = tiny_model("llama")
    peaks = [
        estimate(model, _trained(model, "llama", rho), (8, 60, 0, 160)).peak_bytes
        for rho in (0.4, 0.6, 0.8, 1)
    ]
    assert peaks == sorted(set(peaks))


def test_gradients_of_earlier_micro_batches_are_there_too():
    model = tiny_model("llama")
    names, shape = dict(model.named_parameters()), (4, 30, 0, 40)
    alone, more = estimate(model, names, shape), estimate(model, names, shape, accumulates=True)
    assert alone.step_bytes < more.step_bytes <= alone.step_bytes + more.gradients_bytes
    assert more.activations_bytes == alone.activations_bytes


def test_the_model_is_left_as_it_is():
    model = tiny_model("opt", dropout=0.1)
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    estimate(model, ["model.decoder.layers.1.fc1.weight"], (2, 8, 0, 4))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_what_cannot_be_told_is_one_error_and_no_log(caplog):
    """Experts are multiplied in bfloat16 by a kernel whose shapes torch cannot tell in float32."""
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ModelUnsupported, match="memory cannot be told"):
        estimate(model, names, (2, 8, 0, 4), autocast_dtype=torch.bfloat16)
    assert not caplog.records
