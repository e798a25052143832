"""What this host trains on, in words fit for a report."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def hardware_name() -> str:
    """The card, else the processor as the kernel names it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _processor(Path("/proc/cpuinfo"))


def _processor(cpuinfo: Path) -> str:
    # platform.processor() is empty or just "x86_64" on Linux
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
