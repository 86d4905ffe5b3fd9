"""`mooncake bench store`: a quick load on a running Store: put, get, exist, remove. For comparisons see ./run bench store."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mooncake._codes import OBJECT_NOT_FOUND
from mooncake.cli_store import DEFAULT_MASTER, EXIT_TEXT, JsonFlag, Master, Tenant, bytes_text, fail, open_store

_SIZE = re.compile(r"(\d+)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """64KB, 1MiB, 4096."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not 0 < (size := int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]) <= 1 << 34:
        raise typer.BadParameter(f"'{text}' is no size: a number of bytes up to 16 GiB, as 64KB, 1MB")
    return size


@dataclass
class Phase:
    """One kind of call, timed."""

    name: str
    bytes_each: int
    calls: list[float] = field(default_factory=list)
    objects: int = 0
    misses: int = 0
    errors: int = 0
    seconds: float = 0

    def take(self, call: Callable[[], list[int]]) -> None:
        """`call` gives a code for each object: below 0 it failed."""
        start = time.perf_counter()
        codes = call()
        self.calls.append(time.perf_counter() - start)
        self.seconds += self.calls[-1]
        self.objects += len(codes)
        self.misses += sum(code == OBJECT_NOT_FOUND for code in codes)
        self.errors += sum(code < 0 and code != OBJECT_NOT_FOUND for code in codes)

    def result(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.calls, n=100, method="inclusive") if len(self.calls) > 1 else self.calls * 99
        good = self.objects - self.misses - self.errors
        return {
            "phase": self.name, "calls": len(self.calls), "objects": self.objects, "misses": self.misses, "errors": self.errors,
            "objects_per_second": self.objects / self.seconds if self.seconds else 0,
            "bytes_per_second": good * self.bytes_each / self.seconds if self.seconds else 0,
            "p50_seconds": cuts[49] if cuts else None, "p99_seconds": cuts[98] if cuts else None,
        }  # fmt: skip


class Load:
    """Keys of one process, and memory that is registered for them."""

    def __init__(self, store: Any, size: int, batch: int, keys: int) -> None:
        self.store, self.size, self.batch = store, size, batch
        self.names = [f"bench/{os.getpid()}/{i}" for i in range(keys)]
        self.memory = mmap.mmap(-1, size * batch)
        for at in range(0, size * batch, 1 << 20):  # pages that are there, with something in them
            self.memory[at : at + (1 << 20)] = random.Random(at).randbytes(min(1 << 20, size * batch - at))
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        if store.register_buffer(self.base, size * batch) != 0:
            raise fail("the buffer cannot be registered")

    def places(self, n: int) -> tuple[list[int], list[int]]:
        return [self.base + i * self.size for i in range(n)], [self.size] * n

    def pieces(self) -> list[list[str]]:
        return [self.names[i : i + self.batch] for i in range(0, len(self.names), self.batch)]

    def put(self, keys: list[str]) -> list[int]:
        return self.store.batch_put_from(keys, *self.places(len(keys)))

    def get(self, keys: list[str]) -> list[int]:
        return self.store.batch_get_into(keys, *self.places(len(keys)))

    def exist(self, keys: list[str]) -> list[int]:
        return [OBJECT_NOT_FOUND if code == 0 else code for code in self.store.batch_is_exist(keys)]

    def remove(self, keys: list[str]) -> list[int]:
        return self.store.batch_remove(keys, True)


def measure(load: Load, rounds: int, seconds: float, progress: Progress) -> list[Phase]:
    put, get, exist, remove = Phase("put", load.size), Phase("get", load.size), Phase("exist", 0), Phase("remove", 0)
    pieces, dice = load.pieces(), random.Random(2)
    for number in range(rounds):
        suffix = f" {number + 1}/{rounds}" if rounds > 1 else ""
        for keys in progress.track(pieces, description=f"put{suffix}"):
            put.take(lambda keys=keys: load.put(keys))
        for phase, call in ((get, load.get), (exist, load.exist)):
            task = progress.add_task(f"{phase.name}{suffix}", total=seconds)
            start = time.perf_counter()
            while (now := time.perf_counter() - start) < seconds:
                progress.update(task, completed=now)
                phase.take(lambda call=call: call(dice.choice(pieces)))
            progress.update(task, completed=seconds)
        for keys in progress.track(pieces, description=f"remove{suffix}"):
            remove.take(lambda keys=keys: load.remove(keys))
    return [put, get, exist, remove]


def bench_store(
    size: Annotated[str, typer.Option(help="Bytes of an object, as 4096, 64KB, 1MB.")] = "64KB",
    keys: Annotated[int, typer.Option(min=1, max=10_000_000, help="Objects there are at one time.")] = 256,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Objects in one call.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.05, max=86400, help="Of get, and of exist, in each round.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000)] = 1,
    master: Master = DEFAULT_MASTER,
    tenant: Tenant = "default",
    as_json: JsonFlag = False,
) -> None:
    length = parse_size(size)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with open_store(master, tenant) as store, Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        phases = [phase.result() for phase in measure(Load(store, length, batch, keys), rounds, seconds, progress)]
    if as_json:
        print(json.dumps({"bytes": length, "keys": keys, "batch": batch, "rounds": rounds, "phases": phases}))
    else:
        table = Table("", "objects/s", "bytes/s", "p50 of a call", "p99", "missing", "failed")
        for one in phases:
            table.add_row(
                one["phase"], f"{one['objects_per_second']:.0f}", f"{bytes_text(one['bytes_per_second'])}/s" if one["bytes_per_second"] else "-",
                f"{one['p50_seconds'] * 1e6:.0f} us", f"{one['p99_seconds'] * 1e6:.0f} us", str(one["misses"]), str(one["errors"]),
            )  # fmt: skip
        Console().print(table)
    if any(one["errors"] for one in phases):
        raise fail("some calls failed; their codes are in the log of this process (MC_LOG_LEVEL=INFO)")


def add_to(bench_app: typer.Typer) -> None:
    text = "Put, get, look for and remove objects of a running Store; its own keys alone."
    bench_app.command("store", help=text, epilog=EXIT_TEXT)(bench_store)
