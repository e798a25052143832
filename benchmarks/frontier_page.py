"""docs/frontier.md from the runs that are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.budget_run import CHECKPOINTS
from benchmarks.contenders import EFFICIENT, FULL, MAIN, RATE_FACTORS, SIDE, Contender
from benchmarks.frontier_plan import MOST_RATES, RATE_STEP, Cache, Job, Settings, sweep_of
from benchmarks.measure import mean_text, table, write_page
from benchmarks.plot import line_plot

OURS: Final = ("green", "green_lora")
MISSING: Final = "missing"
#: as many processes on the machine beside our own threads make seconds doubtful
_SPARE_LOAD: Final = 1.0

Row = Mapping[str, Any]
#: label, budget -> one row a seed
Cells = Mapping[tuple[str, float], Sequence[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that is known of one data set."""

    cache: Cache
    contenders: tuple[Contender, ...]
    budgets: tuple[float, ...]
    cells: Cells
    #: label, budget of the sweep -> its best rate
    rates: Mapping[tuple[str, float], float]
    sweep_budgets: Sequence[float]

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.cells.values() for row in rows]

    def loss(self, label: str, budget: float) -> float | None:
        rows = self.cells.get((label, budget), ())
        return statistics.mean(row["validation_loss"] for row in rows) if rows else None

    def settled(self, label: str, budget: float) -> float | None:
        """Of the budgets up to this one, that whose runs ended lowest; None without runs."""
        losses = {b: self.loss(label, b) for b in self.budgets if b <= budget}
        known = {b: loss for b, loss in losses.items() if loss is not None}
        return min(known, key=lambda b: known[b], default=None)

    def spread(self, label: str, budget: float) -> float | None:
        """Standard deviation over the seeds; None of fewer than two."""
        losses = [row["validation_loss"] for row in self.cells.get((label, budget), ())]
        return statistics.stdev(losses) if len(losses) > 1 else None


