"""The CPU's route for float32 products: only where it keeps float32's accuracy."""

import pytest
import torch

from core.training import numerics

MATMUL = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def route():
    before = MATMUL.fp32_precision
    yield
    MATMUL.fp32_precision = before


def test_products_stay_accurate_whatever_was_chosen():
    chosen = numerics.choose_numerics("cpu")
    assert chosen.autocast_dtype is None
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    exact = a.double() @ b.double()
    assert float((a @ b - exact).norm() / exact.norm()) < 1e-5


def test_a_route_that_rounds_is_not_taken(monkeypatch):
    MATMUL.fp32_precision = "ieee"
    # what a processor with AMX would show
    monkeypatch.setattr(numerics, "_product_error", lambda: 2e-3)
    assert numerics.choose_numerics("cpu").precision == "float32"
    assert MATMUL.fp32_precision == "ieee"
