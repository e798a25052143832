"""A depth that changes from step to step: what that does to whole runs.

    python benchmarks/changing_depth.py --data FOLDER [--steps 250] [--seeds 0] [--only LABEL ...]

FOLDER holds train.jsonl and validation.jsonl; the first 200 held-out examples are judged in
float32. Every block is trained, the lower ones in some of the steps only: the backward pass of a
step goes down so many blocks and stops. Whole tensors, no importance; a tensor that gets no
gradient in a step is not moved in it and keeps Adam's moments. Depths are either two in turn, the
top blocks alone and everything (*two*), or all alike often, and everything now and then (*all*).
How often everything is trained follows from the share of FLOPs that the mean step is to cost.

Not in the product: docs/learning.md says why.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.budget_run import Task, prepared_for
from benchmarks.contenders import FULL
from benchmarks.whole_runs import print_runs
from core.training.blocks import blocks_from_the_loss
from core.training.costs import FlopsProfile
from core.training.evaluate import evaluate
from core.training.hooks import Hook, SelectionRecord, StepRecord
from core.training.step import LossStep, needs_mask
from worker.prepare import train


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``rho``: share of full fine-tuning's FLOPs that the mean step costs; ``top``: the fewest
    blocks that a step trains; ``is_all``: and all numbers above it, or everything only.
    """

    label: str
    rate: float
    rho: float = 1.0
    top: int = 1
    is_all: bool = False


LINES = (
    Line(label="full", rate=1e-4),
    Line(label="two, 4 blocks", rate=1.4e-4, rho=0.7, top=4),
    Line(label="two, 4 blocks, 2e-4", rate=2e-4, rho=0.7, top=4),
    Line(label="two, 8 blocks", rate=1.4e-4, rho=0.7, top=8),
    Line(label="all", rate=1.4e-4, rho=0.7, is_all=True),
)


def depths(profile: FlopsProfile) -> list[frozenset[str]]:
    """Tensors of steps that go down 1, 2, ... blocks, nearest the loss first, and of one that goes
    down to the embeddings. What lies above every block, a last norm, belongs to all of them.
    """
    blocks = blocks_from_the_loss(profile)
    in_blocks = {name for block in blocks for name in block}
    shallowest = min(profile.step_flops((name,)) for block in blocks[:1] for name in block)
    above = {
        name
        for name in profile.trainable
        if name not in in_blocks and profile.step_flops((name,)) <= shallowest
    }
    found, reached = [], set(above)
    for block in blocks:
        reached |= set(block)
        found.append(frozenset(reached))
    return [*found, frozenset(profile.trainable)]


def odds(line: Line, shares: Sequence[float]) -> list[float]:
    """Of each depth, so that the mean of their ``shares`` of FLOPs is the line's."""
    last = len(shares) - 1
    others = range(line.top - 1, last) if line.is_all else [line.top - 1]
    mean = math.fsum(shares[place] for place in others) / len(others)
    deep = 1.0 if line.rho >= 1 else (line.rho - mean) / (1 - mean)
    if not 0 <= deep <= 1:
        raise ValueError(f"{line.label}: rho {line.rho:g} is below {mean:.3f}, its cheapest mean")
    found = [0.0] * len(shares)
    for place in others:
        found[place] = (1 - deep) / len(others)
    found[last] = deep
    return found


class ChangingDepth(Hook):
    """Sets the flags of each step's tensors when the one before is done."""

    def __init__(self, model: Any, sets: Sequence[frozenset[str]], odds_: Sequence[float]) -> None:
        self._parameters = dict(model.named_parameters())
        self._sets, self._odds = sets, odds_
        #: place in ``sets`` of each step so far
        self.places: list[int] = []

    def on_selection(self, record: SelectionRecord) -> None:  # noqa: ARG002  the phase's signature
        self._set_next()

    def on_step(self, record: StepRecord) -> None:  # noqa: ARG002  the phase's signature
        self._set_next()

    def _set_next(self) -> None:
        place = self._place(_bits_reversed(len(self.places) + 1))
        self.places.append(place)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in self._sets[place])

    def _place(self, at: float) -> int:
        for place, share in enumerate(self._odds):
            at -= share
            if at < 0:
                return place
        return len(self._odds) - 1


def _bits_reversed(number: int) -> float:
    """Of 0..1, evenly spread however few there are (van der Corput)."""
    digits = f"{number:b}"
    return int(digits[::-1], 2) / float(1 << len(digits))


def measured(task: Task, line: Line, n_steps: int, seed: int) -> tuple[float, float, float]:
    """As `whole_runs.Measure`."""
    prepared = prepared_for(task, FULL, n_steps=n_steps, rate=line.rate, seed=seed)
    model, profile = prepared.loaded.model, prepared.profile
    sets = depths(profile)
    shares = [profile.step_flops(each) / profile.full_flops for each in sets]
    changing = ChangingDepth(model, sets, odds(line, shares))
    bare = dataclasses.replace(prepared, validation_data=None)
    started_s = time.process_time()
    train(bare, rho=lambda _step: 1.0, hooks=[changing])
    spent_s = time.process_time() - started_s
    judge = LossStep(model, keeps_mask=needs_mask(model))
    loss = evaluate(judge, map(judge.inputs, prepared.validation_batches())).loss
    share = math.fsum(shares[place] for place in changing.places[:n_steps]) / n_steps
    return share, loss, spent_s


if __name__ == "__main__":
    sys.exit(print_runs(__doc__ or "", LINES, measured))
