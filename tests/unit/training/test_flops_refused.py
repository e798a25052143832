"""What cannot be priced is refused by name, with its reason, before anything is spent."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.costs import refusal
from core.errors import InvalidInput, ModelUnsupported
from core.training.flops import profile
from core.training.pricing import price_steps
from tests.fixtures.tiny_models import tiny_model
from tests.unit.training.test_flops import mlp_loss


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight.T, x.T @ grads[0]


class _Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _FusedLinear.apply(x @ self.weight, self.weight)


class _FusedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _FusedLinear.apply(x.flatten(0, 1), self.weight).view(x.shape)


def test_a_custom_function_that_multiplies_is_refused_by_name() -> None:
    with pytest.raises(ModelUnsupported, match="_FusedLinearBackward"):
        profile(_Custom(), {"x": torch.ones(2, 3)}, loss=mlp_loss)


def test_a_job_with_a_custom_function_is_refused_by_name() -> None:
    """Of the shapes that a job is priced at, only one is held against a backward pass."""
    model = tiny_model("llama")
    model.model.layers[1].mlp = _FusedMlp(16)
    with pytest.raises(ModelUnsupported, match="_FusedLinearBackward"):
        price_steps(model)


def test_an_operator_with_hidden_products_is_refused_by_name() -> None:
    library = torch.library.Library("greentune_test", "FRAGMENT")
    library.define("squeeze(Tensor x) -> Tensor")
    library.impl("squeeze", lambda x: x * 2, "CompositeExplicitAutograd")

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return torch.ops.greentune_test.squeeze(model(batch["x"])).sum()

    with pytest.raises(ModelUnsupported, match="greentune_test::squeeze"):
        profile(nn.Linear(16, 16, bias=False), {"x": torch.ones(1, 16, 16)}, loss=loss)
    library._destroy()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Mamba", "convolution in 64 groups"),
        ("RWKV", "cannot take the model's gradient.*inplace"),
        ("LED", "does not follow from its batch's shape"),
    ],
)
def test_what_has_no_price_is_refused_with_its_reason(name: str, reason: str) -> None:
    assert re.search(reason, refusal(name))


def test_quantised_weights_are_refused_by_name() -> None:
    model = nn.Linear(4, 4)
    model.register_parameter(
        "packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    )
    with pytest.raises(ModelUnsupported, match=r"packed.*uint8"):
        profile(model, {"x": torch.ones(2, 4)}, loss=mlp_loss)


def test_shapes_that_depend_on_weights_are_refused() -> None:
    loss = lambda model, batch: model(batch["x"])[model(batch["x"]) > 0].sum()
    with pytest.raises(ModelUnsupported, match="without its weights"):
        profile(nn.Linear(4, 4), {"x": torch.ones(2, 4)}, loss=loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: None, "must be one number"),
        (lambda m, b: m(b["x"]), "must be one number"),
        (lambda m, b: b["x"].sum(), "does not depend on any parameter"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        profile(nn.Linear(4, 4), {"x": torch.ones(2, 4)}, loss=loss)


def test_a_batch_without_labels_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(InvalidInput, match="give labels"):
        profile(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
