"""The device and the precision that a run computes in; chosen once, by test, and recorded.

``auto`` means bfloat16 autocast over float32 weights where the processor multiplies bfloat16 itself
(CUDA; AVX512-BF16, AMX), else float32: a product takes half of float32's time with the instructions
and longer without. The choice rests on the instruction set and on accuracy, never on a stopwatch,
so that a machine always repeats its own results; a checkpoint remembers it, so that a job keeps its
precision wherever it goes on. What the stopwatch says is recorded beside it.

float32 products on a CPU go through oneDNN where that stays float32-accurate on this very machine:
on AMD processors it runs at twice to four times MKL's speed, on processors with AMX the same switch
really rounds to bfloat16, and then it stays off.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from core.errors import OutOfMemory
from core.training_options import Precision

#: torch makes its attributes at run time, unseen by type checkers
_MKLDNN: Any = torch.backends.mkldnn

#: relative error of a float32 product of this length is about 4e-7, of a bfloat16 one 3e-3
_FLOAT32_ERROR = 5e-6
#: rows, and the width of a small model's projections
_PROBE_ROWS, _PROBE_WIDTH, _PROBE_ROUNDS = 256, 512, 3
_DEFAULT, _ONEDNN, _BFLOAT16 = "float32", "oneDNN float32", "bfloat16"
#: torch's words for the routes of float32 products
_ROUTES = {_DEFAULT: "ieee", _ONEDNN: "bf16"}

#: words of RuntimeErrors that mean it too: of torch's allocator of host memory, of CUDA where
#: torch's own allocator has no part, of cuBLAS for its workspace
_ALLOCATORS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product by one route: least seconds of a few, largest relative error of any layout
    that training multiplies in.
    """

    route: str
    duration_s: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    device: torch.device
    autocast_dtype: torch.dtype | None
    #: for records, e.g. "float32 (oneDNN, error 4e-07)"; the same whenever the machine is
    precision: str
    #: what the start-up probe found, in words; empty: nothing was probed
    probe: str = ""

    @property
    def name(self) -> Literal["fp32", "bf16"]:
        """As `core.training_options.TrainingOptions.precision`, chosen."""
        return "fp32" if self.autocast_dtype is None else "bf16"


def choose_numerics(device: str | None = None, precision: Precision = "auto") -> Numerics:
    """The best device at hand (or the named one) and its precision.

    On the CPU this sets torch's process-wide route for float32 products.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cpu" and _MKLDNN.is_available():
        return _cpu_numerics(chosen, precision)
    if precision == "bf16" or (precision == "auto" and computes_in_bfloat16(chosen)):
        return Numerics(device=chosen, autocast_dtype=torch.bfloat16, precision="bfloat16 autocast")
    return Numerics(device=chosen, autocast_dtype=None, precision="float32")


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for it, which makes it the faster way."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    has_avx = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  no public name
    has_amx = torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return device.type == "cpu" and bool(has_avx or has_amx)


def as_autocast(x: torch.Tensor) -> torch.Tensor:
    """``x`` as autocast, where it is on, would cast it for each product that takes it."""
    dtype = autocast_dtype_on(x.device)
    return x if dtype is None else x.to(dtype)


def autocast_dtype_on(device: torch.device) -> torch.dtype | None:
    """None: autocast is off there."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def float32_route(products: Sequence[Product]) -> str:
    """The name of oneDNN's where it is as accurate as float32 must be, else of torch's own."""
    found = {product.route: product.error for product in products}
    return _ONEDNN if found.get(_ONEDNN, 1.0) <= _FLOAT32_ERROR else _DEFAULT


class Float32Route:
    """Torch's own route for float32 products on a CPU, whatever `choose_numerics` chose for the
    process: as a context, or from `enter` to `leave` where a backward pass lies between.

    Attributes:
        is_changed: whether that is another.
    """

    def __init__(self) -> None:
        self._of_process = _MKLDNN.matmul.fp32_precision
        self.is_changed = self._of_process == _ROUTES[_ONEDNN]

    def enter(self) -> None:
        if self.is_changed:
            _MKLDNN.matmul.fp32_precision = _ROUTES[_DEFAULT]

    def leave(self) -> None:
        if self.is_changed:
            _MKLDNN.matmul.fp32_precision = self._of_process

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn Python's and torch's ways of running out of memory, CUDA's and the host's, into
    OutOfMemory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _ALLOCATORS):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: BaseException) -> OutOfMemory:
    said = str(error).strip() or "the host has none left."
    return OutOfMemory(
        f"Not enough memory for this model and batch: {said.splitlines()[0]} "
        "Lower hyperparameters.batch_size (raising green.training.gradient_accumulation alike), "
        "green.training.max_input_tokens or green.rho."
    )


def _cpu_numerics(device: torch.device, precision: Precision) -> Numerics:
    products = _products()
    route = float32_route(products)
    _MKLDNN.matmul.fp32_precision = _ROUTES[route]
    probe = f"{_PROBE_ROWS}x{_PROBE_WIDTH}x{_PROBE_WIDTH} products: " + ", ".join(
        f"{p.route} {1e3 * p.duration_s:.2f} ms (error {p.error:.0e})" for p in products
    )
    errors = {product.route: product.error for product in products}
    if precision == "bf16" or (precision == "auto" and computes_in_bfloat16(device)):
        text, dtype = f"bfloat16 autocast (error {errors[_BFLOAT16]:.0e})", torch.bfloat16
    else:
        is_own = route == _DEFAULT
        text = "float32" if is_own else f"float32 (oneDNN, error {errors[_ONEDNN]:.0e})"
        dtype = None
    return Numerics(device=device, autocast_dtype=dtype, precision=text, probe=probe)


@functools.cache
def _products() -> tuple[Product, ...]:
    """Each route on this machine; torch's own route for float32 is left as it is."""
    matmul = _MKLDNN.matmul
    before = matmul.fp32_precision
    try:
        found = []
        for name, route in _ROUTES.items():
            matmul.fp32_precision = route
            found.append(_product(name, torch.float32))
        return (*found, _product(_BFLOAT16, torch.bfloat16))
    finally:
        matmul.fp32_precision = before


@torch.no_grad()
def _product(route: str, dtype: torch.dtype) -> Product:
    """Forward, by the transposed weight, and by the transposed input, against float64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(_PROBE_ROWS, _PROBE_WIDTH, generator=generator)
    b = torch.randn(_PROBE_WIDTH, _PROBE_WIDTH, generator=generator)
    errors = []
    for left, right in ((a, b), (a, b.t()), (a.t(), a)):
        exact = left.double() @ right.double()
        found = (left.to(dtype) @ right.to(dtype)).double()
        errors.append(float((found - exact).norm() / exact.norm()))
    given, weight = a.to(dtype), b.to(dtype)
    durations_s = []
    for _ in range(_PROBE_ROUNDS):
        started_s = time.perf_counter()
        torch.mm(given, weight)
        durations_s.append(time.perf_counter() - started_s)
    return Product(route=route, duration_s=min(durations_s), error=max(errors))
