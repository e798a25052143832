"""`greentune demo`: the main job end to end on this machine, as a new user would run it.

Everything goes through the doors that users have: the `greentune` command as processes of their
own, and the REST API in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from api.client import Client
from api.edge import saying
from api.home import private_folder
from api.report import print_report
from api.serve import READY, STOPPING
from api.tether import tethered
from api.watch import number, watch
from core.errors import GreentuneError, StartRefused, Unavailable
from core.jobs import keys, store
from core.jobs.database import Database, open_database
from core.settings import DEMO_MODEL, Settings
from migrations import upgrade

#: what fits into six minutes on two cores, and is enough to see the loss fall
STEPS = 32
BATCH_SIZE = 4
SPLITS = {"--train": "256", "--validation": "24", "--test": "16"}
N_SHOWN = 3
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 240.0
HURRY_TIMEOUT_S = 30.0
#: where a state folder of its own must not be led elsewhere
_NOT_INHERITED = frozenset(
    f"GREENTUNE_{name}" for name in ("DATABASE_URL", "BROKER_URL", "OBJECTS_URL", "HOST", "PORT")
)


def run_demo(
    folder: Path, *, rho: float, zone: str | None, keep_serving: bool, console: Console
) -> None:
    """Data in, tuned model and emissions report out; all state in ``folder``.

    Raises:
        StartRefused: the training stack is missing, or the service cannot start here.
        GreentuneError: the job did not succeed.
    """
    home = private_folder(folder.expanduser().absolute())
    with saying(console, f"Stopped; nothing runs on, and the state is kept in {home}."):
        _run(home, rho=rho, zone=zone, keep_serving=keep_serving, console=console)


def _run(home: Path, *, rho: float, zone: str | None, keep_serving: bool, console: Console) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment["GREENTUNE_HOME"] = str(home)
    settings = Settings(home=home)
    settings = settings.model_copy(
        update={"database_url": None, "broker_url": None, "objects_url": None}
    )
    started = time.monotonic()
    _say(console, "Building a data set from the docstrings of the installed packages")
    counts = [part for option in SPLITS.items() for part in option]
    _worker(["demo-data", str(home / "data"), *counts], environment)
    upgrade(settings.resolved_database_url)
    with closing_database(settings) as database:
        key = _new_key(database, settings)
        with (
            serving(home, environment) as url,
            saying(console, STOPPING),
            closing(Client(url, key)) as client,
        ):
            _say(console, f"greentune serves at {url} (log: {home / 'serve.log'})")
            wait_until_ready(client)
            job = _train(client, home / "data", rho=rho, zone=zone, console=console)
            report = client.get(f"/v1/fine_tuning/jobs/{job['id']}/emissions")
            report_path = home / "emissions.json"
            report_path.write_text(json.dumps(report, indent=1))
            print_report(report, console)
            model_folder = _model_folder(database, settings, job)
            _compare(job, model_folder, home / "data" / "test.jsonl", environment, console)
            _say(console, f"Done in {(time.monotonic() - started) / 60:.1f} minutes")
            facts = {
                "model": job["fine_tuned_model"],
                "its folder": str(model_folder),
                "report": str(report_path),
                "open": f"{url}/docs",
                "API": f"{url}/v1 with the key {key}",
            }
            _print_facts(console, facts)
            if keep_serving:
                console.print("Serving on; Ctrl-C stops everything.")
                threading.Event().wait()


@contextmanager
def closing_database(settings: Settings) -> Iterator[Database]:
    database = open_database(settings.resolved_database_url)
    try:
        yield database
    finally:
        database.dispose()


@contextmanager
def serving(home: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """`greentune serve` on a free port as a child that goes with this process; yields its URL.

    Raises:
        StartRefused: it did not come up; carries its own sentence.
    """
    log = home / "serve.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603  this very program
            tethered([sys.executable, "-m", "api", "serve", "--port", "0"]),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # a terminal's Ctrl-C is ours to pass on, once
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as lines:
        # what nobody reads would fill the pipe and hold up the server
        drain = threading.Thread(target=lambda: list(lines), daemon=True)
        try:
            first = next((line for line in lines if READY in line), None)
            if first is None:
                raise StartRefused(log.read_text(errors="replace").strip()[-500:])
            drain.start()
            yield first.partition(READY)[2].strip().removesuffix("/v1")
        finally:
            stop_serving(process)
            if drain.ident is not None:
                drain.join()


def wait_until_ready(client: Client) -> None:
    """Until a worker has joined.

    Raises:
        StartRefused: it did not in time; says what is missing.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.get("/health/ready")
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise StartRefused(f"The service is not ready: {error.message}") from error
            time.sleep(0.5)
        else:
            return


