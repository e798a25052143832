"""The GPU benchmark, tried out on the CPU with a small model."""

import pytest
import torch

from benchmarks import gpu
from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import Contender
from benchmarks.gpu_checks import flops_error, resume_difference, weights_of


@pytest.fixture
def data(tmp_path, chat_lines):
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(chat_lines(40))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    return folder


def test_runs_end_to_end_and_shows_what_there_was_no_time_for(
    data, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the benchmark sets it; given back here
    words = [
        "--device", "cpu", "--model", str(tiny_model), "--data", str(data), "--rounds", "2",
        "--steps", "4", "--minutes", "0", "--out", str(tmp_path / "gpu.md"),
    ]  # fmt: skip
    assert gpu.main(words) == 0
    page = (tmp_path / "gpu.md").read_text()
    assert "| full | 1.000 |" in page
    assert all(f"| {label} |" in page for label in ("green 0.5", "lora", "prefix"))
    assert "MFU (measured)" in page
    assert "the same bits in all 20 tensors" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_there_is_no_cuda_device(capsys):
    assert gpu.main([]) == 2
    assert "There is no CUDA device here" in capsys.readouterr().err


def test_checks_leave_the_model_as_it_was(data, tiny_model):
    task = Task(model=str(tiny_model), data=data, batch_size=4, n_questions=0)
    prepared = prepared_for(task, Contender(method="green", rho=0.7), n_steps=4, rate=None, seed=0)
    before = weights_of(prepared)
    names = list(before)
    assert flops_error(prepared, names[-3:]) == pytest.approx(0.0, abs=1e-9)
    found = resume_difference(prepared)
    assert found.is_same
    assert found.largest_update > 0
    after = weights_of(prepared)
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert all(parameter.requires_grad for parameter in prepared.loaded.model.parameters())
