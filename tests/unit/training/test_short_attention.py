"""Short attention under bfloat16 autocast runs in float32: by which kernels, how near the truth."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from core.training.short_attention import SHORT, ShortAttention
from core.training.step import LossStep
from tests.fixtures.tiny_models import padded_batch, tiny_model

HEADS, WIDTH = 3, 16


class AttentionTypes(TorchDispatchMode):
    """The type of the first tensor of every fused attention kernel, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def _qkv(n_tokens, dtype=torch.float32):
    torch.manual_seed(0)
    shape = (2, HEADS, n_tokens, WIDTH)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    ("n_tokens", "dtype"), [(7, torch.float32), (SHORT, torch.float32), (SHORT + 1, torch.bfloat16)]
)
def test_up_to_its_length_both_passes_run_in_float32(n_tokens, dtype):
    with AttentionTypes() as kernels, torch.autocast("cpu", dtype=torch.bfloat16):
        with ShortAttention(torch.bfloat16):
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
    with ShortAttention(torch.bfloat16):
        assert all(a <= b for a, b in zip(errors(), without, strict=True))


def _as_double(mask):
    return mask if mask.dtype is torch.bool else mask.double()


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_step_on_the_cpu_attends_in_float32_wherever_blocks_run_again(kind, recomputes):
    step = LossStep(tiny_model(kind), autocast_dtype=torch.bfloat16)
    step.recomputes = recomputes
    with AttentionTypes() as kernels:
        step(step.inputs(padded_batch())).loss_sum.backward()
    assert set(kernels.seen) == {torch.float32}


def test_a_copy_for_a_model_elsewhere_keeps_that_ones_kernels():
    step = LossStep(tiny_model("llama"), autocast_dtype=torch.bfloat16)
    step.runs_on_cpu = False
    with AttentionTypes() as kernels:
        step(step.inputs(padded_batch()))
    assert set(kernels.seen) == {torch.bfloat16}
