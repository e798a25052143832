"""Predicted FLOPs against torch's own count of a real step, against hand counts and golden data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.costs import ARCHITECTURES, batch_for, measured_flops, random_set
from core.errors import InvalidInput
from core.training.flops import FlopsProfile, profile

GOLDEN = Path(__file__).resolve().parents[3] / ".." / "shared" / "golden" / "flops.json"
GOLDEN_MODELS = {
    "facebook/opt-125m": "OPT-125M",
    "bigscience/bloomz-560m": "BLOOMZ-560M",
    "google/flan-t5-small": "FLAN-T5-small",
}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[name].build(ARCHITECTURES[name].tiny)


def mlp_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch["x"]).sum()


# the larger sizes of a family share its tiny configuration; the rest do nothing that these do not
SPARED = {"OPT-2.7B", "BLOOMZ-3B", "FLAN-T5-XL", "StableLM-3B", "OLMo-2-1B", "Granite-3-2B"} | {
    "StarCoder2-3B", "PEGASUS-large", "Marian", "Falcon-7B", "Phi-3-mini", "Qwen3-MoE, small"
}  # fmt: skip
DISTINCT = [name for name in ARCHITECTURES if name not in SPARED]


# peft asks transformers by a name that transformers has deprecated
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", DISTINCT)
def test_any_set_costs_what_torch_measures(name: str) -> None:
    model = tiny(name)
    batch = batch_for(model, 2, 11, 7)
    costs = profile(model, batch)
    assert costs.names == tuple(each for each, _ in model.named_parameters())
    rng = random.Random(f"sets of {name}")
    for _ in range(6):
        names = random_set(costs, rng)
        assert measured_flops(model, batch, set(names)) == (
            costs.forward_flops,
            costs.backward_flops(names),
        )


@pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared beside this checkout")
@pytest.mark.parametrize("golden", GOLDEN_MODELS)
def test_golden_sets(golden: str) -> None:
    architecture = ARCHITECTURES[GOLDEN_MODELS[golden]]
    with torch.device("meta"):
        model = architecture.build(architecture.published)
    costs = profile(model, batch_for(model, 4, 512, 64))
    for case in json.loads(GOLDEN.read_text())["models"][golden]["cases"].values():
        names = costs.names if case["set"] == "all" else case["set"]
        assert costs.forward_flops == pytest.approx(1e9 * case["meas_fp"], rel=1e-9)
        assert costs.backward_flops(names) == pytest.approx(1e9 * case["meas_bp"], rel=1e-9)


def test_hand_count_of_two_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
    costs = profile(model, {"x": torch.ones(2, 3)}, loss=mlp_loss)
    first, second = 2 * 2 * 3 * 5, 2 * 2 * 5 * 7
    assert costs.forward_flops == first + second
    assert costs.backward_flops([]) == 0
    assert costs.backward_flops(["2.bias"]) == 0
    assert costs.backward_flops(["2.weight"]) == second
    assert costs.backward_flops(["0.bias"]) == second
    assert costs.backward_flops(["0.weight", "2.weight"]) == 2 * second + first
    assert costs.full_flops == 2 * first + 3 * second
    assert costs.min_rho == (first + second) / costs.full_flops


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(implementation: str) -> None:
    model = tiny("SmolLM2-135M")
    model.set_attn_implementation(implementation)
    model.train()
    model.model.layers[0].eval()
    next(model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    costs = profile(model, batch_for(model, 2, 11, 7))
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config._attn_implementation == implementation
    assert torch.equal(random_state, torch.get_rng_state())
    assert measured_flops(model, batch_for(model, 2, 11, 7), set(costs.names)) == (
        costs.forward_flops,
        costs.full_flops - costs.forward_flops,
    )


def test_meta_model_costs_what_the_real_one_does() -> None:
    architecture = ARCHITECTURES["OPT-350M"]
    with torch.device("meta"):
        shapes = architecture.build(architecture.tiny)
    batch = batch_for(shapes, 2, 11, 7)
    on_meta = {key: tensor.to("meta") for key, tensor in batch.items()}
    assert profile(shapes, batch) == profile(tiny("OPT-350M"), batch) == profile(shapes, on_meta)


@pytest.mark.parametrize("name", ["SmolLM2-135M", "T5-small", "BART-base", "OPT-125M"])
def test_padding_masks_change_no_count(name: str) -> None:
    model = tiny(name)
    batch = batch_for(model, 2, 11, 7)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 6:] = 0
    masked = {**batch, "attention_mask": mask}
    costs = profile(model, masked)
    assert costs == profile(model, batch)
    assert measured_flops(model, masked, {costs.names[0]}) == (
        costs.forward_flops,
        costs.backward_flops(costs.names[:1]),
    )


def test_logits_only_where_labels_are() -> None:
    """A loss whose shapes depend on the labels' values, gathered in a hook before the head."""
    model = tiny("SmolLM2-135M")
    batch = batch_for(model, 2, 11, 7)
    labels = torch.full((2, 11), -100)
    labels[0, 3:5] = labels[1, 9:] = 1

    def loss(traced: Any, tensors: Any) -> torch.Tensor:
        is_label = tensors["labels"] != -100
        gather = lambda _, inputs: (inputs[0][is_label.to(inputs[0].device)],)
        handle = traced.get_output_embeddings().register_forward_pre_hook(gather)
        logits = traced(input_ids=tensors["input_ids"]).logits
        handle.remove()
        targets = tensors["labels"][is_label].to(logits.device)
        return nn.functional.cross_entropy(logits, targets)

    few = profile(model, {**batch, "labels": labels}, loss=loss)
    all_of_them = profile(model, batch, loss=loss)
    head = 2 * 32 * 64
    assert all_of_them.forward_flops - few.forward_flops == (22 - 4) * head
    assert all_of_them.full_flops - few.full_flops == 3 * (22 - 4) * head


