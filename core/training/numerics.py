"""The device and the precision that a run computes in; chosen once, by test, and recorded.

CPU: float32. Its matrix products go through oneDNN where that stays float32-accurate on this very
machine: on AMD processors it runs at twice MKL's speed, on processors with AMX the same switch
really rounds to bfloat16, and then it stays off. The choice rests on accuracy alone, never on a
stopwatch, so that a machine always repeats its own results.
CUDA: bfloat16 autocast over float32 weights where the device has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from core.errors import OutOfMemory

#: torch makes its attributes at run time, unseen by type checkers
_MKLDNN: Any = torch.backends.mkldnn

#: relative error of a float32 product of this length is about 4e-7, of a bfloat16 one 2e-3
_FLOAT32_ERROR = 5e-6
_PROBE_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    device: torch.device
    autocast_dtype: torch.dtype | None
    #: for records, e.g. "float32 (oneDNN, error 4e-07)"
    precision: str


def choose_numerics(device: str | None = None) -> Numerics:
    """The best device at hand (or the named one) and its precision.

    On the CPU this sets torch's process-wide route for float32 products.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and torch.cuda.is_bf16_supported():
        return Numerics(device=chosen, autocast_dtype=torch.bfloat16, precision="bfloat16 autocast")
    if chosen.type == "cpu" and _MKLDNN.is_available():
        return _cpu_numerics(chosen)
    return Numerics(device=chosen, autocast_dtype=None, precision="float32")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's two ways of running out of memory, CUDA's and the host's, into OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        # the host allocator raises a bare RuntimeError
        if "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: BaseException) -> OutOfMemory:
    return OutOfMemory(
        f"Not enough memory for this model and batch: {str(error).strip().splitlines()[0]} "
        "Lower batch_size (raising gradient_accumulation alike), max_input_tokens or rho."
    )


def _cpu_numerics(device: torch.device) -> Numerics:
    matmul = _MKLDNN.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    error = _product_error()
    if error > _FLOAT32_ERROR:
        matmul.fp32_precision = before
        return Numerics(device=device, autocast_dtype=None, precision="float32")
    return Numerics(
        device=device, autocast_dtype=None, precision=f"float32 (oneDNN, error {error:.0e})"
    )


def _product_error() -> float:
    """Relative error of a float32 matrix product, forward and transposed, against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, _PROBE_SIZE, _PROBE_SIZE, generator=generator)
    errors = []
    for left, right in ((a, b), (a.t(), b), (a, b.t())):
        exact = left.double() @ right.double()
        errors.append(float((left @ right - exact).norm() / exact.norm()))
    return max(errors)
