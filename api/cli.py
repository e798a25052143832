"""The command `greentune`, the half that needs no training stack.

What trains is handed to ``python -m worker`` as it stands, so that neither half imports the other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from api.edge import err, out, own_database, print_columns, server
from api.estimate_table import MOMENT, amount_of, moment_of, print_estimate, save_estimate
from api.home import made_folder
from api.report_command import report
from api.submit_command import submit
from api.watch import describe, follow_to_the_end, number
from core.errors import GreentuneError, InvalidInput, StartRefused
from core.jobs import keys as key_store
from core.jobs.records import Scope
from core.moments import LONGEST
from core.settings import DEMO_MODEL, read_settings
from migrations import upgrade

#: commands of ``python -m worker``
HANDED_OVER = {
    "worker": "Join as a worker: claim jobs and train them.",
    "run": "Fine-tune on a file, with no server.",
    "profile": "Show a model's feasible rho and a plan, from its config.",
    "simulate": "Replay carbon policies on recorded intensities.",
    "demo-data": "Write the demo's data set.",
    "ask": "Ask a model questions from a file.",
    "beat": "Be the clock alone: ask for sweeps, train nothing.",
    "beat-health": "Exit 0 if this host's clock has reached the broker lately.",
    "worker-health": "Exit 0 if this host's worker is alive.",
}

# help as plain text: rich's table cuts the names of long options short
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Carbon-aware fine-tuning of language models: the service, its client, and one machine.",
)
keys_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="API keys, straight in the database."
)
app.add_typer(keys_app, name="keys")

Json = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


def main() -> None:
    """Entry point: every failure that we foresee is one sentence on stderr, exit status 1."""
    try:
        app()
    except GreentuneError as error:
        err.print(error.message, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [GREENTUNE_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port [GREENTUNE_PORT].")] = None,
    worker: Annotated[bool, typer.Option(help="Train on this machine too.")] = True,
) -> None:
    """Run the whole service here.

    API, worker, embedded broker and database, out of the folder GREENTUNE_HOME.
    """
    from api.serve import serve as run  # noqa: PLC0415  the web stack, for this command only

    given = {name: v for name, v in (("host", host), ("port", port)) if v is not None}
    run(read_settings(**given), out, with_worker=worker)


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version."""
    settings = read_settings()
    made_folder(settings.home)
    upgrade(settings.resolved_database_url)
    out.print("The database is up to date.")


@app.command()
def version() -> None:
    """Print the version."""
    out.print(installed_version("greentune"), highlight=False)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="State folder; kept afterwards.", file_okay=False)
    ] = Path(".demo"),
    rho: Annotated[float, typer.Option(help="Share of full fine-tuning's FLOPs.")] = 0.5,
    zone: Annotated[str | None, typer.Option(help='Grid zone, such as "FR".')] = None,
    keep: Annotated[
        bool | None, typer.Option(help="Serve on when done (default: in a terminal).")
    ] = None,
) -> None:
    """The main job end to end on this machine.

    Data in, tuned model and emissions report out.
    """
    from api.demo import run_demo  # noqa: PLC0415  as in serve

    keep_serving = out.is_terminal if keep is None else keep
    run_demo(folder, rho=rho, zone=zone, keep_serving=keep_serving, console=out)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the list calls it.")],
    tenant: Annotated[str | None, typer.Option(help="[GREENTUNE_ORGANIZATION]")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="files, jobs, models or admin; repeatable; default: all."),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST.days, help="Valid for so many days; default: for ever."),
    ] = None,
) -> None:
    """Create a key and print it, alone: it cannot be shown again."""
    now = datetime.now(UTC)
    with own_database() as (session, settings):
        key = key_store.create(
            session,
            tenant=tenant or settings.organization,
            name=name,
            scopes=_scopes(scope),
            now=now,
            expires_at=None if days is None else now + timedelta(days=days),
        )
    print(key)


