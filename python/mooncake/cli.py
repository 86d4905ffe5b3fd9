"""The `mooncake` command: benchmark, topology, doctor, version; the Store's part is in cli_store.py."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mooncake import cli_store, cli_store_bench, cli_store_drain, cli_store_top
from mooncake.cli_bench import run_program

app = typer.Typer(
    name="mooncake",
    help="Mooncake in C: move tensors between processes and machines, keep them in a pool.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Measure.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
cli_store.add_to(app)
cli_store_top.add_to(app)
cli_store_drain.add_to(app)
cli_store_bench.add_to(bench_app)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]


@bench_app.command(
    "transfer",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Two processes, one link: transfer_engine_bench with all its options.",
)
def bench_transfer(context: typer.Context) -> None:
    run_program("transfer_engine_bench", context.args)


@app.command(help="NICs, and which of them are near which memory.")
def topology(
    device_name: Annotated[str, typer.Option(help="Comma list of devices to look at; none: all.")] = "",
    as_json: JsonFlag = False,
) -> None:
    from mooncake.engine import TransferEngine

    places: dict[str, Any] = json.loads(TransferEngine().get_local_topology(device_name or None))
    if as_json:
        print(json.dumps(places))
        return
    table = Table("memory", "near devices", "other devices")
    for place, (near, other) in sorted(places.items()):
        table.add_row(place, ", ".join(near) or "-", ", ".join(other) or "-")
    Console().print(table if places else "no RDMA devices: the engine uses TCP and shared memory")


@app.command(help="What of this machine keeps the engine from working well, and the fix. Exit status 1 when something fails.")
def doctor(
    device_name: Annotated[str, typer.Option(help="The device list that the engine would get.")] = "",
    peer: Annotated[str, typer.Option(help="A running engine, host:port: can it be reached from here?")] = "",
    as_json: JsonFlag = False,
) -> None:
    from dataclasses import asdict

    from mooncake.doctor import examine
    from mooncake.finding import FAIL, OK, Finding

    console = Console(stderr=True)
    with console.status("looking") if console.is_terminal else nullcontext():
        findings: list[Finding] = examine(device_name=device_name, peer=peer)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    elif Console().is_terminal:
        color = {"ok": "green", "warn": "yellow", "fail": "red"}
        table = Table("check", "", "found", "fix")
        for f in findings:
            table.add_row(f.name, f"[{color[f.status]}]{f.status}[/]", f.found, f.fix)
        Console().print(table)
    else:
        for f in findings:
            print(f"{f.status:4} {f.name}: {f.found}" + (f" | fix: {f.fix}" if f.status != OK else ""))
    raise typer.Exit(any(f.status == FAIL for f in findings))


@app.command(help="Versions of the package and the library.")
def version(as_json: JsonFlag = False) -> None:
    from mooncake import __version__, _mooncake

    if as_json:
        print(json.dumps({"package": __version__, "library": _mooncake.version()}))
    else:
        print(f"mooncake-c {__version__}, libmooncake {_mooncake.version()}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
