"""``python -m worker``: what needs the training stack. ``greentune`` hands these commands over.

Imports live in the commands: the worker process itself runs without torch, and a training process
must be on its leash before it loads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from core.errors import DataInvalid, GreentuneError, MissingParameter
from core.settings import DEMO_MODEL
from core.spec import METHODS, EvalOptions, GreenOptions, JobSpec, MethodOptions, TaskOptions
from core.training_options import TrainingOptions

# ruff: noqa: PLC0415  see above

#: `run` ended at a checkpoint because it was told to; as a shell says of SIGINT
EXIT_PAUSED: Final = 130

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def worker(
    slots: Annotated[
        int | None, typer.Option(min=1, help="Jobs trained at a time; default: as set.")
    ] = None,
    beat: Annotated[bool, typer.Option(help="Also ask for sweeps.")] = True,
) -> None:
    """Join as a worker: claim jobs and train them, until SIGTERM."""
    from worker.app import work

    sys.exit(work(slots=slots, beat=beat))


@cli.command()
def beat() -> None:
    """Only ask for sweeps: for deployments that run the clock on its own."""
    from worker.clock import beat as run_beat

    run_beat()


@cli.command()
def worker_health() -> None:
    """Exit 0 if this host's worker is alive."""
    from worker.app import is_present

    sys.exit(not is_present())


@cli.command()
def beat_health() -> None:
    """Exit 0 if this host's clock has reached the broker lately."""
    from worker.clock import is_beating

    sys.exit(not is_beating())


@cli.command()
def demo_data(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Made if it is not there.")],
    train: Annotated[int, typer.Option(min=1, help="Examples.")] = 600,
    validation: Annotated[int, typer.Option(min=1, help="Examples.")] = 60,
    test: Annotated[int, typer.Option(min=1, help="Examples.")] = 60,
) -> None:
    """Write the demo's data set: train.jsonl, validation.jsonl and test.jsonl."""
    from core.data.demo import build

    build(folder, n_train=train, n_validation=validation, n_test=test)
    print(f"{train} training, {validation} validation and {test} test examples in {folder}")


