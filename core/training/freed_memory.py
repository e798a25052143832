"""What the host's allocator does with memory that a step frees.

glibc gives large blocks, and the end of its heap, back to the system as soon as they are free. A
training step takes and frees the same gigabytes every time, so that each step finds its pages new
and zeroed by the kernel: .29 s of it in a step of 2.5 s of full fine-tuning, .10 s where they are
kept (`benchmarks/freed_memory.py`, docs/training-step.md).
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

#: glibc's malloc.h: up to how much may lie free at the heap's end, and from which size on a block
#: comes from the system and goes back to it
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: the most that mallopt takes
_MOST: Final = 2**31 - 1
#: larger are gradients of large embeddings: what else a step needs settles in the gaps that they
#: leave, so that each next one takes new memory (1.1 GiB for Gemma-3-270M's .6)
_LARGE: Final = 128 << 20


def keep_freed_memory() -> bool:
    """Have this process keep up to 2 GiB of what it frees in blocks up to 128 MiB, for the next
    step; False where the allocator is not glibc's. The process's peak stays what it was, within a
    few percent.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # naming one of them stops glibc from moving the other by itself: both, or it gets slower
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _MOST))
