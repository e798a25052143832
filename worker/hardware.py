"""What this host trains on, in words fit for a report."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def hardware_name() -> str:
    """The card, else the processor as the kernel names it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _processor(Path("/proc/cpuinfo"))


def hardware_and_device() -> tuple[str, str]:
    """In words that tell one kind of host from another, and "cpu" or "cuda"."""
    if torch.cuda.is_available():
        return hardware_name(), "cuda"
    return f"{hardware_name()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads", "cpu"


def _processor(cpuinfo: Path) -> str:
    # platform.processor() is empty or just "x86_64" on Linux
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
