"""`mooncake drain`: what a segment has in its memory moves to others, so that its node can be stopped."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mooncake.cli_store import DEFAULT_ADMIN, EXIT_TEXT, NO_MASTER, Admin, JsonFlag, ask, bytes_text, fail, fetch

JOBS = "/api/v1/drain_jobs"
OVER = ("SUCCEEDED", "FAILED", "CANCELED")
AGAIN_S = 0.2
SILENT_S = 30  # a master that is being restarted answers again by then
WHY = {
    -101: "no such segment; `mooncake segments` names all",
    -600: "the targets have to be other segments, which are not drained themselves",
    -1010: "it is drained already, or not well at the moment; see `mooncake segments`",
    -1401: "too many drains at one time",
}


def _told(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise fail(f"the master answers {text[:200]!r}; is it one that drains?") from None


def start(admin: str, segments: list[str], targets: list[str], copies: int) -> str:
    """The id of the job."""
    body = {"segments": segments, "target_segments": targets, "max_concurrency": copies}
    told = _told(ask(admin, JOBS, json.dumps(body).encode()))
    if not told.get("success"):
        code = told.get("error_code")
        raise fail(f"{', '.join(segments)}: not drained: {WHY.get(code, told.get('error_message'))} (code {code})")
    return told["job_id"]


def look(admin: str, job: str) -> dict[str, Any]:
    """What the job has come to; waits for a master that is away for a moment."""
    end = time.monotonic() + SILENT_S
    while True:
        try:
            told = _told(fetch(admin, f"{JOBS}/query", job_id=job))
        except OSError as error:
            if time.monotonic() > end:
                raise fail(f"the master's HTTP server at {admin} does not answer any more: {error}", NO_MASTER) from None
            time.sleep(AGAIN_S)
            continue
        if not told.get("success"):
            raise fail(f"job {job}: {told.get('error_message')} (code {told.get('error_code')})")
        return told


def follow(admin: str, job: str, segments: list[str], is_quiet: bool) -> dict[str, Any]:
    """Until it is over, with a bar for who looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[moved]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=is_quiet or not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"draining {', '.join(segments)}", total=None, moved="")
        while (now := look(admin, job))["status_name"] not in OVER:
            done = now["succeeded_units"]
            progress.update(bar, completed=done, total=done + now["remaining_units"], moved=bytes_text(now["migrated_bytes"]))
            time.sleep(AGAIN_S)
    return now


def drain(
    segments: Annotated[list[str], typer.Argument(help="Names, as `mooncake segments` shows them.")],
    to: Annotated[list[str] | None, typer.Option(help="Only to this segment; may be given more than once.")] = None,
    copies: Annotated[int, typer.Option(min=1, max=64, help="Objects that move at one time.")] = 4,
    wait: Annotated[bool, typer.Option(help="Until it is over; else print the job and end.")] = True,
    cancel: Annotated[bool, typer.Option(help="The names are jobs: end them; what has moved stays where it is.")] = False,
    admin: Admin = DEFAULT_ADMIN,
    as_json: JsonFlag = False,
) -> None:
    if cancel:
        for job in segments:
            told = _told(ask(admin, f"{JOBS}/cancel", b"", job_id=job))
            if not told.get("success"):
                raise fail(f"job {job}: {told.get('error_message')} (code {told.get('error_code')})")
        return
    job = start(admin, segments, to or [], copies)
    if not wait:
        print(json.dumps({"job_id": job}) if as_json else job)
        return
    end = follow(admin, job, segments, as_json)
    if as_json:
        print(json.dumps(end))
    else:
        text = f"{', '.join(segments)}: {end['succeeded_units']} objects moved, {bytes_text(end['migrated_bytes'])}"
        print(f"{text}, {end['failed_units']} could not be, {end['remaining_units']} are there still: {end['message']}")
    raise typer.Exit(0 if end["status_name"] == "SUCCEEDED" else 1)


def add_to(app: typer.Typer) -> None:
    app.command(help="Empty the memory of segments, so that their nodes can be stopped without a loss.", epilog=EXIT_TEXT)(drain)