@cli.command()
def run(
    train: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="JSONL; with --task also CSV or Parquet, or none."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="Result; the same again continues.")],
    model: Annotated[str, typer.Option(help="Id or folder.")] = DEMO_MODEL,
    validation: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "green",
    rho: Annotated[str, typer.Option(help="Share of full FLOPs, auto or efficient.")] = "auto",
    currency: Annotated[
        str, typer.Option(help="What rho is a share of: flops, seconds or joules.")
    ] = "flops",
    k: Annotated[int | None, typer.Option(help="last_k: blocks; default: as rho allows.")] = None,
    lora_r: Annotated[int, typer.Option(help="lora, green_lora: rank.")] = 8,
    lora_alpha: Annotated[float, typer.Option(help="lora, green_lora: scale.")] = 32.0,
    lora_dropout: Annotated[float, typer.Option(help="lora, green_lora.")] = 0.0,
    lora_targets: Annotated[
        str, typer.Option(help="lora: default (PEFT's table for the model) or all-linear.")
    ] = "default",
    virtual_tokens: Annotated[int, typer.Option(help="prefix: length.")] = 20,
    merge: Annotated[bool, typer.Option(help="A plain model instead of the adapter.")] = False,
    importance: Annotated[
        str, typer.Option(help="What tensors are ranked by; or taylor, random, magnitude, fisher.")
    ] = "importance",
    zone: Annotated[str | None, typer.Option(help="Grid zone, such as FR.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 4.")] = None,
    accumulation: Annotated[int, typer.Option(help="Batches to an optimiser step.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Default by method and rho.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Older ones are cut.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Later ones are cut.")] = None,
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
    early_stopping_patience: Annotated[
        int | None,
        typer.Option(
            help="End after so many epochs without a lower validation loss; keep the best."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order, dropout and selection.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="scitldr, dialogsum, webquestions or piqa; its hub data.")
    ] = None,
    columns: Annotated[str, typer.Option(help="Such as src=document,summary=gold.")] = "",
    eval_metrics: Annotated[
        str | None, typer.Option(help="Ask before and after; such as rougeL,f1.")
    ] = None,
    eval_examples: Annotated[
        int | None, typer.Option(help="Ask so many held-out examples; default 100.")
    ] = None,
    eval_decoding: Annotated[
        str | None, typer.Option(help="greedy (default), or beam as in the paper.")
    ] = None,
    eval_new_tokens: Annotated[int | None, typer.Option(help="Of an answer at most.")] = None,
) -> None:
    """Fine-tune with no server: model, metrics, answers and emissions report into a folder."""
    from core.settings import read_settings
    from worker.run_local import print_result, run_local

    settings = read_settings()
    train, validation = _files(train, validation, task, settings.home / "tasks")
    spec = JobSpec(
        model=model,
        training_file=str(train.absolute()),
        validation_file=None if validation is None else str(validation.absolute()),
        seed=seed,
        training=TrainingOptions(
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
            early_stopping_patience=early_stopping_patience,
        ),
        green=GreenOptions(
            method=method,  # type: ignore[arg-type]  checked by GreenOptions
            options=MethodOptions(
                k=k,
                r=lora_r,
                alpha=lora_alpha,
                dropout=lora_dropout,
                target_modules=lora_targets,  # type: ignore[arg-type]  checked by MethodOptions
                n_virtual_tokens=virtual_tokens,
                merge=merge,
            ),
            importance=importance,  # type: ignore[arg-type]  checked by GreenOptions
            rho=_share(rho),
            currency=currency,  # type: ignore[arg-type]  checked by GreenOptions
            zone=zone,
        ),
        task=_task(task, columns),
        eval=_exam(
            metrics=None if eval_metrics is None else tuple(eval_metrics.split(",")),
            max_examples=eval_examples,
            decoding=eval_decoding,
            max_new_tokens=eval_new_tokens,
        ),
    )
    console = Console()
    result = run_local(spec, out, settings, console)
    print_result(result, console)
    sys.exit(0 if result.emissions is not None else EXIT_PAUSED)


@cli.command()
def profile(
    model: Annotated[str, typer.Argument(help="Folder, config.json or id; no weights are read.")],
    *,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Of each sample.")] = 512,
    labels: Annotated[
        int | None, typer.Option(min=1, help="Trained tokens of each sample; default: all.")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="Also show the plan for this share.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures instead of tables.")] = False,
) -> None:
    """Parameters, FLOPs, feasible rho and the plan for one, from a config alone."""
    from core.settings import read_settings
    from worker.profile_model import print_profile, profile_model

    found = profile_model(
        model, batch=batch, tokens=tokens, labels=labels, rho=rho, settings=read_settings()
    )
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_profile(found, Console())


def _files(
    train: Path | None, validation: Path | None, task: str | None, folder: Path
) -> tuple[Path, Path | None]:
    """The files that were named; none: the task's own, from the hub."""
    if train is not None:
        return train, validation
    if task is None:
        raise MissingParameter(
            "Name a training file, or a --task whose data set the hub has.", param="training_file"
        )
    from core.data.tasks import task_named
    from worker.corpus import fetch_tables

    found, held_out = fetch_tables(task_named(task), folder)
    return found, validation or held_out


def _task(name: str | None, columns: str) -> TaskOptions | None:
    from core.data.tables import parse_columns

    named = parse_columns(columns)
    if name is not None:
        return TaskOptions(name=name, columns=named)
    if named:
        raise MissingParameter("Columns belong to a task's template; say which --task.")
    return None


def _exam(**options: Any) -> EvalOptions | None:
    """None where nothing was said of an evaluation; what was not said has its default."""
    given = {name: value for name, value in options.items() if value is not None}
    return EvalOptions(**given) if given else None


def _share(text: str) -> Any:
    """A number where it is one; the spec says what is wrong with the rest."""
    try:
        return float(text)
    except ValueError:
        return text


