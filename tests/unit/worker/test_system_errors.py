"""A full disk under tensors that are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.fixtures.full_disk import full_disk
from worker.system_errors import system_errors


def test_a_disk_that_is_full_is_the_systems_error(tmp_path: Path) -> None:
    with full_disk(1000), system_errors():
        save_file({"w": torch.zeros(1000)}, tmp_path / "w.safetensors")


def test_a_file_that_is_damaged_is_not(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(SafetensorError), system_errors():
        load_file(path)
