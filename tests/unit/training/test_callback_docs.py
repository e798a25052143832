"""The examples of docs/callback.md, run as they stand on a tiny model of the name they give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.training.callback import GreenTrainerCallback
from tests.fixtures.models import build_tiny_model

PAGE = Path(__file__).parents[3] / "docs" / "callback.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
MOST_LINES = 10

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("code", EXAMPLES, ids=["SFTTrainer", "Trainer"])
def test_an_example_runs_as_it_stands(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chat_lines: Callable[[int], bytes],
) -> None:
    assert len([line for line in code.splitlines() if line]) <= MOST_LINES
    # a folder of the model's name in the working directory comes before the hub
    build_tiny_model(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    (tmp_path / "train.jsonl").write_bytes(chat_lines(8))
    # of unequal length: a batch of one needs no padding
    (tmp_path / "train.txt").write_text("\n".join("more " * n + "text" for n in range(1, 5)))
    monkeypatch.chdir(tmp_path)
    chosen: list[Any] = []
    begin = GreenTrainerCallback.on_train_end

    def watch(self: GreenTrainerCallback, *given: Any, **named: Any) -> None:
        chosen.extend(self.selections)
        begin(self, *given, **named)

    monkeypatch.setattr(GreenTrainerCallback, "on_train_end", watch)
    exec(compile(code, str(PAGE), "exec"), {})
    assert chosen
    assert all(0 < selection.rho_planned <= 0.5 for selection in chosen)
