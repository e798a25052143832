"""``greentune report``: one job's emissions, checked or saved, or those of many jobs together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from api.client import Client, ServerError
from api.edge import own_database, print_columns, server
from api.estimate_table import moment_of
from api.fleet import GroupBy, default_start, fleet_document
from api.report import print_report
from api.watch import number
from core.carbon.crosscheck import check_delivered, check_kept
from core.carbon.evidence import Evidence
from core.carbon.verify import Check, verify
from core.errors import GreentuneError, InvalidInput

_MOMENT = "Such as 2026-12-24T06:00Z, or -7d."
#: figures of single intervals are counted, not listed, and so are those of the delivered file
_COUNTED = ("intervals.", "delivered.")
_DELIVERED = "emissions.json"

out = Console()


def report(
    job_id: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Its id, as `jobs` lists it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's JSON.")] = False,
    check: Annotated[
        bool,
        typer.Option("--verify", help="Recompute every figure from the raw samples."),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Save the page here.", dir_okay=False)] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Save codecarbon's columns here.", dir_okay=False)
    ] = None,
    fleet: Annotated[bool, typer.Option("--fleet", help="All jobs instead of one.")] = False,
    start: Annotated[
        str | None, typer.Option(help=f"--fleet: {_MOMENT} Default: 30 days before the end.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="--fleet: likewise; default: now.")] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            help=f"--fleet: {', '.join(get_args(GroupBy))}; repeatable; default: zone, and with "
            "--all-tenants tenant too."
        ),
    ] = None,
    all_tenants: Annotated[
        bool,
        typer.Option(
            "--all-tenants",
            help="--fleet: every tenant's, straight from the database.",
        ),
    ] = False,
) -> None:
    """A job's energy and emissions, or all jobs' (--fleet).

    Beside what full fine-tuning would have taken.
    """
    if fleet == (job_id is not None):
        raise InvalidInput("Name a job, or ask for all of them with --fleet.")
    of_fleet = {"--start": start, "--end": end, "--group-by": group_by}
    _refuse_idle(of_fleet | {"--all-tenants": all_tenants}, is_heeded=fleet, scope="--fleet")
    of_job = {"--verify": check, "--html": html, "--csv": csv}
    _refuse_idle(of_job, is_heeded=not fleet, scope="one job")
    if check and as_json:
        raise InvalidInput("--verify prints a table; leave --json out, or ask for it alone.")
    if fleet:
        _report_fleet(start, end, group_by, all_tenants=all_tenants, as_json=as_json)
        return
    path = f"/v1/fine_tuning/jobs/{job_id}/emissions"
    with server() as client:
        for form, target in (("html", html), ("csv", csv)):
            if target is not None:
                _save(client, path, target, form)
        if check:
            _verify(client, job_id, path)
        elif as_json:
            print(json.dumps(client.get(path), indent=1))
        elif html is None and csv is None:
            print_report(client.get(path), out)


def _refuse_idle(given: Mapping[str, object], *, is_heeded: bool, scope: str) -> None:
    """Raises InvalidInput for the first option that was given and would have no effect."""
    for option, value in given.items():
        if value and not is_heeded:
            raise InvalidInput(f"{option} is for {scope}; leave it out, or ask for that.")


def _save(client: Client, path: str, target: Path, form: str) -> None:
    try:
        client.save(path, target, format=form)
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}.") from error
    out.print(f"Saved {target}", markup=False, highlight=False, soft_wrap=True)


def _verify(client: Client, job_id: str, path: str) -> None:
    """Print every figure beside what the samples come to, and whether they are still those that
    were stored.

    Raises:
        GreentuneError: some figure does not agree.
    """
    document = client.get(path, include="samples")
    evidence = Evidence.from_dict(document["evidence"])
    delivered = _delivered(client, job_id)
    made, kept = verify(document, evidence), check_kept(evidence)
    sent = () if delivered is None else check_delivered(delivered, evidence)
    checks = (*made, *kept, *sent)
    listed = [c for c in checks if not c.figure.startswith(_COUNTED) or not c.agrees]
    print_columns([("FIGURE", "STATED", "FROM SAMPLES", ""), *map(_line, listed)])
    intervals = [c for c in made if c.figure.startswith(_COUNTED)]
    lines = (
        f"Figures of single intervals that agree: {_agreeing(intervals)}.",
        f"Sums kept with the job and its attempts that agree: {_agreeing(kept)}."
        if kept
        else "Sums kept with the job are still being added to: not compared.",
        f"Figures of the delivered {_DELIVERED} that agree: {_agreeing(sent)}."
        if delivered is not None
        else f"No {_DELIVERED} was delivered, or this key may not read it: not compared.",
        (
            f"{_agreeing(made)} figures of {document['job_id']} agree, within the rounding to six "
            f"digits, with {len(evidence.samples)} samples."
        ),
        (
            "Taken as stored: samples, the grid's values, tokens, FLOPs, what full fine-tuning was "
            "measured to take, grams per hour of the hardware's own footprint, PUE."
        ),
    )
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if wrong := [check for check in checks if not check.agrees]:
        names = ", ".join(check.figure for check in wrong[:5])
        raise GreentuneError(f"{len(wrong)} figures do not follow from the samples: {names}.")


def _agreeing(checks: Sequence[Check]) -> str:
    return f"{sum(check.agrees for check in checks)} of {len(checks)}"


def _delivered(client: Client, job_id: str) -> dict[str, Any] | None:
    """The report as it came with the result; None: there is none, or not for this key."""
    for file_id in client.job(job_id)["result_files"]:
        try:
            if client.get(f"/v1/files/{file_id}")["filename"] == _DELIVERED:
                return client.get(f"/v1/files/{file_id}/content")
        except ServerError:  # deleted since, or a key without the scope
            continue
    return None


def _line(check: Check) -> tuple[str, ...]:
    verdict = "agrees" if check.agrees else "DISAGREES"
    return (check.figure, number(check.stated, ".6f"), f"{check.recomputed:.6f}", verdict)


def _report_fleet(
    start: str | None,
    end: str | None,
    group_by: list[str] | None,
    *,
    all_tenants: bool,
    as_json: bool,
) -> None:
    now = datetime.now(UTC)
    since, until = moment_of("--start", start, now), moment_of("--end", end, now)
    if all_tenants:
        document = _of_all_tenants(since, until or now.isoformat(), group_by)
    else:
        wishes = {"start": since, "end": until, "group_by": group_by}
        with server() as client:
            document = client.get(
                "/v1/green/report", **{k: v for k, v in wishes.items() if v is not None}
            )
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _print_fleet(document)


def _of_all_tenants(since: str | None, until: str, group_by: list[str] | None) -> dict[str, Any]:
    groups = group_by or ["tenant", "zone"]
    unknown = set(groups) - set(get_args(GroupBy))
    if unknown:
        known = ", ".join(get_args(GroupBy))
        raise InvalidInput(f"--group-by takes {known}; got {', '.join(sorted(unknown))}.")
    end = datetime.fromisoformat(until)
    begin = default_start(end) if since is None else datetime.fromisoformat(since)
    if begin >= end:
        raise InvalidInput("--start must be earlier than --end.")
    with own_database() as (session, settings):
        return fleet_document(
            session,
            None,
            start=begin,
            end=end,
            group_by=cast("list[GroupBy]", groups),
            pue=settings.pue,
        )


def _print_fleet(document: dict[str, Any]) -> None:
    names = document["group_by"]
    head = (*map(str.upper, names), "INTENSITY", "JOBS", "Wh", "gCO2e")
    lines = [
        *((tuple(line[name] or "unknown" for name in names), line) for line in document["data"]),
        *((("all",) * len(names), line) for line in document["totals"]),
    ]
    out.print(f"{document['start']} to {document['end']}", highlight=False)
    print_columns(
        [
            (*head, "BASELINE g", "SAVED g", "SAVED"),
            *((*labels, *_fleet_cells(line)) for labels, line in lines),
        ]
    )
    for note in document["notes"]:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _fleet_cells(line: dict[str, Any]) -> tuple[str, ...]:
    baseline, savings = line["baseline"] or {}, line["savings"] or {}
    return (
        line["kind"] or "unknown",
        str(line["jobs"]),
        f"{line['energy_wh']:.3f}",
        number(line["co2e_g"], ".4f"),
        number(baseline.get("co2e_g"), ".4f"),
        number(savings.get("co2e_g"), ".4f"),
        number(savings.get("share"), ".0%"),
    )
