"""Importance and the selective optimiser, against a real AdamW that takes the step."""

import copy
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.training.importance import (
    CrossedGain,
    measure_crossed_importance,
    measure_importance,
    sampled_elements,
)
from core.training.optimiser import SelectiveAdamW, adamw_gain
from core.training.step import LossStep
from tests.fixtures.tiny_models import PAIRS, padded_batch, tiny_model

RATE, DECAY = 1e-3, 0.1


def _loss(model, batch):
    step = LossStep(model)
    inputs = step.inputs(batch)
    return step(inputs).loss_sum / inputs.n_labels


def _next_step(model, batches, probe, trained):
    """Torch's own AdamW on a deep copy, trained on ``batches``: the probe's gradient, and what the
    step that follows takes off each weight.
    """
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    groups = [
        {"params": [p], "weight_decay": DECAY if p.ndim >= 2 else 0.0} for p in parameters.values()
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE)
    for batch in batches:
        adamw.zero_grad()
        _loss(twin, batch).backward()
        for name, p in parameters.items():
            if name not in trained:
                p.grad = None
        adamw.step()
    before = {n: p.detach().clone() for n, p in parameters.items()}
    adamw.zero_grad()
    _loss(twin, probe).backward()
    gradients = {n: p.grad.double() for n, p in parameters.items()}
    adamw.step()
    return gradients, {n: (before[n] - p.detach()).double() for n, p in parameters.items()}


def _reference(model, batches, probe, trained):
    """-sum(grad * delta), with deep copies and two steps' memory."""
    gradients, updates = _next_step(model, batches, probe, trained)
    return {n: float((gradients[n] * updates[n]).sum()) for n in gradients}


def _trained_twin(model, batches, trained):
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=DECAY)
    optimiser.select(trained)
    for batch in batches:
        _loss(model, batch).backward()
        optimiser.step(learning_rate=RATE, max_grad_norm=1e9)
    return parameters, optimiser


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
@pytest.mark.parametrize("n_steps", [0, 3])
def test_equals_the_step_that_adamw_would_take(kind, n_steps):
    model = tiny_model(kind)
    is_pair = kind in PAIRS
    batches = [padded_batch(seed=i, is_pair=is_pair) for i in range(n_steps)]
    probe = padded_batch(seed=9, is_pair=is_pair)
    names = [n for n, _ in model.named_parameters()]
    # a mix: some tensors have moments, the others are fresh
    trained = set(names[::2])
    expected = _reference(model, batches, probe, trained)
    parameters, optimiser = _trained_twin(model, batches, trained)
    step = LossStep(model)
    found = measure_importance(
        step, [step.inputs(probe)], parameters, optimiser, learning_rate=RATE
    )
    assert found.keys() == expected.keys()
    for name in names:
        # the reference rounds delta to the weights' grid
        assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-8), name


def test_nothing_is_changed_and_no_gradient_is_kept():
    model = tiny_model("opt", dropout=0.3)
    batches = [padded_batch(seed=i) for i in range(2)]
    trained = {n for n, _ in model.named_parameters() if "layers.1" in n}
    parameters, optimiser = _trained_twin(model, batches, trained)
    weights = {n: p.detach().clone() for n, p in parameters.items()}
    moments = {k: t.clone() for k, t in optimiser.state_tensors().items()}
    flags = {n: p.requires_grad for n, p in parameters.items()}
    rng = torch.get_rng_state()
    step = LossStep(model)
    probes = [step.inputs(padded_batch(seed=i)) for i in (5, 6)]
    measure_importance(step, probes, parameters, optimiser, learning_rate=RATE)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert {n: p.requires_grad for n, p in parameters.items()} == flags
    for name, p in parameters.items():
        assert p.grad is None, name
        assert torch.equal(p, weights[name]), name
    for key, tensor in optimiser.state_tensors().items():
        assert torch.equal(tensor, moments[key]), key


def test_gradients_are_freed_as_they_arrive():
    model = tiny_model("llama")
    parameters = dict(model.named_parameters())
    alive = []

    class Spy(SelectiveAdamW):
        def expected_gain(self, name, gradient, **kwargs):
            alive.append(sum(p.grad is not None for p in parameters.values()))
            return super().expected_gain(name, gradient, **kwargs)

    step = LossStep(model)
    spy = Spy(parameters, weight_decay=0.0)
    measure_importance(step, [step.inputs(padded_batch())], parameters, spy, learning_rate=RATE)
    assert len(alive) == len(parameters)  # the tied embedding once
    assert max(alive) == 1


def test_several_probes_give_the_mean():
    model = tiny_model("llama")
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    step = LossStep(model)
    probes = [step.inputs(padded_batch(seed=i)) for i in (1, 2)]

    def importance(some):
        return measure_importance(step, some, parameters, optimiser, learning_rate=RATE)

    apart = [importance([probe]) for probe in probes]
    for name, value in importance(probes).items():
        assert value == pytest.approx((apart[0][name] + apart[1][name]) / 2)


def test_frozen_tensors_stay_and_lose_gradient_and_moments():
    model = tiny_model("llama")
    names = [n for n, _ in model.named_parameters()]
    first, second = set(names[:6]), set(names[4:10])
    parameters, optimiser = _trained_twin(model, [padded_batch()], first)
    kept = {n: t.clone() for n, t in optimiser.state_tensors().items() if n.split("/")[0] in second}
    assert {k.split("/")[0] for k in optimiser.state_tensors()} == first
    optimiser.select(second)
    assert {k.split("/")[0] for k in optimiser.state_tensors()} == first & second
    assert all(torch.equal(optimiser.state_tensors()[k], t) for k, t in kept.items())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    _loss(model, padded_batch(seed=3)).backward()
    assert {n for n, p in parameters.items() if p.grad is not None} == second
    optimiser.step(learning_rate=RATE, max_grad_norm=1.0)
    for name, p in parameters.items():
        assert torch.equal(p, before[name]) == (name not in second), name
        assert p.grad is None, name


