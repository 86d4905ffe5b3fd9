"""The `mooncake` command's part about the Store: serve it, look at it, move single objects."""

from __future__ import annotations

import json
import logging
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mooncake import prom_text
from mooncake._codes import OBJECT_HAS_LEASE, OBJECT_NOT_FOUND
from mooncake.cli_bench import run_program

EXIT_TEXT = "Exit status: 0 done, 1 not done (no such object, refused), 2 wrong use, 3 the master does not answer."
NOT_DONE, NO_MASTER = 1, 3
HTTP_TIMEOUT_S = 10

Master = Annotated[str, typer.Option(envvar="MOONCAKE_MASTER", help="The master, host:port.")]
Admin = Annotated[str, typer.Option(envvar="MOONCAKE_ADMIN", help="The master's HTTP server, host:port (its --metrics_port).")]
Tenant = Annotated[str, typer.Option(envvar="MOONCAKE_TENANT_ID", help="Whose objects.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
DEFAULT_MASTER, DEFAULT_ADMIN = "127.0.0.1:50051", "127.0.0.1:9003"

serve_app = typer.Typer(help="Run a part of the Store until it is told to stop.", no_args_is_help=True)
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@serve_app.command("master", context_settings=_ANY, help="The index: mooncake_master with all its options.")
def serve_master(context: typer.Context) -> None:
    run_program("mooncake_master", context.args)


@serve_app.command("node", context_settings=_ANY, help="Memory and disk for the pool: mooncake_client with all its options.")
def serve_node(context: typer.Context) -> None:
    run_program("mooncake_client", context.args)


def fail(text: str, status: int = NOT_DONE) -> typer.Exit:
    print(text, file=sys.stderr)
    return typer.Exit(status)


def fetch(admin: str, path: str, body: bytes | None = None, **query: str) -> str:
    """What the master's HTTP server says (to a POST, with a body); an error status is an answer, too. OSError when there is none."""
    url = f"http://{admin}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    try:
        with urllib.request.urlopen(url, body, timeout=HTTP_TIMEOUT_S) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def ask(admin: str, path: str, body: bytes | None = None, **query: str) -> str:
    """As fetch(); without an answer the command ends."""
    try:
        return fetch(admin, path, body, **query)
    except OSError as error:
        raise fail(f"the master's HTTP server at {admin} does not answer: {error}; see --admin", NO_MASTER) from None


@contextmanager
def open_store(master: str, tenant: str) -> Iterator[Any]:
    """A client without memory of its own in the pool."""
    from mooncake.store import MooncakeDistributedStore

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("MC_RPC_TIMEOUT_MS", "10000")
    store = MooncakeDistributedStore()
    code = store.setup("", "P2PHANDSHAKE", 0, 0, "tcp", "", master, tenant_id=tenant)
    if code != 0:
        raise typer.Exit(NO_MASTER)
    try:
        yield store
    finally:
        store.close()


def bytes_text(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024 or unit == "TiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def put(
    key: str,
    file: Annotated[Path, typer.Argument(help="What to store; - is standard input.")],
    replicas: Annotated[int, typer.Option(min=1, max=8)] = 1,
    replace: Annotated[bool, typer.Option(help="Also when the key is there already.")] = False,
    master: Master = DEFAULT_MASTER,
    tenant: Tenant = "default",
) -> None:
    from mooncake.store import ReplicateConfig

    try:
        value = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise fail(f"{file}: {error.strerror}") from None
    with open_store(master, tenant) as store:
        if not replace and store.is_exist(key) == 1:
            raise fail(f"{key} is there already; --replace replaces it")
        config = ReplicateConfig(replica_num=replicas)
        code = store.upsert(key, value, config) if replace else store.put(key, value, config)
    if code != 0:
        raise fail(f"{key}: not stored, code {code}")


def get(
    key: str,
    file: Annotated[Path, typer.Argument(help="Where to; - is standard output.")] = Path("-"),
    master: Master = DEFAULT_MASTER,
    tenant: Tenant = "default",
) -> None:
    with open_store(master, tenant) as store:
        found = store.get_buffer(key)
        if found is None:
            raise fail(f"{key}: no such object" if store.get_size(key) == OBJECT_NOT_FOUND else f"{key}: cannot be read")
        if str(file) == "-":
            sys.stdout.buffer.write(found)
            sys.stdout.buffer.flush()
            return
        try:
            with file.open("wb") as out:
                _copy(memoryview(found), out)
        except OSError as error:
            raise fail(f"{file}: {error.strerror}") from None


def _copy(data: memoryview, out: BinaryIO, piece: int = 64 << 20) -> None:
    with Progress(console=Console(stderr=True), disable=len(data) <= piece or not sys.stderr.isatty()) as progress:
        for offset in progress.track(range(0, len(data), piece), description="writing"):
            out.write(data[offset : offset + piece])


def rm(
    keys: Annotated[list[str], typer.Argument(help="Keys; with --regex, expressions.")],
    regex: Annotated[bool, typer.Option(help="Every key that matches one of them.")] = False,
    force: Annotated[bool, typer.Option(help="Also those that readers hold.")] = False,
    master: Master = DEFAULT_MASTER,
    tenant: Tenant = "default",
) -> None:
    with open_store(master, tenant) as store:
        if regex:
            counts = [store.remove_by_regex(key, force) for key in keys]
            if any(n < 0 for n in counts):
                raise fail(f"{keys[[n < 0 for n in counts].index(True)]}: not a regular expression")
            print(f"{sum(counts)} removed")
            return
        codes = store.batch_remove(keys, force)
    why = {OBJECT_NOT_FOUND: "no such object", OBJECT_HAS_LEASE: "a reader holds it; --force removes it nevertheless"}
    for key, code in zip(keys, codes):
        if code != 0:
            print(f"{key}: {why.get(code, f'code {code}')}", file=sys.stderr)
    raise typer.Exit(NOT_DONE if any(codes) else 0)


def _ago(ms: int) -> str:
    return f"{ms / 1000:.0f} s" if ms < 120_000 else f"{ms / 60_000:.0f} min" if ms < 7_200_000 else f"{ms / 3_600_000:.0f} h"


def why_text(told: dict[str, Any]) -> str:
    """What /api/v1/object says of an object that is not there, in words."""
    state, segment = told.get("state"), told.get("segment", "an owner that has left")
    ago = f"{_ago(told.get('gone_ms', 0))} ago"
    texts = {
        "evicted": f"evicted {ago} from the {told.get('kind')} of {segment}, which was full",
        "over_quota": f"evicted {ago}: its tenant was over its quota",
        "removed": f"removed {ago}",
        "lost": f"lost {ago} with {segment}; it comes back if that still has it",
        "damaged": f"dropped {ago}: a reader found its last replica damaged",
        "never_seen": f"never put, or gone for more than {_ago(told.get('known_ms', 0))}",
        "recovering": "not known yet: the master waits for owners of its last life",
        "here": "put just now",
    }
    return texts.get(str(state), "the master does not say why")


def _why(admin: str, key: str, tenant: str) -> dict[str, Any]:
    try:
        told = json.loads(fetch(admin, "/api/v1/object", key=key, tenant=tenant))
    except (OSError, ValueError):  # without the HTTP server there is no reason, and the object is missing all the same
        return {}
    return told if isinstance(told, dict) else {}


def stat(
    key: str,
    master: Master = DEFAULT_MASTER,
    admin: Annotated[
        str, typer.Option(envvar="MOONCAKE_ADMIN", help="The master's HTTP server: why an object is missing. [default: port 9003 of the master]")
    ] = "",
    tenant: Tenant = "default",
    as_json: JsonFlag = False,
) -> None:
    with open_store(master, tenant) as store:
        size, replicas = store.get_size(key), store.get_replica_desc(key)
    if size == OBJECT_NOT_FOUND:
        why = _why(admin or f"{master.rpartition(':')[0]}:9003", key, tenant)
        if as_json:
            print(json.dumps({"key": key, "error": "no such object", "why": why}))
        raise fail(f"{key}: no such object: {why_text(why)}")
    if size < 0:
        raise fail(f"{key}: code {size}")
    places = [
        ("memory", r.get_memory_descriptor().buffer_descriptor.transport_endpoint)
        if r.is_memory_replica()
        else ("disk", r.get_disk_descriptor().file_path)
        for r in replicas
    ]
    if as_json:
        print(json.dumps({"key": key, "bytes": size, "replicas": [{"kind": k, "segment": s} for k, s in places]}))
    else:
        print(f"{key}: {size} bytes, {', '.join(f'{kind} of {segment}' for kind, segment in places)}")


def ls(
    prefix: Annotated[str, typer.Argument(help="Keys that begin with it.")] = "",
    admin: Admin = DEFAULT_ADMIN,
    as_json: JsonFlag = False,
) -> None:
    keys = sorted(key for key in ask(admin, "/get_all_keys").split("\n") if key and key.startswith(prefix))
    print(json.dumps(keys) if as_json else "\n".join(keys), end="\n" if keys or as_json else "")


def segments(admin: Admin = DEFAULT_ADMIN, as_json: JsonFlag = False) -> None:
    text = ask(admin, "/get_segments_detail")
    if as_json:
        print(text)
        return
    found = json.loads(text)
    rows = found.get("segments", found) if isinstance(found, dict) else found
    if not rows:
        print("no segments: no process gives memory; start one with `mooncake serve node`")
        return
    table = Table(*(str(name) for name in rows[0]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def status(admin: Admin = DEFAULT_ADMIN, as_json: JsonFlag = False) -> None:
    metrics = prom_text.parse(ask(admin, "/metrics"))
    used, capacity = (prom_text.value(metrics, name) for name in ("master_allocated_bytes", "master_total_capacity_bytes"))
    health = json.loads(ask(admin, "/health"))
    state = {
        "status": health.get("status"), "keys": int(prom_text.value(metrics, "master_key_count")), "used_bytes": int(used),
        "capacity_bytes": int(capacity), "segments": len(ask(admin, "/get_all_segments").split()),
    }  # fmt: skip
    if as_json:
        print(json.dumps(state))
    else:
        share = f" ({used / capacity:.0%})" if capacity else ""
        print(
            f"master at {admin}: {state['status']}, {state['keys']} keys, {bytes_text(used)} of {bytes_text(capacity)}{share} "
            f"in {state['segments']} segments"
        )


def add_to(app: typer.Typer) -> None:
    """Put these commands into the `mooncake` command."""
    app.add_typer(serve_app, name="serve")
    for command, text in (
        (status, "How the Store is: keys, bytes, segments."),
        (segments, "Who gives memory and disk, and how full they are."),
        (ls, "Keys there are."),
        (stat, "One object: its size, and where it is."),
        (get, "Copy an object to a file or standard output."),
        (put, "Copy a file or standard input to an object."),
        (rm, "Remove objects."),
    ):
        app.command(help=text, epilog=EXIT_TEXT)(command)
