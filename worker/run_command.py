"""`greentune run`: its options, made a `core.spec.JobSpec`.

Imports of what trains live in the command, as `worker.__main__` says; a wrong option is refused
before they are paid for.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from core.data.tables import refuse_other_kinds, refuse_tables
from core.data.task_options import parse_metrics, parse_task
from core.data.tasks import task_named
from core.errors import InvalidInput, MissingParameter
from core.ignored_options import refuse_ignored
from core.option_names import in_words_of_options
from core.settings import DEMO_MODEL, read_settings
from core.spec import (
    METHODS,
    EvalOptions,
    GreenOptions,
    JobSpec,
    MethodOptions,
    TaskOptions,
    rho_unasked,
)
from core.training_options import RATE_MIN, TrainingOptions

# ruff: noqa: PLC0415  see above

#: `run` ended at a checkpoint because it was told to; as a shell says of SIGINT
EXIT_PAUSED: Final = 130


@in_words_of_options()
def run(
    train: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="JSONL; with --task also CSV or Parquet, or none."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="The result's folder.")],
    model: Annotated[str, typer.Option(help="Id on the hub, or folder.")] = DEMO_MODEL,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Held-out examples.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(METHODS)}; default green.")
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
        bool, typer.Option(help="lora, green_lora: a plain model instead of the adapter.")
    ] = False,
    importance: Annotated[
        str | None,
        typer.Option(
            help="green, green_lora: what tensors are ranked by: importance (default), taylor, "
            "random, magnitude or fisher."
        ),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Grid zone, such as FR; default: GREENTUNE_ZONE.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Default: 1 from 200 examples on, 2 below.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 4.")] = None,
    accumulation: Annotated[int, typer.Option(help="Batches to an optimiser step.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(min=RATE_MIN, help="Default by method, rho and model.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    max_input_tokens: Annotated[
        int | None, typer.Option(help="Of a prompt; the oldest are cut.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="Of an answer; the last are cut.")
    ] = None,
    selection_interval: Annotated[
        float | None, typer.Option(help="Epochs between selections; default: chosen with them.")
    ] = None,
    checkpoint_every_s: Annotated[float, typer.Option(help="Seconds.")] = 600.0,
    prefix_reuse: Annotated[
        str, typer.Option(help="Store hidden states below what is trained: auto, on or off.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 (autocast), or auto: bf16 where the processor has it.")
    ] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Less memory, more FLOPs: blocks run again in the backward pass.")
    ] = False,
    compile_: Annotated[
        str,
        typer.Option(
            "--compile", help="Run blocks as compiled code: off, auto (where it pays) or on."
        ),
    ] = "off",
    early_stopping_patience: Annotated[
        int | None,
        typer.Option(
            help="End after so many epochs without a lower validation loss; keep the best."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order, dropout and selection.")] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            help="Whose tables the files are: scitldr, dialogsum, webquestions or piqa; with no "
            "file, its data from the hub."
        ),
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
) -> None:
    """Fine-tune with no server: model, metrics, answers and emissions report into a folder.

    The same command again goes on where it was stopped.
    """
    settings = read_settings()
    share = None if rho is None else _number_or_word(rho)
    options = _given(
        k=k,
        r=lora_r,
        alpha=lora_alpha,
        dropout=lora_dropout,
        target_modules=lora_targets,
        n_virtual_tokens=virtual_tokens,
        merge=merge or None,
    )
    named = _given(method=method, rho=share, currency=currency, importance=importance, zone=zone)
    green = GreenOptions(options=MethodOptions(**options), **named)
    if rho is None and green.follows_rho:
        green = replace(green, rho=rho_unasked(zone or settings.zone))
    training = TrainingOptions(
        n_epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        learning_rate=learning_rate,
        max_steps=max_steps,
        max_input_tokens=max_input_tokens,
        max_output_tokens=max_output_tokens,
        selection_interval=selection_interval,
        checkpoint_every_s=checkpoint_every_s,
        prefix_reuse=prefix_reuse,  # type: ignore[arg-type]  checked by TrainingOptions
        precision=precision,  # type: ignore[arg-type]  checked by TrainingOptions
        gradient_checkpointing=gradient_checkpointing,
        compile=compile_,  # type: ignore[arg-type]  checked by TrainingOptions
        early_stopping_patience=early_stopping_patience,
    )
    said = {"selection_interval": selection_interval, "prefix_reuse": prefix_reuse}
    refuse_ignored(green, {**named, "options": options, "training": said})
    exam = _given(
        metrics=None if eval_metrics is None else parse_metrics(eval_metrics),
        max_examples=eval_examples,
        decoding=eval_decoding,
        max_new_tokens=eval_new_tokens,
    )
    questions = EvalOptions(**exam) if exam else None
    known = _known_task(task, columns)
    train, validation = _files(train, validation, task, settings.home / "tasks")
    spec = JobSpec(
        model=model,
        training_file=str(train.absolute()),
        validation_file=None if validation is None else str(validation.absolute()),
        seed=seed,
        training=training,
        green=green,
        task=known,
        eval=questions,
    )
    from worker.run_local import print_result, run_local

    console = Console()
    result = run_local(spec, out, settings, console)
    print_result(result, console)
    sys.exit(0 if result.emissions is not None else EXIT_PAUSED)


def _given(**options: Any) -> dict[str, Any]:
    """What was said; the rest is the spec's to fill in."""
    return {name: value for name, value in options.items() if value is not None}


def _known_task(name: str | None, columns: str) -> TaskOptions | None:
    """As `parse_task`. Raises `InvalidInput` too where there is no such task or field of it."""
    asked = parse_task(name, columns)
    if asked is not None:
        task_named(asked.name).named_columns(asked.columns)
    return asked


def _files(
    train: Path | None, validation: Path | None, task: str | None, folder: Path
) -> tuple[Path, Path | None]:
    """The files that were named; none: the task's own, from the hub."""
    for path in (train, validation):
        if path is not None and not path.is_file():
            raise InvalidInput(
                f"{path} is a pipe or a device, which can be read only once; write the data into a "
                "file, because it is checked before it is trained on.",
                param="training_file" if path == train else "validation_file",
            )
    if task is None:
        if train is None:
            raise MissingParameter(
                "Name a training file, or a --task whose data set the hub has.",
                param="training_file",
            )
        refuse_tables(train, validation)
        return train, validation
    refuse_other_kinds(train, validation)
    if train is not None:
        return train, validation
    from worker.corpus import fetch_tables

    found, held_out = fetch_tables(task_named(task), folder)
    return found, validation or held_out


def _number_or_word(text: str) -> Any:
    """The spec says what is wrong with other words than its own."""
    try:
        return float(text)
    except ValueError:
        return text
