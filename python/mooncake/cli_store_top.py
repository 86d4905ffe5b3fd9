"""`mooncake top`: what a Store does right now, between two looks at its master."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mooncake import prom_text
from mooncake.cli_store import DEFAULT_ADMIN, EXIT_TEXT, Admin, JsonFlag, ask, bytes_text

LATENCY = "master_rpc_latency_seconds"
RATES = {
    "lookups": "total_get_nums_", "hits": "valid_get_nums_", "hit_bytes": ("mem_cache_hit_bytes_total", "file_cache_hit_bytes_total"),
    "puts": "master_value_size_bytes_count", "put_bytes": "master_value_size_bytes_sum", "evictions": "master_evicted_key_count",
}  # fmt: skip


def look(admin: str) -> tuple[float, prom_text.Samples]:
    return time.monotonic(), prom_text.parse(ask(admin, "/metrics"))


def _sum(samples: prom_text.Samples, names: str | tuple[str, ...]) -> float:
    return sum(prom_text.value(samples, name) for name in ([names] if isinstance(names, str) else names))


def between(was: tuple[float, prom_text.Samples], now: tuple[float, prom_text.Samples], nodes: dict[str, Any]) -> dict[str, Any]:
    """Levels of the second look, rates between the two."""
    seconds, before, after = now[0] - was[0], was[1], now[1]
    rates = {name: (_sum(after, of) - _sum(before, of)) / seconds for name, of in RATES.items()}
    rpcs = {}
    for rpc in prom_text.label_values(after, "master_rpc_requests_total", "rpc"):
        calls = sum(sign * prom_text.value(of, "master_rpc_requests_total", rpc=rpc) for sign, of in ((1, after), (-1, before))) / seconds
        quantiles = {f"p{round(q * 100)}_seconds": prom_text.quantile(before, after, LATENCY, q, rpc=rpc) for q in (0.5, 0.99)}
        if calls:
            rpcs[rpc] = {"calls_per_second": calls} | {name: x if x != float("inf") else None for name, x in quantiles.items()}
    return {
        "epoch": nodes["epoch"], "recovering": nodes["recovering"], "up_ms": nodes["up_ms"],
        "keys": int(_sum(after, "master_key_count")),
        "used_bytes": int(_sum(after, "master_allocated_bytes")), "capacity_bytes": int(_sum(after, "master_total_capacity_bytes")),
        "disk_used_bytes": int(_sum(after, "master_allocated_file_size_bytes")),
        "disk_capacity_bytes": int(_sum(after, "master_total_file_capacity_bytes")),
        "hit_rate": rates["hits"] / rates["lookups"] if rates["lookups"] else None,
        "per_second": rates, "rpcs": rpcs, "nodes": nodes["nodes"],
    }  # fmt: skip


def _share(used: int, capacity: int) -> str:
    return f"{bytes_text(used)} of {bytes_text(capacity)} ({used / capacity:.0%})" if capacity else "-"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def shown(state: dict[str, Any]) -> Group:
    rate = state["per_second"]
    hits = "-" if state["hit_rate"] is None else f"{state['hit_rate']:.1%}"
    lines = (
        f"epoch {state['epoch']}{', recovering' if state['recovering'] else ''}, up {state['up_ms'] / 1000:.0f} s; {state['keys']} keys; "
        f"memory {_share(state['used_bytes'], state['capacity_bytes'])}; disk {_share(state['disk_used_bytes'], state['disk_capacity_bytes'])}\n"
        f"{rate['lookups']:.0f} looked up/s, {hits} found ({bytes_text(rate['hit_bytes'])}/s); {rate['puts']:.0f} put/s "
        f"({bytes_text(rate['put_bytes'])}/s); {rate['evictions']:.0f} evicted/s"
    )
    calls = Table("rpc", "calls/s", "p50 up to", "p99 up to", box=None)
    for name, rpc in state["rpcs"].items():
        calls.add_row(name, f"{rpc['calls_per_second']:.0f}", _time(rpc["p50_seconds"]), _time(rpc["p99_seconds"]))
    nodes = Table("segment", "state", "memory", "disk", "objects", "silent", box=None)
    for node in state["nodes"]:
        nodes.add_row(
            node["name"], Text(node["state"], style="green" if node["state"] == "ok" else "red"), _share(node["used"], node["capacity"]),
            _share(node["disk_used"], node["disk_capacity"]), str(node["objects"]), f"{node['silent_ms'] / 1000:.1f} s",
        )  # fmt: skip
    return Group(Text(lines), Text(), nodes, Text(), calls)


def top(
    admin: Admin = DEFAULT_ADMIN,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Two looks, then end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    console = Console()
    was = look(admin)
    live = Live(console=console, auto_refresh=False, screen=console.is_terminal) if not once and not as_json else None
    try:
        if live:
            live.start()
        while True:
            time.sleep(every)
            now = look(admin)
            state = between(was, now, json.loads(ask(admin, "/api/v1/nodes")))
            was = now
            if as_json:
                print(json.dumps(state), flush=True)
            elif live:
                live.update(shown(state), refresh=True)
            else:
                console.print(shown(state))
            if once:
                return
    except KeyboardInterrupt:
        sys.exit(0)  # that is how one leaves it
    finally:
        if live:
            live.stop()


def add_to(app: typer.Typer) -> None:
    app.command(help="What the Store does right now: rates, latencies, nodes; until Ctrl-C.", epilog=EXIT_TEXT)(top)
