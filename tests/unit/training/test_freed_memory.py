"""What a training process keeps of the memory that it frees; a process each, as it stays so."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from pathlib import Path
from core.training.freed_memory import keep_freed_memory

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 // 2**20

assert keep_freed_memory()
before = resident()
block = torch.ones(int(sys.argv[1]) * 2**18)
there = resident() - before
del block
print(there, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
@pytest.mark.parametrize(("mib", "stays"), [(100, True), (300, False)])
def test_blocks_stay_unless_they_are_the_gradient_of_a_large_embedding(mib, stays):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(mib)], capture_output=True, text=True, check=True
    )
    there, left = map(int, ran.stdout.split())
    assert there >= mib
    assert (left >= mib) == stays
    assert stays or left < mib / 10