def write_frontier(runs: Path, out: Path, *, sweep_budgets: Sequence[float]) -> None:
    """``out`` and, beside it, one plot for each data set under ``runs``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for file in sorted(runs.glob("*/settings.json")):
        cache = Cache(file.parent, Settings(**json.loads(file.read_text())))
        parts += data_set(cache, out, sweep_budgets=sweep_budgets)
    lines = ["# Quality for a budget", method(sweep_budgets), *(parts or ["No runs yet."])]
    write_page(out, "\n\n".join(lines))


def data_set(cache: Cache, out: Path, *, sweep_budgets: Sequence[float]) -> list[str]:
    """Paragraphs for the page ``out``, beside which the plot is written; none without runs."""
    found = _found(cache, sweep_budgets)
    if not found.rows:
        return []
    links = []
    for key, label in _PLOTTED.items():
        if key == _JOULES and cache.settings.paced_by:
            continue  # another machine's than the seconds
        plot = out.with_name(
            f"{out.stem}-{cache.settings.data}-{cache.folder.name[:4]}-{label.split()[0]}.svg"
        )
        plot.write_text(_plot(found, key, label), encoding="utf-8")
        links.append(f"![Validation loss against {label}]({plot.name})")
    return _data_set(found, links)


def _found(cache: Cache, sweep_budgets: Sequence[float]) -> Found:
    """The cells are the runs at each contender's best rate: a sweep's losers are no cells."""
    cells: dict[tuple[str, float], list[Row]] = {}
    rates: dict[tuple[str, float], float] = {}
    everything = [json.loads(p.read_text()) for p in sorted(cache.folder.glob("*-seed*.json"))]
    contenders = (*MAIN, EFFICIENT, *SIDE)
    for contender in contenders:
        for budget in sweep_budgets:
            rate = cache.best_rate(contender, budget, sweep_budgets)
            if rate is not None:
                rates[contender.label, budget] = rate
        for row in everything:
            sweep = sweep_of(row["budget"], sweep_budgets)
            if row["label"] == contender.label and row["rate"] == rates.get((row["label"], sweep)):
                timed = {**row, "seconds": row["paced_s"]} if cache.settings.paced_by else row
                cells.setdefault((contender.label, row["budget"]), []).append(timed)
    present = tuple(c for c in contenders if cache.found(Job(contender=c)) is not None)
    budgets = tuple(sorted({budget for _, budget in cells}))
    return Found(
        cache=cache,
        contenders=present,
        budgets=budgets,
        cells=cells,
        rates=rates,
        sweep_budgets=sweep_budgets,
    )


def method(sweep_budgets: Sequence[float]) -> str:
    sweeps = ", ".join(f"{budget:g}" for budget in sweep_budgets)
    points = ", ".join(f"{share:.0%}" for share in CHECKPOINTS)
    factors = ", ".join(f"{factor:g}" for factor in RATE_FACTORS)
    return (
        "`python benchmarks/frontier.py`. Budget 1 is the time that full fine-tuning takes for the "
        "reference steps; every contender trains on the same batches for as many steps as its own "
        "measured pace allows within its budget, its linear schedule ends there. Peak rates: the "
        f"best of {factors} times greentune's rule for the method (and on by factors of "
        f"{RATE_STEP:g} where the best is at an edge, up to {MOST_RATES} rates), by validation "
        f"loss, seed 0, at the last of these budgets that is not beyond the one in question: "
        f"{sweeps}. "
        f"Early stopping for all: validated after {points} of the steps, the best weights kept and "
        "judged, the whole run counted. Nobody must spend all that it may: a verdict takes each "
        "contender's best budget up to the one in question, by mean validation loss. "
        "Loss: float32, the same held-out examples for all. Seconds "
        "and joules are of training with its selections; loading, validation and questions are "
        "outside. Peak memory is the whole process's while it trains. Joules by greentune's meter, "
        "of this process's share of the machine; FLOPs by its prices, selection included; "
        "`trainer` is Hugging Face's Trainer (bf16 autocast where the processor has it, fused "
        "AdamW), the others are greentune's. The best of several contenders flatters both sides of "
        "a verdict alike. Spread: standard deviation of the difference of two runs, over seeds."
    )


def _data_set(found: Found, plots: Sequence[str]) -> list[str]:
    settings = found.cache.settings
    first = next((r for r in found.rows if r["first_validation_loss"] is not None), None)
    before = "" if first is None else f" Before training: {first['first_validation_loss']:.3f}."
    versions = found.rows[0]
    reference_s = found.cache.budget_s(1.0)
    reference = "" if reference_s is None else f" (budget 1: {reference_s:.0f} s)"
    intro = (
        f"{settings.model}, {versions['n_train']} training examples, reference "
        f"{settings.reference_steps} steps of {settings.batch_size}{reference}, "
        f"{settings.n_validation} held-out examples for loss, {settings.n_questions} for ROUGE-L. "
        f"{_paced_by(settings)}{settings.machine}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}."
        f"{before}"
    )
    return [
        f"## {settings.data}",
        intro,
        _noise(found),
        *plots,
        "### Verdicts",
        _verdicts(found),
        _full_quality(found),
        "### Validation loss",
        _grid(found, "validation_loss", ".3f"),
        *(["### ROUGE-L", _grid(found, "rougeL", ".1f")] if settings.n_questions else []),
        "### What was spent",
        _costs(found),
        "### Pace and rates",
        _paces(found),
    ]


def _paced_by(settings: Settings) -> str:
    if not settings.paced_by:
        return ""
    return (
        f"Seconds are those of {settings.paced_by}: steps times the pace measured there, and one "
        "selection. CPU seconds, joules and memory are of the machine that trained, where several "
        "runs went side by side: "
    )


def _noise(found: Found) -> str:
    loads = [load for row in found.rows for load in row["load"] if load is not None]
    n_seeds = max(len(rows) for rows in found.cells.values())
    text = (
        "Cells are means ± standard deviation over seeds."
        if n_seeds > 1
        else "One seed: the noise between seeds is not known, small differences mean nothing."
    )
    if not found.cache.settings.paced_by and any(
        load is not None and load > row["wanted_cores"] + _SPARE_LOAD
        for row in found.rows
        for load in row["load"]
    ):
        text += (
            f" The machine did other work (load up to {max(loads):.1f}): "
            "its seconds say nothing, and budgets in seconds little."
        )
    return text


def _verdicts(found: Found) -> str:
    rows = []
    for budget in found.budgets:
        ours = _best(found, budget, is_ours=True)
        other = _best(found, budget, is_ours=False)
        if ours is None or other is None:
            labels = [MISSING if each is None else each[0] for each in (ours, other)]
            rows.append([f"{budget:g}", labels[0], "", labels[1], "", "", "", ""])
            continue
        difference = _loss(found, *ours) - _loss(found, *other)
        spread = _joint_spread(found, ours, other)
        rows.append(
            [
                f"{budget:g}",
                ours[0],
                _loss_text(found, *ours),
                other[0],
                _loss_text(found, *other),
                f"{difference:+.3f}",
                "one seed" if spread is None else f"{spread:.3f}",
                _winner(difference, spread),
            ]
        )
    head = ("budget", "best green", "loss", "best alternative", "loss", "difference", "spread")
    return table((*head, "wins"), rows)


def _winner(difference: float, spread: float | None) -> str:
    name = "green" if difference <= 0 else "alternative"
    return name if spread is None or abs(difference) > spread else f"{name}, within the spread"


def _joint_spread(found: Found, *cells: tuple[str, float]) -> float | None:
    """Standard deviation of a difference of two runs."""
    spreads = [found.spread(label, budget) for label, budget in cells]
    if any(spread is None for spread in spreads):
        return None
    return float(sum((spread or 0.0) ** 2 for spread in spreads) ** 0.5)


def _best(found: Found, budget: float, *, is_ours: bool) -> tuple[str, float] | None:
    """The label of the lowest mean loss within ``budget``, and the budget that it took."""
    cells = [
        (c.label, settled)
        for c in found.contenders
        if (c.method in OURS) == is_ours and (settled := found.settled(c.label, budget)) is not None
    ]
    return min(cells, key=lambda cell: _loss(found, *cell), default=None)


def _loss(found: Found, label: str, budget: float) -> float:
    loss = found.loss(label, budget)
    assert loss is not None, (label, budget)
    return loss


def _loss_text(found: Found, label: str, budget: float) -> str:
    """With the seconds that were really spent: paces are measured before, and machines vary."""
    seconds = mean_text(found.cells[label, budget], "seconds", ".1f")
    return f"{_loss(found, label, budget):.3f} in {seconds} s"


def _full_quality(found: Found) -> str:
    """At what budget green is as good as full ever was."""
    full = {b: loss for b in found.budgets if (loss := found.loss(FULL.label, b)) is not None}
    if not full:
        return "Full fine-tuning's best quality: missing."
    at = min(full, key=lambda budget: full[budget])
    ours = {b: cell for b in found.budgets if (cell := _best(found, b, is_ours=True))}
    reached = next((b for b, cell in ours.items() if _loss(found, *cell) <= full[at]), None)
    lead = f"Full fine-tuning is best at budget {at:g}, {full[at]:.3f}; green "
    if reached is None:
        return f"{lead}does not reach that at any budget here."
    return f"{lead}reaches that at budget {reached:g} ({ours[reached][0]})."


def _grid(found: Found, key: str, form: str) -> str:
    rows = []
    for contender in found.contenders:
        lowest = found.cache.rho_min(contender)
        if lowest is not None:
            cells = [f"not feasible, lowest rho {lowest:.3f}", *[""] * (len(found.budgets) - 1)]
        else:
            cells = [
                mean_text(found.cells.get((contender.label, budget), ()), key, form) or MISSING
                for budget in found.budgets
            ]
        rows.append([contender.label, *cells])
    return table(("method", *(f"{budget:g}" for budget in found.budgets)), rows)


def _costs(found: Found) -> str:
    head = ("method", "budget", "seeds", "steps", "PFLOPs", "share of full's", "selection's part")
    rows = []
    for contender in found.contenders:
        for budget in found.budgets:
            cell = [_derived(row) for row in found.cells.get((contender.label, budget), ())]
            if cell:
                texts = [mean_text(cell, key, form) for key, form in _COLUMNS.items()]
                rows.append([contender.label, f"{budget:g}", str(len(cell)), *texts])
    return table((*head, "seconds", "CPU seconds", "joules", "peak GB"), rows)


_COLUMNS: Final = {
    "n_steps": ".0f",
    "pflops": ".4g",
    "flops_share": ".3f",
    "selection_share": ".4f",
    "seconds": ".1f",
    "cpu_s": ".1f",
    "energy_j": ".0f",
    "peak_gb": ".2f",
}


def _derived(row: Row) -> dict[str, Any]:
    return {
        **row,
        "pflops": row["flops"] / 1e15,
        "flops_share": row["flops"] / row["full_flops"],
        "selection_share": row["selection_flops"] / row["flops"],
        "peak_gb": row["peak_bytes"] / 1e9,
    }


def _paces(found: Found) -> str:
    rows = []
    full = found.cache.pace(FULL)
    for contender in found.contenders:
        pace = found.cache.pace(contender)
        if pace is None or full is None:
            continue
        rows.append(
            [
                contender.label,
                f"{pace.step_s:.3f}",
                f"{pace.step_s / full.step_s:.3f}",
                f"{pace.selection_s:.2f}",
                *(_rate(found, contender, budget) for budget in found.sweep_budgets),
            ]
        )
    meters = sorted({kind for row in found.rows for kind in row["joules"]})
    precisions = sorted({row["precision"] for row in found.rows})
    note = f"Joules by: {', '.join(meters) or 'no source'}. Precision: {', '.join(precisions)}."
    best = (f"best rate at {budget:g}" for budget in found.sweep_budgets)
    head = ("method", "s/step", "to full", "s/selection", *best)
    return f"{table(head, rows)}\n\n{note}"


def _rate(found: Found, contender: Contender, sweep_budget: float) -> str:
    rate = found.rates.get((contender.label, sweep_budget))
    if rate is None:
        return MISSING
    tried = [job.rate for job in found.cache.sweep(contender, sweep_budget)]
    return f"{rate:.2g}{' (the edge of its sweep)' * (rate in (tried[0], tried[-1]))}"


_JOULES: Final = "energy_j"
_PLOTTED: Final = {"seconds": "seconds of training", _JOULES: "joules of training"}


def _plot(found: Found, key: str, label: str) -> str:
    series = {
        contender.label: [
            (
                statistics.mean(row[key] for row in rows),
                statistics.mean(row["validation_loss"] for row in rows),
            )
            for budget in found.budgets
            if (rows := found.cells.get((contender.label, budget), ()))
        ]
        for contender in found.contenders
    }
    return line_plot(series, x_label=label, y_label="validation loss")
