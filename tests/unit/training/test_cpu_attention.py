"""Attention on a CPU: in which type and by which route its kernels run, how near the truth."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from core.training.cpu_attention import SHORT, CpuAttention
from core.training.generation import Decoding, generate
from core.training.step import LossStep
from tests.fixtures.tiny_models import padded_batch, tiny_model

HEADS, WIDTH = 3, 16
MATMUL = torch.backends.mkldnn.matmul


class AttentionKernels(TorchDispatchMode):
    """Of every fused attention kernel, forward and backward: the type of its first tensor, and the
    route of float32 products while it runs; and the routes of the projections' products.
    """

    def __init__(self):
        super().__init__()
        self.seen, self.routes, self.product_routes = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.seen.append(args[0].dtype)
            self.routes.append(MATMUL.fp32_precision)
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.product_routes.append(MATMUL.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["bf16"])
def route(request):
    """Of the process's float32 products, in torch's words: "bf16" is oneDNN's, as
    `choose_numerics` leaves it where that is float32-accurate.
    """
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = request.param
    yield request.param
    MATMUL.fp32_precision = before


def _qkv(n_tokens, dtype=torch.float32):
    torch.manual_seed(0)
    shape = (2, HEADS, n_tokens, WIDTH)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    ("n_tokens", "dtype"), [(7, torch.float32), (SHORT, torch.float32), (SHORT + 1, torch.bfloat16)]
)
def test_up_to_its_length_both_passes_run_in_float32(n_tokens, dtype):
    with AttentionKernels() as kernels, torch.autocast("cpu", dtype=torch.bfloat16):
        with CpuAttention(torch.bfloat16):
            out = F.scaled_dot_product_attention(*_qkv(n_tokens), is_causal=True)
        out.sum().backward()
    assert out.dtype is torch.bfloat16
    assert kernels.seen == [dtype, dtype]


@pytest.mark.parametrize("mask", [None, torch.bool, torch.bfloat16])
def test_it_is_nearer_the_truth_than_bfloat16(mask):
    n_tokens = 40
    tensors = _qkv(n_tokens)
    given = None if mask is None else torch.ones(n_tokens, n_tokens).tril().to(mask)
    exact = F.scaled_dot_product_attention(
        *(t.double() for t in tensors), None if mask is None else _as_double(given)
    )
    upstream = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, tensors, upstream)

    def errors():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = F.scaled_dot_product_attention(*tensors, attn_mask=given)
        found = torch.autograd.grad(out, tensors, upstream.to(out.dtype))
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]

    without = errors()
    with CpuAttention(torch.bfloat16):
        assert all(a <= b for a, b in zip(errors(), without, strict=True))


def _as_double(mask):
    return mask if mask.dtype is torch.bool else mask.double()


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_step_on_the_cpu_attends_in_float32_wherever_blocks_run_again(kind, recomputes):
    step = LossStep(tiny_model(kind), autocast_dtype=torch.bfloat16)
    step.recomputes = recomputes
    with AttentionKernels() as kernels:
        step(step.inputs(padded_batch())).loss_sum.backward()
    assert set(kernels.seen) == {torch.float32}


def test_a_copy_for_a_model_elsewhere_keeps_that_ones_kernels():
    step = LossStep(tiny_model("llama"), autocast_dtype=torch.bfloat16)
    step.runs_on_cpu = False
    with AttentionKernels() as kernels:
        step(step.inputs(padded_batch()))
    assert set(kernels.seen) == {torch.bfloat16}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.usefixtures("route")
def test_attention_alone_leaves_the_route_of_the_other_products(autocast, recomputes):
    step = LossStep(tiny_model("llama"), autocast_dtype=autocast)
    step.recomputes = recomputes
    with AttentionKernels() as kernels:
        step(step.inputs(padded_batch())).loss_sum.backward()
    n_blocks = step.model.config.num_hidden_layers
    assert kernels.routes == ["ieee"] * n_blocks * (3 if recomputes else 2)
    assert set(kernels.product_routes) == {"bf16"}
    assert MATMUL.fp32_precision == "bf16"


@pytest.mark.usefixtures("route")
def test_answers_are_generated_with_attention_by_its_own_route():
    def decode(_ids, *, skip_special_tokens):
        return "an answer" if skip_special_tokens else ""

    tokenizer = SimpleNamespace(eos_token_id=None, pad_token_id=0, decode=decode)
    with AttentionKernels() as kernels:
        generate(tiny_model("llama"), tokenizer, [[3, 4, 5]], Decoding(max_new_tokens=2))
    assert kernels.routes
    assert set(kernels.routes) == {"ieee"}


@pytest.mark.parametrize("route", ["ieee", "none"], indirect=True)
def test_a_process_without_another_route_keeps_its_own(route):
    with AttentionKernels() as kernels, CpuAttention(None):
        F.scaled_dot_product_attention(*_qkv(5), is_causal=True).sum().backward()
    assert kernels.routes == [route, route]
