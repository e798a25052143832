"""An embedding that is the output layer, too: the gradient that autograd would have given it, made
in one matrix.
"""

from contextlib import nullcontext

import pytest
import torch

from core.training import step as step_module
from core.training.memory import HighWater, estimate
from core.training.step import LossStep, needs_mask
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model


class Matrices(HighWater):
    """Storages as large as ``weight``, made under it."""

    def __init__(self, weight):
        super().__init__()
        self._n_bytes, self.n_matrices = weight.numel() * weight.element_size(), 0

    def _watch(self, storage):
        self.n_matrices += storage.nbytes() == self._n_bytes
        super()._watch(storage)


def _gradients(model, batches, dtype=None):
    model.zero_grad()
    step = LossStep(model, keeps_mask=needs_mask(model), autocast_dtype=dtype)
    for batch in batches:
        step(step.inputs(batch)).loss_sum.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _by_autograd(monkeypatch, *args):
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "TiedLookup", lambda _weight: nullcontext())
        return _gradients(*args)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS, "m2m100"])
def test_gradients_are_autograds(monkeypatch, kind, dtype):
    model = tiny_model(kind)
    is_pair = model.config.is_encoder_decoder
    batches = [padded_batch(seed=seed, is_pair=is_pair) for seed in range(2)]
    expected = _by_autograd(monkeypatch, model, batches, dtype)
    found = _gradients(model, batches, dtype)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_row_that_is_padding_learns_from_its_logits_alone(monkeypatch):
    model = tiny_model("llama")
    embedding = model.get_input_embeddings()
    batch = padded_batch()
    embedding.padding_idx = int(batch["input_ids"][0, 2])
    name = "model.embed_tokens.weight"
    expected = _by_autograd(monkeypatch, model, [batch])[name]
    torch.testing.assert_close(_gradients(model, [batch])[name], expected, rtol=1e-5, atol=1e-6)
    embedding.padding_idx = None
    assert not torch.allclose(_gradients(model, [batch])[name], expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_one_matrix_is_made(monkeypatch, kind, dtype):
    model = tiny_model(kind)
    is_pair = model.config.is_encoder_decoder
    # of logits there are fewer
    batch = padded_batch(is_pair=is_pair, rows=2)
    weight = model.get_output_embeddings().weight
    with Matrices(weight) as one:
        _gradients(model, [batch], dtype)
    with Matrices(weight) as several:
        _by_autograd(monkeypatch, model, [batch], dtype)
    # of either lookup of a pair its own, and the sum
    assert (one.n_matrices, several.n_matrices) == (1, 5 if is_pair else 3)


def test_other_embeddings_are_left_alone(monkeypatch):
    untied = tiny_model("llama")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    frozen = tiny_model("llama")
    frozen.lm_head.weight.requires_grad_(False)
    for model in (untied, frozen):
        expected = _by_autograd(monkeypatch, model, [padded_batch()])
        found = _gradients(model, [padded_batch()])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_the_estimate_counts_one_matrix(monkeypatch):
    model = tiny_model("gpt2")
    model.resize_token_embeddings(5000)
    weight = model.lm_head.weight
    names = [name for name, _ in model.named_parameters()]

    def told():
        return estimate(model, names, (1, 2, 0, 1)).step_bytes

    one = told()
    monkeypatch.setattr(step_module, "TiedLookup", lambda _weight: nullcontext())
    assert told() - one == pytest.approx(2 * weight.numel() * weight.element_size(), rel=0.01)
