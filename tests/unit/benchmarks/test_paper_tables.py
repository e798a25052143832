"""The paper's tables: runs of tiny models, and the page that is written of whatever is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.pair_models import build_pair_models

# the benchmark's own modules find one another as scripts do
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import paper_tables
from paper_flops import FULL, PAPER, SIZES, Contender
from paper_tables import NOBODY, Run

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

GREEN = Contender(method="green", rho=0.7)
RANDOM = Contender(method="green", rho=0.7, importance="random")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "sums"
    folder.mkdir()
    pairs = [{"prompt": f"add {n} and {n % 7}", "completion": f" {n + n % 7}"} for n in range(20)]
    for name, count in (("train", 20), ("validation", 6)):
        lines = "\n".join(json.dumps(pair) for pair in pairs[:count])
        (folder / f"{name}.jsonl").write_text(lines + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A cache that holds the FLOPs of the paper's models: nothing of them is measured here."""
    folder = tmp_path / "runs"
    folder.mkdir()
    flops = {name: {c.label: 2e15 for c in contenders} for name, contenders in PAPER.items()}
    for contenders in flops.values():
        contenders[FULL.label] = 4e15
    (folder / f"flops-{torch.__version__}.json").write_text(json.dumps(flops))
    size = {"parameters": 1e6, "full": 1e12, "forward_share": 1 / 3, "rho_min": 0.4}
    sizes = {name: {**size, "green_share": 0.5} for name in SIZES}
    (folder / f"sizes-{torch.__version__}.json").write_text(json.dumps(sizes))
    return folder


def _page(monkeypatch: pytest.MonkeyPatch, runs: Path, *asked: str, do: Sequence[Run] = ()) -> str:
    """The page, once ``do`` is done (in this process: a run's own is what `processes` starts)."""
    out = runs.parent / "results.md"
    settings = ["--steps", "5", "--validation", "6", "--questions", "2", "--at-most", "0"]
    words = ["paper_tables", *settings, "--runs", str(runs), "--out", str(out), *asked]
    monkeypatch.setattr(sys, "argv", words)
    assert paper_tables.main() == 0
    for run in do:
        paper_tables.run_one(paper_tables.parse_arguments(), run)
    assert paper_tables.main() == 0
    return out.read_text()


def _found(runs: Path) -> dict[str, dict[str, Any]]:
    """What each run left."""
    return {path.stem: json.loads(path.read_text()) for path in runs.glob("*/*-seed0.json")}


@pytest.mark.parametrize(
    ("kind", "contenders"),
    [("causal", (FULL, GREEN, RANDOM)), ("untied T5", (GREEN, Contender(method="lora")))],
)
def test_every_method_is_judged_alike(
    kind: str,
    contenders: tuple[Contender, ...],
    data: Path,
    runs: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model if kind == "causal" else build_pair_models(tmp_path / "pairs")[kind]
    do = [NOBODY, *(Run(contender, 0) for contender in contenders)]
    text = _page(monkeypatch, runs, "--model", str(model), "--data", str(data), do=do)
    found = _found(runs)
    green = found["green-0_7-seed0"]
    assert 0.3 < green["flops_share"] <= 0.7
    assert 0 < green["selection_share"] < 1
    if FULL in contenders:
        assert found["full-seed0"]["flops_share"] == pytest.approx(1)
        assert found["green-0_7-by-random-seed0"]["selection_share"] == 0
    losses = {run["validation_loss"] for run in found.values()}
    assert len(losses) == len(contenders), "everybody is trained in their own way"
    quality = text.partition("## Quality")[2]
    for contender in contenders:
        assert f"| {contender.label} | 1 | " in quality
    assert f"{green['validation_loss']:.3f}" in quality
    assert "No runs yet: " in quality


def test_the_paper_is_shown_beside_what_was_measured(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _page(monkeypatch, runs)
    assert "| OPT-2.7B | green 0.5 | 2.0 | 0.500 | 41.6 | 0.498 |" in text
    assert "No runs yet." in text


def test_a_share_that_is_not_feasible_says_what_would_be(
    data: Path, runs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = Contender(method="green", rho=0.36)
    do = [NOBODY, Run(FULL, 0), Run(low, 0)]
    text = _page(monkeypatch, runs, "--model", str(tiny_model), "--data", str(data), do=do)
    rho_min = _found(runs)["green-0_36-seed0"]["rho_min"]
    assert rho_min > 0.36
    assert f"| green 0.36 | not feasible here, lowest {rho_min:.3f} |" in text


def test_a_run_stopped_after_its_last_step_is_judged_by_the_next(
    data: Path, runs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "--model", str(tiny_model), "--data", str(data)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paper_tables, "_judged", stop)
        with pytest.raises(KeyboardInterrupt):
            _page(monkeypatch, runs, *asked, do=[Run(FULL, 0)])
    text = _page(monkeypatch, runs, *asked, do=[NOBODY, Run(FULL, 0)])
    assert _found(runs)["full-seed0"]["step_s"] is None
    assert "| full | 1 | 1.000 | 0.0000 |  | " in text