def test_updates_equal_adamws_with_clipping():
    model = tiny_model("llama")
    twin = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=DECAY)
    optimiser.select(parameters)
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE)
    # clipped or not in turn: what one step was shrunk by must not linger
    for seed, most in enumerate([0.5, 1e9, 0.1, 1e9]):
        for one in (model, twin):
            _loss(one, padded_batch(seed=seed)).backward()
        expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), most)
        adamw.step()
        adamw.zero_grad()
        norm = optimiser.step(learning_rate=RATE, max_grad_norm=most)
        assert norm == pytest.approx(float(expected))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_gradient_that_is_not_finite_updates_nothing():
    model = tiny_model("llama")
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    optimiser.select(parameters)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    (_loss(model, padded_batch()) * float("inf")).backward()
    optimiser.step(learning_rate=RATE, max_grad_norm=1.0)
    assert all(torch.equal(p, before[n]) for n, p in parameters.items())


@pytest.mark.parametrize("n_steps", [0, 2])
def test_a_tensor_of_several_pieces_gives_what_adamws_step_gives(n_steps):
    draw = torch.Generator().manual_seed(5)
    parameter = torch.nn.Parameter(torch.randn(601, 500, generator=draw))
    adamw = torch.optim.AdamW([parameter], lr=RATE, weight_decay=DECAY)
    for _ in range(n_steps):
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        adamw.step()
    gradient = torch.randn(parameter.shape, generator=draw)
    moments = dict(adamw.state[parameter]) if n_steps else {}
    gain = adamw_gain(
        parameter, gradient, moments, learning_rate=RATE, weight_decay=DECAY, clip=0.3
    )
    before, parameter.grad = parameter.detach().clone(), 0.3 * gradient
    adamw.step()
    drop = -(gradient.double() * (parameter.detach() - before).double()).sum()
    assert float(gain) == pytest.approx(float(drop), rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("n_steps", [0, 3])
def test_crossed_importance_takes_the_update_of_one_half_and_the_gradient_of_the_other(
    kind, n_steps
):
    model = tiny_model(kind)
    is_pair = kind in PAIRS
    batches = [padded_batch(seed=i, is_pair=is_pair) for i in range(n_steps)]
    halves = [padded_batch(seed=i, is_pair=is_pair) for i in (8, 9)]
    names = [n for n, _ in model.named_parameters()]
    trained = set(names[::2])
    taken = [_next_step(model, batches, half, trained) for half in halves]
    parameters, optimiser = _trained_twin(model, batches, trained)
    step = LossStep(model)
    inputs = [step.inputs(half) for half in halves]
    found = measure_crossed_importance(step, inputs, parameters, optimiser, learning_rate=RATE)
    for name in names:
        there = (taken[1][0][name] * taken[0][1][name]).sum()
        back = (taken[0][0][name] * taken[1][1][name]).sum()
        assert found[name] == pytest.approx(float(there + back) / 2, rel=5e-3, abs=1e-7), name


def test_what_does_not_carry_over_to_other_samples_counts_for_nothing():
    draw = torch.Generator().manual_seed(11)
    signal = 0.5 * torch.randn(300, 700, generator=draw)
    gains = {}
    for name, kept in (("learnable", 1.0), ("noise", 0.0)):
        optimiser = SelectiveAdamW(
            {name: torch.nn.Parameter(torch.zeros(300, 700))}, weight_decay=0.0
        )
        crossed = CrossedGain(partial(optimiser.expected_updates, learning_rate=RATE))
        halves = [kept * signal + torch.randn(300, 700, generator=draw) for _ in range(2)]
        for half in halves:
            crossed(name, half)
        gains[name] = crossed.totals()[name]
        alone = float(optimiser.expected_gain(name, halves[0], learning_rate=RATE))
        assert alone > 0.7 * RATE * signal.numel()  # of one half alone, noise looks as good
    assert gains["learnable"] > 10 * abs(gains["noise"])


@pytest.mark.parametrize("shape", [(), (5,), (576, 1536), (49152, 576), (7, 3, 65536)])
def test_sampled_elements_are_few_and_touch_every_column(shape):
    meta = torch.empty(shape, device="meta")
    elements = sampled_elements(meta)
    n_chosen = len(range(meta.numel())[elements])
    assert n_chosen <= 1 << 17
    assert n_chosen >= min(meta.numel(), 1 << 15)
    columns = shape[-1] if shape else 1
    assert {i % columns for i in range(meta.numel())[elements]} == set(range(columns))


class _Counting(TorchDispatchMode):
    """Operations that a card would have to be told of: views are none."""

    def __init__(self):
        super().__init__()
        self.n_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_operations += not func.is_view
        return func(*args, **(kwargs or {}))


def test_fresh_tensors_are_judged_together():
    """A card waits for its host at each small operation; there were 22 for every tensor."""
    model = tiny_model("llama")
    parameters = dict(model.named_parameters())
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)
    step = LossStep(model)
    halves = [step.inputs(padded_batch(seed=seed)) for seed in (1, 2)]
    with _Counting() as passes:
        for half in halves:
            model.zero_grad()
            torch.autograd.backward(step(half).loss_sum / half.n_labels)
    model.zero_grad()
    with _Counting() as whole:
        measure_crossed_importance(step, halves, parameters, optimiser, learning_rate=RATE)
    per_tensor = (whole.n_operations - passes.n_operations) / len(parameters)
    assert 3 <= per_tensor < 6
