"""``python -m worker``: what needs the training stack. ``greentune`` hands these commands over.

Imports live in the commands: the worker process itself runs without torch, and a training process
must be on its leash before it loads it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from core.errors import DataInvalid, GreentuneError
from worker.run_command import run

# ruff: noqa: PLC0415  see above

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # rich's table cuts the names of long options short
    rich_markup_mode=None,
)


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
    """Be the clock alone: ask for sweeps, train nothing."""
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


cli.command()(run)


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
    method: Annotated[
        str | None, typer.Option(help="Whose plan: green (default), green_lora, lora, ...")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of memory: fp32, bf16, or auto: a job's on this machine.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Figures instead of tables.")] = False,
) -> None:
    """Parameters, FLOPs, memory, feasible rho and a method's plan, from a config alone."""
    from core.option_names import in_words_of_options
    from core.settings import read_settings
    from worker.profile_model import print_profile, profile_model

    with in_words_of_options():
        found = profile_model(
            model,
            batch=batch,
            tokens=tokens,
            labels=labels,
            rho=rho,
            method=method,
            precision=precision,  # type: ignore[arg-type]  checked there
            settings=read_settings(),
        )
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_profile(found, Console())


@cli.command()
def ask(
    model: Annotated[str, typer.Option(help="Folder, or id on the hub.")],
    questions: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="JSONL, answered.")],
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
    rho: Annotated[
        float | None,
        typer.Option(help="Not of budget: share of full fine-tuning's FLOPs; default 0.5."),
    ] = None,
    rho_min: Annotated[
        float | None, typer.Option(help="budget: lowest feasible rho; default 0.34.")
    ] = None,
    budget_share: Annotated[
        float | None,
        typer.Option(help="budget: of each job, as a share of its run-now grams; default 0.4."),
    ] = None,
    suspend_minutes: Annotated[
        float, typer.Option(min=0, help="Of full power that each start costs.")
    ] = 0.0,
    forecast_noise: Annotated[
        bool, typer.Option(help="5 % error at 1 h to 20 % at 72 h; else a perfect forecast.")
    ] = True,
    persistent_noise: Annotated[
        bool, typer.Option(help="Successive forecasts err alike, instead of independently.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Not of now: of the forecast's error; default 0.")
    ] = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures instead of a table.")] = False,
) -> None:
    """A job from every slot of a recorded year, through the real planner and its ledger."""
    from worker.simulate import fleet_of, noise_of, simulate_and_print

    fleet = fleet_of(
        policy,
        {"rho": rho, "rho_min": rho_min, "budget_share": budget_share, "seed": seed},
        hours=hours,
        slack_h=slack,
        suspend_h=suspend_minutes / 60,
        noise=noise_of(is_on=forecast_noise, is_persistent=persistent_noise, seed=seed),
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
        cli(prog_name="greentune")
    except DataInvalid as error:
        sys.exit(_told(error))
    except GreentuneError as error:
        sys.exit(error.message)
    except OSError as error:  # a full disk, a folder that may not be written
        where = "" if error.filename is None else f" ({error.filename})"
        sys.exit(f"Input or output failed: {error.strerror or error}{where}.")


if __name__ == "__main__":
    main()
