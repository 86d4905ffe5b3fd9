"""The Store's single figures: how fast it starts, the memory of empty services, the master alone over rpc."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from bench.context import Context
from bench.pairs import BenchError, Impl
from bench.raw import program
from bench.report import Report, Table
from bench.stats import MIB, number_text
from bench.store_column import Column, halt, launch, services_of
from bench.targets import (
    MASTER_COMMIT_P99, MASTER_COMMITS, MASTER_LOOKUP_P99, MASTER_LOOKUPS, OURS_SHM, OURS_TCP, STORE_MASTER_RSS, STORE_NODE_RSS,
    STORE_START, UPSTREAM, judge,
)  # fmt: skip

OBJECTS, OBJECTS_QUICK = (10_000, 1_000_000, 5_000_000), (10_000, 100_000)
COLUMNS = ("commits_per_s", "commit_batch_p99_us", "lookups_per_s", "lookup_batch_p99_us")
MASTER_S = 300
MB = 1e6


def resident(pid: int) -> dict[str, float]:
    """MB of a process: all that is resident, and how much of it is shared memory (a node's pool)."""
    with open(f"/proc/{pid}/status") as file:
        pairs = dict(line.split(":", 1) for line in file)
    return {name: int(pairs[name].split()[0]) * 1024 / MB for name in ("VmRSS", "RssShmem")}


@dataclass
class Alone:
    starts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # ms
    memory: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # of each service
    master: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def start_ms(self, column: str) -> float | None:
        return statistics.median(self.starts[column]) if self.starts.get(column) else None

    def fill(self, report: Report) -> None:
        report.notes += self.notes
        report.raw.append({"starts": self.starts, "memory": self.memory, "master": self.master})
        rows = [[name, number_text(statistics.median(ms)), f"{min(ms):.0f}-{max(ms):.0f}"] for name, ms in self.starts.items()]
        title = "From start of the services to the client's first checked object, median [range]"
        report.tables.append(Table(title, ["column", "ms", "range"], rows))
        if self.start_ms(OURS_TCP) is not None:
            report.verdicts.append(judge("start", STORE_START, self.start_ms(OURS_TCP), self.start_ms(UPSTREAM)))
        self._fill_memory(report)
        if self.master:
            self._fill_master(report)

    def _fill_memory(self, report: Report) -> None:
        rows = []
        for column, services in self.memory.items():
            for what, found in zip(("master", "node") if len(services) == 2 else ("server",), services):
                rows.append([column, what, number_text(found["VmRSS"]), number_text(found["RssShmem"])])
        report.tables.append(Table("Resident memory with no object, MB", ["column", "service", "RSS", "of it shared memory"], rows))
        if mine := self.memory.get(OURS_TCP):
            report.verdicts.append(judge("empty master", STORE_MASTER_RSS, mine[0]["VmRSS"]))
            report.verdicts.append(judge("empty node", STORE_NODE_RSS, mine[1]["VmRSS"] - mine[1]["RssShmem"]))

    def _fill_master(self, report: Report) -> None:
        found = self.master
        title = (f"The master alone: batches of {found['batch']} over rpc, keys of {found['key_bytes']} bytes; rates by its CPU time with "
                 f"{found['in_flight']} calls in flight, p99 of calls one after the other")  # fmt: skip
        rows = [[f"{size['objects']:,}", *(number_text(size[name]) for name in COLUMNS)] for size in found["sizes"]]
        report.tables.append(Table(title, ["objects", *(name.replace("_", " ") for name in COLUMNS)], rows))
        first = found["sizes"][0]
        for size in found["sizes"]:
            what = f"{size['objects']:,} objects"
            report.verdicts.append(judge(what, MASTER_LOOKUPS, size["lookups_per_s"]))
            report.verdicts.append(judge(what, MASTER_COMMITS, size["commits_per_s"]))
            if size is not first:
                for bound, name in ((MASTER_LOOKUP_P99, "lookup_batch_p99_us"), (MASTER_COMMIT_P99, "commit_batch_p99_us")):
                    report.verdicts.append(judge(what, bound, size[name], first[name]))


def _start(ctx: Context, impl: Impl, taken: set[int], found: Alone) -> None:
    column = Column(impl, ctx.logs, taken, pool=MIB)
    try:
        found.starts[impl.name].append(column.start_ms)
        found.memory.setdefault(impl.name, [resident(p.pid) for p in column.processes])
    finally:
        column.close()


def _master(ctx: Context, impl: Impl, taken: set[int]) -> dict[str, Any]:
    bench, service = program("master_bench"), services_of(impl, taken, ctx.logs)[0]
    process = launch(impl, service, ctx.logs / "store-master-alone.log")
    try:
        sizes = OBJECTS_QUICK if ctx.is_quick else OBJECTS
        argv = [str(bench), f"127.0.0.1:{service.port}", str(process.pid), *map(str, sizes)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=MASTER_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"master_bench: no end after {MASTER_S} s") from None
    finally:
        halt([process])
    if done.returncode != 0:
        raise BenchError(done.stderr.strip() or f"master_bench: code {done.returncode}")
    return json.loads(done.stdout)


def measure(ctx: Context, impls: list[Impl], taken: set[int]) -> Alone:
    """Before the others' processes are there."""
    found = Alone()
    chosen = [i for i in impls if not i.name.endswith("again") and i.name != OURS_SHM]
    ctx.logs.mkdir(parents=True, exist_ok=True)
    ctx.progress.phase("store: starting", ctx.reps * len(chosen))
    for _ in range(ctx.reps):
        for impl in chosen:
            ctx.progress.step(impl.name)
            try:
                _start(ctx, impl, taken, found)
            except BenchError as error:
                found.notes.append(f"start: {error}")
    ctx.progress.phase("store: the master alone", 1)
    for impl in (i for i in impls if i.name == OURS_TCP):
        ctx.progress.step("master_bench")
        try:
            found.master = _master(ctx, impl, taken)
        except BenchError as error:
            found.notes.append(f"master alone: {error}")
    return found