def _train(
    client: Client, data: Path, *, rho: float, zone: str | None, console: Console
) -> dict[str, Any]:
    train = client.upload(data / "train.jsonl")
    held_out = client.upload(data / "validation.jsonl")
    console.print(
        f"Uploaded {train['validation']['n_examples']} training and "
        f"{held_out['validation']['n_examples']} validation examples, checked line by line."
    )
    job = client.post(
        "/v1/fine_tuning/jobs",
        {
            "model": DEMO_MODEL,
            "training_file": train["id"],
            "validation_file": held_out["id"],
            "suffix": "demo",
            "seed": 0,
            "hyperparameters": {"n_epochs": 1, "batch_size": BATCH_SIZE},
            "green": {"rho": rho, "zone": zone, "training": {"max_steps": STEPS}},
        },
    )
    _say(console, f"Fine-tuning {DEMO_MODEL} at rho {rho:g}: job {job['id']}")
    job = watch(console, client.follow(job["id"]))
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else "no reason given"
        raise GreentuneError(f"The job {job['status']}: {reason}")
    return job


def _compare(
    job: Mapping[str, Any],
    model_folder: Path,
    questions: Path,
    environment: Mapping[str, str],
    console: Console,
) -> None:
    """Base and tuned model, asked the same held-out questions."""
    _say(console, f"Asking both models {SPLITS['--test']} held-out questions")
    base, tuned = (
        json.loads(_worker(["ask", "--model", model, "--questions", str(questions)], environment))
        for model in (job["model"], str(model_folder))
    )
    for before, after in list(zip(base["answers"], tuned["answers"], strict=True))[:N_SHOWN]:
        question = _short(before["question"])
        console.print(f"\nQ: {question}", markup=False, highlight=False, soft_wrap=True)
        for who, text in (
            ("base ", before["answer"]),
            ("tuned", after["answer"]),
            ("truth", before["reference"]),
        ):
            line = f"   {who}  {_short(text)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for name, form in (("loss", ".3f"), ("rougeL", ".1f")):
        console.print(
            f"held-out {name:7} before {number(base[name], form)}, "
            f"after {number(tuned[name], form)}",
            highlight=False,
        )


def _print_facts(console: Console, facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        console.print(f"{name:11} {value}", markup=False, highlight=False, soft_wrap=True)


def _new_key(database: Database, settings: Settings) -> str:
    with database.transaction() as session:
        return keys.create(
            session, tenant=settings.organization, name="demo", now=datetime.now(UTC)
        )


def _model_folder(database: Database, settings: Settings, job: Mapping[str, Any]) -> Path:
    """Where the object store of this machine keeps the model's files."""
    with database.read() as session:
        model = store.get_model(session, settings.organization, job["fine_tuned_model"])
    return settings.home / "objects" / model.prefix


def _worker(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run ``python -m worker ...`` and return what it prints."""
    done = subprocess.run(  # noqa: S603  our own worker
        tethered([sys.executable, "-m", "worker", *arguments]),
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StartRefused(f"greentune {arguments[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def stop_serving(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and time for a checkpoint; a second Ctrl-C is passed on, which makes it hurry."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        try:
            process.wait(STOP_TIMEOUT_S)
        except KeyboardInterrupt:
            # its death alone would let its worker finish the checkpoint first
            process.send_signal(signal.SIGINT)
            process.wait(HURRY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _say(console: Console, text: str) -> None:
    console.print(f"==> {text}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _short(text: str, limit: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
