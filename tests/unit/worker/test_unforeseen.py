"""What a caller is told of an exception that nobody foresaw."""

from __future__ import annotations

import pytest
import torch
from sqlalchemy.exc import ProgrammingError

from worker.unforeseen import may_pass, sentence_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such column"), "ValueError: no such column"),
        (KeyError("loss"), "KeyError: 'loss'"),
        (RuntimeError("It failed.\n  File x, line 3\n"), "RuntimeError: It failed"),
        (RuntimeError("\n\n the first line\nthe second"), "RuntimeError: the first line"),
        (MemoryError(), "MemoryError"),
        (ValueError("a/b and 3/4 of org/model"), "ValueError: a/b and 3/4 of org/model"),
        (ValueError("no /home/a b/x.bin"), "ValueError: no <path> b/x.bin"),
        (ValueError("no '/home/a b/x.bin' here"), "ValueError: no <path> here"),
        (ValueError("in ~/.cache/hub, line 3"), "ValueError: in <path>, line 3"),
        (ValueError("(/srv/x.py:12)"), "ValueError: (<path>:12)"),
        (ValueError("at http://10.0.0.7:9/x?key=hush failed"), "ValueError: at <address> failed"),
        (ValueError("s3://us:er@host/b"), "ValueError: <address>"),
        (TypeError("<A object at 0x7f001e3faef0>"), "TypeError: <A object at 0x...>"),
        (ProgrammingError("SELECT 1", {}, Exception("no table")), "ProgrammingError"),
    ],
)
def test_it_is_one_sentence_without_what_is_the_hosts_own(error, said):
    assert sentence_of(error) == f"Training failed with {said}"


def test_it_is_short():
    sentence = sentence_of(ValueError("many words " * 100))
    assert len(sentence) < 250
    assert sentence.endswith("words...")


def test_the_same_mistake_is_the_same_sentence():
    def mistake() -> str:
        try:
            torch.nn.Linear(2, 3)(object())  # type: ignore[arg-type]
        except TypeError as error:
            return sentence_of(error)
        raise AssertionError

    assert mistake() == mistake()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), True),
        (torch.AcceleratorError("uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `x`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp:3"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `x`"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (ValueError("CUDA error"), False),
        (KeyError("x"), False),
    ],
)
def test_what_is_the_cards_may_pass(error, passes):
    assert may_pass(error) is passes
