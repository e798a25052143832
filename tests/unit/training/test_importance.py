"""Importance and the selective optimiser, against a real AdamW that takes the step."""

import copy

import pytest
import torch

from core.training.importance import measure_importance
from core.training.optimiser import SelectiveAdamW, adamw_gain
from core.training.step import LossStep
from tests.fixtures.tiny_models import PAIRS, padded_batch, tiny_model

RATE, DECAY = 1e-3, 0.1


def _loss(model, batch):
    step = LossStep(model)
    inputs = step.inputs(batch)
    return step(inputs).loss_sum / inputs.n_labels


def _reference(model, batches, probe, trained):
    """Train all with torch's own AdamW, deep copies and two steps' memory: -sum(grad * delta)."""
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
    gradients = {n: p.grad.clone() for n, p in parameters.items()}
    adamw.step()
    return {
        n: -float((gradients[n].double() * (p.detach() - before[n]).double()).sum())
        for n, p in parameters.items()
    }


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
