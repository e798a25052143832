"""``greentune submit``: a data set and a job's options, by the names that `greentune run` has.

What is not said is not sent, so that the server's defaults count. What is wrong the server says, of
its fields, which are told as the options that set them; here only texts are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from api.edge import err, server
from api.estimate_table import MOMENT, moment_of
from api.watch import follow_to_the_end
from core.data.tables import refuse_tables
from core.data.task_options import parse_metrics, parse_task
from core.errors import InvalidInput
from core.moments import LONGEST_SAID
from core.option_names import in_words_of_options
from core.settings import DEMO_MODEL
from core.spec import MAX_HOLD_S, METHODS
from core.training_options import RATE_MIN
from core.units import SECONDS_PER_HOUR


@in_words_of_options()
def submit(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="JSONL; with --task also CSV or Parquet."),
    ],
    *,
    model: Annotated[str, typer.Option(help="Base model or a fine-tuned one.")] = DEMO_MODEL,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Held-out examples.")
    ] = None,
    rho: Annotated[
        str | None,
        typer.Option(
            help="Share of full FLOPs, auto or efficient; default: auto with a zone, else 0.7."
        ),
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="What rho is a share of: flops (default), seconds or joules.")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Grid zone, such as FR; default: the server's.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(METHODS)}; default green.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="last_k: blocks; default: as rho allows.")] = None,
    lora_r: Annotated[int | None, typer.Option(help="lora, green_lora: rank; default 8.")] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="lora, green_lora: scale; default 32.")
    ] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="lora, green_lora; default 0.")] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="lora: default (PEFT's table for the model) or all-linear."),
    ] = None,
    virtual_tokens: Annotated[int | None, typer.Option(help="prefix: length; default 20.")] = None,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--no-merge", help="lora, green_lora: a plain model instead of the adapter."
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            help="green, green_lora: what tensors are ranked by: importance (default), taylor, "
            "random, magnitude or fisher."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=50, help="Default: 1 from 200 examples on, 2 below."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=256, help="Default 4.")] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Batches to an optimiser step; default 1.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=RATE_MIN, help="Default by method, rho and model.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    max_input_tokens: Annotated[
        int | None, typer.Option(help="Of a prompt; the oldest are cut.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="Of an answer; the last are cut.")
    ] = None,
    selection_interval: Annotated[
        float | None, typer.Option(help="Epochs between selections; default: chosen with them.")
    ] = None,
    checkpoint_every_s: Annotated[float | None, typer.Option(help="Seconds; default 600.")] = None,
    prefix_reuse: Annotated[
        str | None,
        typer.Option(help="Store hidden states below what is trained: auto (default), on or off."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 (autocast), or auto (default): bf16 where the processor has it."
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, more FLOPs: blocks run again in the backward pass.",
        ),
    ] = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Run blocks as compiled code: off (default), auto (where it pays) or on.",
        ),
    ] = None,
    early_stopping_patience: Annotated[
        int | None,
        typer.Option(
            help="End after so many epochs without a lower validation loss; keep the best."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of order, dropout and selection; default: drawn.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Whose tables the files are: scitldr, dialogsum, webquestions or piqa."),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="The task's fields in the file: src=document,summary=gold.")
    ] = "",
    eval_metrics: Annotated[
        str | None, typer.Option(help="Ask before and after; such as rougeL,f1.")
    ] = None,
    eval_examples: Annotated[
        int | None, typer.Option(help="Ask so many held-out examples; default 100.")
    ] = None,
    eval_decoding: Annotated[
        str | None, typer.Option(help="greedy (default), or beam as in the paper.")
    ] = None,
    eval_new_tokens: Annotated[
        int | None, typer.Option(help="Of an answer at most; default: the task's, or 64.")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the tuned model's name.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="now (default), or green: waits, pauses.")
    ] = None,
    earliest_start: Annotated[str | None, typer.Option(help=MOMENT)] = None,
    deadline: Annotated[str | None, typer.Option(help=MOMENT)] = None,
    max_hold: Annotated[
        float | None, typer.Option(help="Of --schedule green: hours of waiting at most.")
    ] = None,
    carbon_budget: Annotated[float | None, typer.Option(help="Grams of CO2e of the job.")] = None,
    energy_budget: Annotated[float | None, typer.Option(help="Wh of the job.")] = None,
    on_budget: Annotated[
        str | None, typer.Option(help="Of a budget: pause (default), stop_and_save or fail.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job.")] = False,
) -> None:
    """Upload a data set and start a job; prints the job's id.

    Where the job is refused, what was uploaded is removed again.
    """
    now = datetime.now(UTC)
    asked_task = parse_task(task, columns)
    if asked_task is None:
        refuse_tables(file, validation)
    green = _given(
        schedule=schedule,
        earliest_start=moment_of("--earliest-start", earliest_start, now),
        deadline=moment_of("--deadline", deadline, now),
        max_hold_s=_hold_s(max_hold),
        carbon_budget_g=carbon_budget,
        energy_budget_wh=energy_budget,
        on_budget=on_budget,
        rho=_share(rho),
        currency=currency,
        zone=zone,
        method=method,
        importance=importance,
        options=_given(
            k=k,
            r=lora_r,
            alpha=lora_alpha,
            dropout=lora_dropout,
            target_modules=lora_targets,
            n_virtual_tokens=virtual_tokens,
            merge=merge,
        ),
        training=_given(
            gradient_accumulation=accumulation,
            learning_rate=learning_rate,
            max_steps=max_steps,
            max_input_tokens=max_input_tokens,
            max_output_tokens=max_output_tokens,
            selection_interval=selection_interval,
            checkpoint_every_s=checkpoint_every_s,
            prefix_reuse=prefix_reuse,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile_,
            early_stopping_patience=early_stopping_patience,
        ),
        task=None if asked_task is None else asdict(asked_task),
        eval=_given(
            metrics=None if eval_metrics is None else parse_metrics(eval_metrics),
            max_examples=eval_examples,
            decoding=eval_decoding,
            max_new_tokens=eval_new_tokens,
        ),
    )
    hyperparameters = _given(n_epochs=epochs, batch_size=batch_size)
    wanted = {
        "model": model,
        "suffix": suffix,
        "seed": seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "green": green,
    }
    _start(wanted, file, validation, follow=follow)


def _start(wanted: Mapping[str, Any], file: Path, validation: Path | None, *, follow: bool) -> None:
    """Upload the files and create the job, all or nothing; print its id."""
    paths = [path for path in (file, validation) if path is not None]
    has_task = "task" in (wanted["green"] or {})
    with server() as client:
        with client.uploaded(paths, has_task=has_task) as files:
            ids = [uploaded["id"] for uploaded in files]
            names = dict(zip(("training_file", "validation_file"), ids, strict=False))
            job = client.post("/v1/fine_tuning/jobs", {**wanted, **names})
        print(job["id"], flush=True)
        if follow:
            follow_to_the_end(client, job["id"], err)


def _given(**options: Any) -> dict[str, Any] | None:
    """What was said; None where nothing was: an empty ``eval`` would ask by the defaults."""
    said = {name: value for name, value in options.items() if value is not None}
    return said or None


def _hold_s(hours: float | None) -> float | None:
    """Raises InvalidInput beyond what the server takes, which would speak of seconds."""
    if hours is None:
        return None
    longest = MAX_HOLD_S / SECONDS_PER_HOUR
    if not 0 < hours <= longest:
        raise InvalidInput(
            f"--max-hold must be a number of hours above 0 and at most {longest:.0f} "
            f"({LONGEST_SAID}); got {hours:g}."
        )
    return hours * SECONDS_PER_HOUR


def _share(text: str | None) -> float | str | None:
    """Raises InvalidInput for other words than rho has."""
    if text in (None, "auto", "efficient"):
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f'--rho must be a number, "auto" or "efficient"; got {text!r}.'
        ) from None
