"""docs/results.md from what `paper_tables` measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paper_flops import (  # beside this file
    ABLATION,
    FULL,
    GREEN,
    MAIN,
    PAPER,
    PAPER_ANSWER_TOKENS,
    PAPER_STEPS,
    PAPER_TOKENS,
    Contender,
)

from benchmarks.measure import mean_text, table

ROUGES: Final = ("rouge1", "rouge2", "rougeL")
#: SciTLDR, OPT-2.7B: R1/R2/RL of full, last 2, prefix, LoRA, green .5, green .7
PAPER_ROUGE: Final = {
    "full": "32.9/14.9/27.1",
    "last 2 blocks": "9.1/4.0/7.6",
    "prefix": "7.6/0.4/6.1",
    "lora": "28.2/12.1/21.0",
    "green 0.5": "30.5/13.1/25.2",
    "green 0.7": "33.1/15.2/27.6",
}


def page(
    arguments: argparse.Namespace,
    flops: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, Mapping[str, float]],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, float] | None,
) -> str:
    """
    Args:
        flops, sizes: as `paper_flops` measures them.
        runs: contender's label -> what its runs gave, one a seed.
        before: the base model's loss and scores; None: not run.
    """
    return "\n\n".join(
        [
            "# Results",
            (
                "`python benchmarks/paper_tables.py`; FLOPs as torch's counter measured them (one "
                f"multiply-add is two), torch {torch.__version__}, transformers "
                f"{transformers.__version__}."
            ),
            *_flops_part(flops, sizes),
            *_quality_part(arguments, runs, before),
            "",
        ]
    )


def _flops_part(
    flops: Mapping[str, Mapping[str, float]], sizes: Mapping[str, Mapping[str, float]]
) -> list[str]:
    rows = []
    for name, contenders in PAPER.items():
        own = flops[name]
        for contender, paper in contenders.items():
            measured = own[contender.label] / 1e15
            full = own[FULL.label] / 1e15
            rows.append(
                (name, contender.label, f"{measured:.1f}", f"{measured / full:.3f}",
                 f"{paper:.1f}", f"{paper / contenders[FULL]:.3f}")
            )  # fmt: skip
    by_size = [
        (name, f"{s['parameters'] / 1e6:,.0f} M", f"{s['full'] / 1e12:.2f}",
         f"{s['forward_share']:.3f}", f"{s['rho_min']:.3f}", f"{s['green_share']:.4f}")
        for name, s in sizes.items()
    ]  # fmt: skip
    return [
        "## The paper's main table: FLOPs",
        (
            f"SciTLDR: {PAPER_STEPS:,} steps of 4 samples padded to {PAPER_TOKENS} tokens (answers "
            f"of {PAPER_ANSWER_TOKENS} for FLAN-T5). Ours: PFLOPs of one step measured on the meta "
            "device, times steps; selection by seeded random importance, since no weights are at "
            "hand; its own FLOPs are not in this table. Paper: its PFLOPs doubled, from its own "
            "estimates. Its figures for the last 2 layers of OPT and BLOOMZ are near what those "
            "cost with the tied embedding trained too (0.712 and 0.762 by our profile): its lookup "
            "lies below every block."
        ),
        table(("model", "method", "PFLOPs measured", "share", "paper", "share"), rows),
        "## Model sizes",
        "One step of 4 samples of 512 tokens. Lowest rho: forward pass and the cheapest tensor.",
        table(
            ("model", "parameters", "TFLOPs, full", "forward", "lowest rho", "green .5 measured"),
            by_size,
        ),
    ]


def _quality_part(
    arguments: argparse.Namespace,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, float] | None,
) -> list[str]:
    first = next((one for each in runs.values() for one in each if "flops" in one), None)
    if first is None or before is None:
        return ["## Quality", "No runs yet."]
    speeds = {} if arguments.speeds is None else json.loads(arguments.speeds.read_text())
    scores = "/".join(f"{before[name]:.1f}" for name in ROUGES)
    intro = (
        f"{Path(arguments.model).name} on {arguments.data.name if arguments.data else 'data'}, "
        f"{arguments.steps} steps of {arguments.batch_size}, every method at its own default rate, "
        f"{arguments.validation} held-out examples for loss and {arguments.questions} for ROUGE "
        f"(greedy). Before training: loss {before['validation_loss']:.3f}, ROUGE {scores}. "
        "Mean ± standard deviation over the seeds; FLOPs share to full fine-tuning of the same "
        f"steps, selection included; s/step: {_seconds_of(first)}. Machine: "
        f"{first['machine']}, torch {first['torch']}, transformers {first['transformers']}."
    )
    return [
        "## Quality",
        intro,
        _runs_table(MAIN, runs, speeds, paper=PAPER_ROUGE),
        "### Rho",
        _runs_table((FULL, *GREEN), runs, speeds),
        "### What tensors are ranked by",
        _runs_table(ABLATION, runs, speeds),
    ]


def _seconds_of(run: Mapping[str, Any]) -> str:
    if run["jobs"] > 1:
        return "of a step that had the card for itself (`gpu.py`)"
    return "median CPU seconds of a step"


def _runs_table(
    contenders: Sequence[Contender],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    speeds: Mapping[str, float],
    *,
    paper: Mapping[str, str] | None = None,
) -> str:
    head = ["method", "seeds", "FLOPs share", "of it selection", "s/step", "peak GB"]
    head += ["validation loss", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    if paper is not None:
        head.append("paper, OPT-2.7B on SciTLDR")
    rows = []
    for contender in contenders:
        found = runs[contender.label]
        if not found:
            continue
        if "rho_min" in found[0]:
            row = [contender.label, f"not feasible here, lowest {found[0]['rho_min']:.3f}"]
            rows.append(row + [""] * (len(head) - 2))
            continue
        row = [contender.label, str(len(found))]
        row += [
            mean_text(found, "flops_share", ".3f"),
            mean_text(found, "selection_share", ".4f"),
            _seconds_text(contender, found, speeds),
            mean_text([{"gb": each["peak_bytes"] / 1e9} for each in found], "gb", ".2f"),
            mean_text(found, "validation_loss", ".3f"),
            *(mean_text(found, name, ".1f") for name in ROUGES),
        ]
        rows.append(row if paper is None else [*row, paper.get(contender.label, "")])
    absent = ", ".join(c.label for c in contenders if not runs[c.label])
    return table(head, rows) + (f"\n\nNo runs yet: {absent}." if absent else "")


def _seconds_text(
    contender: Contender, found: Sequence[Mapping[str, Any]], speeds: Mapping[str, float]
) -> str:
    """Runs side by side say nothing of what a step takes."""
    if any(run["jobs"] > 1 for run in found):
        return f"{speeds[contender.label]:.3f}" if contender.label in speeds else ""
    return mean_text([run for run in found if run["step_s"] is not None], "step_s", ".3f")