@keys_app.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="[GREENTUNE_ORGANIZATION]")] = None,
) -> None:
    """List keys: never their secrets."""
    with own_database() as (session, settings):
        found = key_store.list_keys(session, tenant=tenant or settings.organization)
    rows = [
        (
            key.id,
            key.name,
            ",".join(sorted(key.scopes)),
            f"{key.created_at:%Y-%m-%d %H:%M}Z",
            f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "never",
            "revoked" if key.revoked_at else "valid",
        )
        for key in found
    ]
    print_columns([("ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "STATE"), *rows])


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="As `keys list` shows it.")],
    tenant: Annotated[str | None, typer.Option(help="[GREENTUNE_ORGANIZATION]")] = None,
) -> None:
    """Refuse a key from now on."""
    with own_database() as (session, settings):
        key_store.revoke(
            session,
            tenant=tenant or settings.organization,
            key_id=key_id,
            now=datetime.now(UTC),
        )
    err.print(f"Revoked {key_id}.", markup=False)


app.command()(submit)


@app.command()
def estimate(
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="Training JSONL.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Instead of a file.")] = None,
    model: Annotated[str, typer.Option(help="Base model or a fine-tuned one.")] = DEMO_MODEL,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=50,
            help="Default: 1 from 200 examples on, 2 below; of --tokens, 1.",
        ),
    ] = None,
    rho: Annotated[
        list[float] | None,
        typer.Option(help="Share of full FLOPs; repeatable; default: seven from .35 to 1."),
    ] = None,
    start: Annotated[
        list[float] | None,
        typer.Option(help="Hours from now; repeatable; default: six from 0 to 24."),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Grid zone, such as FR; default: the server's.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help=MOMENT)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Save a page with the Pareto picture.", dir_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """What a job would cost, for several rho and starts.

    Energy, grams, finish and expected quality; uploads nothing.
    """
    if (file is None) == (tokens is None):
        raise InvalidInput("Name a file, or say how many --tokens; one of them.")
    n_tokens, n_epochs = (tokens, 1) if file is None else amount_of(file)
    body = {
        "model": model,
        "n_tokens": n_tokens,
        "n_epochs": epochs or n_epochs,
        "rho": rho,
        "start_hours": start,
        "zone": zone,
        "deadline": moment_of("--deadline", deadline, datetime.now(UTC)),
    }
    with server() as client:
        document = client.post("/v1/green/estimate", body)
    if html is not None:
        save_estimate(document, html, model=model)
    if as_json:
        print(json.dumps(document, indent=1))
        return
    print_estimate(document, out)
    if html is not None:
        out.print(f"Saved {html}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with server() as client:
        page = client.get("/v1/fine_tuning/jobs", limit=limit)
    if as_json:
        print(json.dumps(page, indent=1))
        return
    rows = [("ID", "CREATED", "MODEL", "RHO", "PROGRESS")]
    for job in page["data"]:
        created = datetime.fromtimestamp(job["created_at"], UTC)
        rho = job["green"]["rho"]
        rows.append(
            (
                job["id"],
                f"{created:%Y-%m-%d %H:%M}Z",
                job["fine_tuned_model"] or job["model"],
                rho if isinstance(rho, str) else number(rho, ".2f"),
                describe(job, now=datetime.now(UTC).timestamp()),
            )
        )
    print_columns(rows)


@app.command("watch")
def watch_job(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `jobs` lists it.")],
) -> None:
    """Follow a job to its end.

    Exit status 0 only if it succeeded.
    """
    with server() as client:
        follow_to_the_end(client, job_id, out)


app.command()(report)


def _hand_over(name: str, about: str) -> None:
    @app.command(
        name,
        help=about,
        add_help_option=False,  # --help is the other side's
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def run(context: typer.Context) -> NoReturn:
        if importlib.util.find_spec("torch") is None:
            raise StartRefused(
                f"`greentune {name}` needs the training stack: pip install 'greentune[worker]'"
            )
        sys.stdout.flush()
        command = [sys.executable, "-m", "worker", name, *context.args]
        os.execv(sys.executable, command)  # noqa: S606  no shell is wanted


for _name, _about in HANDED_OVER.items():
    _hand_over(_name, _about)


def _scopes(given: list[str] | None) -> tuple[Scope, ...]:
    known = {scope: scope for scope in key_store.ALL_SCOPES}
    for scope in given or ():
        if scope not in known:
            raise InvalidInput(f"Unknown scope {scope!r}; known: {', '.join(known)}.")
    return tuple(known[scope] for scope in given) if given else key_store.ALL_SCOPES  # type: ignore[index]
