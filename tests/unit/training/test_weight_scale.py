"""The size of a model's weights, which rates by rule follow."""

import pytest
import torch

from core.training.weight_scale import REFERENCE_SIZE, weight_scale
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model


@torch.no_grad()
def of_size(kind, rms):
    """A model whose blocks' matrices all have this root mean square."""
    model = tiny_model(kind)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and any(part.isdigit() for part in name.split(".")):
            parameter.mul_(rms / parameter.square().mean().sqrt())
    return model


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS])
@pytest.mark.parametrize("times", [1.0, 0.2, 3.5])
def test_it_is_the_matrices_size_beside_smollm2s(kind, times):
    assert weight_scale(of_size(kind, times * REFERENCE_SIZE)) == times


def test_embeddings_heads_and_norms_do_not_count():
    model = of_size("opt", 0.5 * REFERENCE_SIZE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "embed" in name:
                parameter.mul_(100)
    assert weight_scale(model) == 0.5


@pytest.mark.parametrize("times", [100.0, 0.0, 1e-4])
def test_neither_does_one_odd_matrix(times):
    """A large one is in no danger, and one of next to nothing has nothing to lose."""
    model = of_size("opt", 0.5 * REFERENCE_SIZE)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight.mul_(times)
    assert weight_scale(model) == pytest.approx(0.5, rel=0.02)


def test_where_sizes_differ_it_is_near_the_small_ones():
    """Half of the elements four times as large as the others: the best step of a gain of N / r and
    a loss of N / r^2, by trying."""
    model = of_size("llama", REFERENCE_SIZE)
    small, large = 0, 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name:
                parameter.mul_(4)
                large += parameter.numel()
            elif "self_attn" in name:
                small += parameter.numel()
    steps = [0.01 * at for at in range(1, 500)]
    best = max(steps, key=lambda h: (small + large / 4) * h - (small + large / 16) * h**2 / 2)
    assert weight_scale(model) == pytest.approx(best, rel=0.05)
    assert best < 1.5


@torch.no_grad()
def test_what_a_norm_undoes_lowers_the_rate_and_changes_no_loss():
    """Weights halved behind norms that are doubled: the same model, whose elements AdamW would move
    by twice as much of their size. The two projections of a block that no norm is before stay.
    """
    model, halved = of_size("llama", REFERENCE_SIZE), of_size("llama", REFERENCE_SIZE)
    for layer in halved.model.layers:
        for norm, *behind in (
            (layer.input_layernorm, layer.self_attn.q_proj, layer.self_attn.k_proj,
             layer.self_attn.v_proj),
            (layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj),
        ):  # fmt: skip
            norm.weight.mul_(2)
            for projection in behind:
                projection.weight.div_(2)
    batch = padded_batch(seed=5)
    torch.testing.assert_close(halved(**batch).loss, model(**batch).loss)
    assert 0.5 <= weight_scale(halved) / weight_scale(model) < 0.6


@pytest.mark.parametrize("element", [0.0, float("nan")])
def test_a_model_without_a_size_takes_the_rule_as_it_is(element):
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(element)
    assert weight_scale(model) == 1.0


def test_no_matrix_in_a_block_takes_the_rule_as_it_is():
    assert weight_scale(torch.nn.Linear(3, 4)) == 1.0
