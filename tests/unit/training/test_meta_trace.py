"""Kernels run on shapes alone give torch's own shapes, strides and types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from core.training.flops import profile
from core.training.meta_trace import run_on_shapes

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("kernel", "left", "right"),
    [
        (aten.mul.Tensor, (4, 1, 3), (5, 3)),
        (aten.add.Tensor, (2, 3), 2),
        (aten.add.Tensor, (2, 3), 2.0),
        (aten.add.Tensor, (2, 3), True),
        (aten.div.Tensor, (2, 3), (2, 3)),
        (aten.pow.Tensor_Scalar, (3, 4), 2),
        (aten.silu_backward.default, (3, 4), (3, 4)),
        # no elementwise kernels: shape, view, several outputs
        (aten.mm.default, (3, 4), (4, 5)),
        (aten.select.int, (3, 4), 1),
        (aten.split.Tensor, (4, 4), 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_remembered_layouts_are_torchs_own(
    kernel: Any, left: Any, right: Any, dtype: torch.dtype, is_transposed: bool
) -> None:
    def given(shape: Any) -> Any:
        if not isinstance(shape, tuple):
            return shape
        if is_transposed:
            return torch.empty(shape[::-1], device="meta").permute(*range(len(shape))[::-1])
        return torch.empty(shape, device="meta")

    args = given(left), given(right)
    if kernel not in (aten.mm.default, aten.silu_backward.default):
        args = args[0].to(dtype), args[1]
    if kernel is aten.select.int:
        args = args[0], 0, args[1]
    layouts: dict[Any, Any] = {}
    for _ in range(2):
        found, expected = run_on_shapes(kernel, args, {}, layouts), kernel(*args)
        for one, other in zip(_as_tuple(found), _as_tuple(expected), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (
                other.shape,
                other.stride(),
                other.dtype,
            )
            assert one.is_meta


def _as_tuple(out: Any) -> tuple[torch.Tensor, ...]:
    return (out,) if isinstance(out, torch.Tensor) else tuple(out)


def test_a_buffer_may_follow_the_batch_to_its_device() -> None:
    # as RoBERTa's token types do; weights are on meta here, the batch is not
    config = transformers.RobertaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        is_decoder=True,
    )
    model = transformers.RobertaForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    ids = torch.full((2, 9), 3)
    batch = {"input_ids": ids, "labels": ids}
    costs = profile(model, batch)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert costs.full_flops == counter.get_total_flops()