@cli.command()
def ask(
    model: Annotated[str, typer.Option(help="Folder or id of a causal model.")],
    questions: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="JSONL.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
) -> None:
    """Ask a model the questions of a file; prints answers, loss and ROUGE as JSON."""
    from core.settings import read_settings
    from worker.ask import ask as ask_model

    settings = read_settings()
    result = ask_model(
        model,
        questions,
        models=settings.model_folders,
        cache=settings.home / "models",
        limit=limit,
    )
    print(json.dumps(result, indent=1))


@cli.command()
def simulate(  # noqa: PLR0917  a command's options are its arguments
    traces: Annotated[
        Path,
        typer.Option(exists=True, help="CSV file or folder: zone,timestamp_utc,gco2eq_per_kwh."),
    ],
    policy: Annotated[
        str, typer.Option(help="now, shift (one run), suspend (pauses) or budget.")
    ] = "suspend",
    hours: Annotated[float, typer.Option(help="Full fine-tuning takes so long.")] = 6.0,
    slack: Annotated[float, typer.Option(help="Hours from submission to the deadline.")] = 24.0,
    rho: Annotated[float, typer.Option(help="Share of full fine-tuning's FLOPs.")] = 0.5,
    rho_min: Annotated[float, typer.Option(help="Lowest feasible rho.")] = 0.34,
    budget_share: Annotated[
        float, typer.Option(help="Budget of each job, as a share of its run-now grams.")
    ] = 0.4,
    suspend_minutes: Annotated[
        float, typer.Option(min=0, help="Of full power that each start costs.")
    ] = 0.0,
    forecast_noise: Annotated[
        bool, typer.Option(help="5 % error at 1 h to 20 % at 72 h; else a perfect forecast.")
    ] = True,
    persistent_noise: Annotated[
        bool, typer.Option(help="Successive forecasts err alike, instead of independently.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the forecast's error.")] = 0,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures instead of a table.")] = False,
) -> None:
    """A job from every hour of a recorded year, through the real planner and its ledger."""
    from core.carbon.simulate import Fleet
    from worker.simulate import simulate_and_print

    noise = "persistent" if persistent_noise else "independent"
    fleet = Fleet(
        policy=policy,  # type: ignore[arg-type]  checked by Fleet
        hours=hours,
        slack_h=slack,
        rho=rho,
        rho_min=rho_min,
        suspend_h=suspend_minutes / 60,
        budget_share=budget_share,
        noise=noise if forecast_noise else "none",  # type: ignore[arg-type]  one of two words
        seed=seed,
    )
    simulate_and_print(traces, fleet, page=html, as_json=as_json)


@cli.command(hidden=True)
def train_child(
    job: Annotated[str, typer.Option()],
    fence: Annotated[int, typer.Option()],
    shares_host: Annotated[bool, typer.Option("--shares-host")] = False,
) -> None:
    """One claimed job, as the worker starts it."""
    from worker.child import end_with_parent

    end_with_parent()
    from core.settings import Settings
    from worker.metering import early_meter

    meter = early_meter(Settings(), shares_host=shares_host)
    try:
        from worker.runner import main

        sys.exit(main(job, fence, shares_host=shares_host, meter=meter))
    finally:
        meter.stop()


def _told(error: DataInvalid) -> str:
    """Every problem on a line, with the file that it is in."""
    file = {"training_file": "Training file", "validation_file": "Validation file"}
    name = file.get(error.param or "")
    return "\n".join(
        f"{name}, {text}" if name and text.startswith("line ") else text
        for text in error.problems or (error.message,)
    )


def main() -> None:
    """Failures that we foresee are one sentence on stderr; of a data set, one for each problem."""
    try:
        cli()
    except DataInvalid as error:
        sys.exit(_told(error))
    except GreentuneError as error:
        sys.exit(error.message)
    except OSError as error:  # a full disk, a folder that may not be written
        where = "" if error.filename is None else f" ({error.filename})"
        sys.exit(f"Input or output failed: {error.strerror or error}{where}.")


if __name__ == "__main__":
    main()