def test_unused_parameters_cost_nothing_and_are_not_trainable() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 5), "unused": nn.Linear(3, 5)})
    costs = profile(model, {"x": torch.ones(2, 3)}, loss=lambda m, b: m["used"](b["x"]).sum())
    assert costs.trainable == ("used.weight", "used.bias")
    assert costs.backward_flops(["unused.weight"]) == 0
    assert len(costs.names) == 4


def test_detached_and_ungraded_branches_get_no_gradient() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abc"})

    def loss(m: Any, b: Any) -> torch.Tensor:
        with torch.no_grad():
            frozen = m["a"](b["x"])
        return (m["c"](frozen + m["b"](b["x"]).detach())).sum()

    costs = profile(model, {"x": torch.ones(2, 3)}, loss=loss)
    assert costs.forward_flops == 3 * 36
    assert costs.trainable == ("c.weight",)
    assert costs.full_flops == 4 * 36


def test_a_grouped_product_costs_what_its_groups_cost_apart() -> None:
    """Both layouts that experts run, and those of their gradients."""
    rows, inner, columns, n_groups = 6, 16, 8, 2
    offsets = torch.tensor([2, rows], dtype=torch.int32)
    model = nn.ParameterDict(
        {
            "x": nn.Parameter(torch.ones(rows, inner)),
            "experts": nn.Parameter(torch.ones(n_groups, inner, columns)),
        }
    )

    def loss(m: Any, b: Any) -> torch.Tensor:
        return torch._grouped_mm(m["x"], m["experts"], b["offsets"]).sum()

    costs = profile(model, {"offsets": offsets}, loss=loss)
    product = 2 * rows * inner * columns
    assert costs.forward_flops == product
    assert costs.backward_flops(["experts"]) == costs.backward_flops(["x"]) == product
    assert costs.full_flops == 3 * product


def test_fused_attention_is_counted_where_a_model_cannot_be_switched() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            split = lambda y: y.view(2, 5, 2, 4).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(
                split(self.q(x)), split(self.k(x)), split(self.v(x)), is_causal=True
            )

    costs = profile(Attention(), {"x": torch.ones(2, 5, 8)}, loss=mlp_loss)
    projection, product = 2 * 10 * 8 * 8, 2 * 2 * 2 * 5 * 5 * 4
    assert costs.forward_flops == 3 * projection + 2 * product
    assert costs.backward_flops(["v.weight"]) == product + projection
    assert costs.backward_flops(["q.weight"]) == 2 * product + projection
    assert costs.full_flops - costs.forward_flops == 4 * product + 3 * projection


def test_chain_counts_down_to_the_deepest() -> None:
    costs = FlopsProfile.chain(["a", "b", "c"], [10, 5, 1], [9, 1, 2])
    assert costs.backward_flops(["b"]) == 10 + 5 + 1
    assert costs.backward_flops(["a", "c"]) == 10 + 5 + 1 + 9 + 2
    assert costs.forward_flops == 0
    assert costs.full_flops == 28
    assert costs.min_rho == 16 / 28


@pytest.mark.parametrize("flops", [([1], [1, 2]), ([1, 2], [1, -2]), ([1, 2], [1, float("nan")])])
def test_chain_refuses_nonsense(flops: Any) -> None:
    with pytest.raises(InvalidInput):
        FlopsProfile.chain(["a", "b"], *flops)


def test_mean_is_the_mean_of_every_cost() -> None:
    model = tiny("T5-small")
    profiles = [profile(model, batch_for(model, 2, *size)) for size in ((5, 3), (9, 7), (16, 2))]
    mean = FlopsProfile.mean(profiles, [1, 2, 5])
    rng = random.Random(0)
    for _ in range(20):
        names = random_set(mean, rng)
        expected = sum(w * p.step_flops(names) for w, p in zip([1, 2, 5], profiles, strict=True))
        assert mean.step_flops(names) == pytest.approx(expected / 8, rel=1e-12)
    assert mean.full_flops > 0
    with pytest.raises(InvalidInput, match="same model"):
        FlopsProfile.mean([mean, FlopsProfile.chain(["a"], [1], [1])], [1, 1])
    with pytest.raises(InvalidInput, match="weights"):
        FlopsProfile.mean(profiles, [0, 0, 0])
    with pytest.raises(InvalidInput, match="one weight for each"):
        FlopsProfile.mean([], [])


def test_a_profile_survives_json() -> None:
    model = tiny("FLAN-T5-small")
    costs = profile(model, batch_for(model, 2, 11, 7))
    assert FlopsProfile.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


def test_unknown_names_are_named() -> None:
    costs = FlopsProfile.chain(["a", "b"], [1, 1], [1, 1])
    with pytest.raises(InvalidInput, match="'lm_head'"):
        costs.backward_flops(["a", "lm_head"])
