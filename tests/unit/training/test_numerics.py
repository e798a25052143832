"""The CPU's precision and its route for float32 products: only where it keeps its accuracy."""

import pytest
import torch

from core.errors import OutOfMemory
from core.option_names import in_words_of_options
from core.training import numerics
from core.training.numerics import (
    Product,
    choose_numerics,
    computes_in_bfloat16,
    float32_route,
    memory_errors,
)

MATMUL = torch.backends.mkldnn.matmul
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def route():
    before = MATMUL.fp32_precision
    yield
    MATMUL.fp32_precision = before


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_float32_products_stay_accurate_whatever_was_chosen(precision):
    choose_numerics("cpu", precision)
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    exact = a.double() @ b.double()
    assert float((a @ b - exact).norm() / exact.norm()) < 1e-5


def _products(onednn_error):
    return [
        Product(route="float32", duration_s=2.0, error=2e-7),
        Product(route="oneDNN float32", duration_s=1.0, error=onednn_error),
        Product(route="bfloat16", duration_s=0.5, error=3e-3),
    ]


def test_a_route_that_rounds_is_not_taken_however_fast():
    assert float32_route(_products(4e-7)) == "oneDNN float32"
    # what a processor with AMX would show
    assert float32_route(_products(2e-3)) == "float32"


def test_the_precision_asked_for_is_the_one_chosen():
    assert choose_numerics("cpu", "fp32").autocast_dtype is None
    assert choose_numerics("cpu", "fp32").name == "fp32"
    assert choose_numerics("cpu", "bf16").autocast_dtype is torch.bfloat16
    assert choose_numerics("cpu", "bf16").name == "bf16"
    expected = "bf16" if computes_in_bfloat16(CPU) else "fp32"
    assert choose_numerics("cpu").name == choose_numerics("cpu", "auto").name == expected


def test_the_record_repeats_itself_and_tells_what_was_tried():
    first = choose_numerics("cpu")
    numerics._products.cache_clear()
    second = choose_numerics("cpu")
    # seconds differ from time to time, what is chosen and how accurate it is does not
    assert (first.precision, first.name) == (second.precision, second.name)
    assert all(way in first.probe for way in ("float32", "oneDNN float32", "bfloat16", " ms"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nIt was much."),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=["torch", "CUDA", "Python"],
)
def test_what_to_do_about_memory_names_fields_and_on_the_command_line_options(error):
    with pytest.raises(OutOfMemory) as caught, memory_errors():
        raise error
    assert caught.value.message.endswith(
        " Lower hyperparameters.batch_size (raising green.training.gradient_accumulation alike), "
        "green.training.max_input_tokens or green.rho."
    )
    with pytest.raises(OutOfMemory) as typed, in_words_of_options(), memory_errors():
        raise error
    assert typed.value.message.endswith(
        " Lower --batch-size (raising --accumulation alike), --max-input-tokens or --rho."
    )


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match=r"^no memory of it$"), memory_errors():
        raise RuntimeError("no memory of it")
