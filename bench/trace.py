"""bench trace: the share of a trace's prefix blocks that each eviction policy serves, by the size of the pool."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import svg, trace_gen
from bench.context import Context
from bench.pairs import BenchError
from bench.raw import program
from bench.report import Report, Table
from bench.targets import Bound, Verdict, limit_of

GENERATED, SEED = 12_000, 1  # requests
TEXTBOOK = ("LRU", "CLOCK", "SIEVE", "S3-FIFO", "ARC")
CLOSE, UPSTREAM_AT, UPSTREAM_FACTOR = 0.97, 10_000, 1.15


def run(ctx: Context) -> Report:
    report = Report("trace", "Eviction policies on request traces")
    ctx.progress.phase("trace: playing", max(1, len(ctx.files)))
    tool = program("trace_bench")
    groups: list[str] = []
    bars: list[list[float | None]] = []
    policies: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files = ctx.files
        if not files:
            files = [Path(folder) / "generated.jsonl"]
            trace_gen.write(str(files[0]), GENERATED, SEED)
            report.notes.append(f"A generated trace of {GENERATED} requests, seed {SEED}; ./run bench trace FILE plays yours.")
        for path in files:
            ctx.progress.step(path.name)
            found = play(tool, path)
            report.raw.append({"trace": path.stem, **found})
            report.tables.append(table(path.stem, found))
            if ctx.files:
                report.verdicts += verdicts(path.stem, found)
            policies = list(found["hit_share"])
            for i, size in enumerate(found["capacities"]):
                groups.append(f"{path.stem[:12]} {size:,}")
                bars.append([found["hit_share"][p][i] for p in policies])
    ctx.progress.clear()
    report.notes.append("A hit is a block that all blocks before it hit, too. No policy stores partial last blocks.")
    report.svg = svg.bars("Prefix hits by size of the pool, blocks", groups, policies, [svg.BarPanel("hit share", bars)])
    return report


def play(tool: Path, path: Path) -> dict[str, Any]:
    done = subprocess.run([str(tool), str(path)], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise BenchError(done.stderr.strip() or f"trace_bench: code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(name: str, found: dict[str, Any]) -> Table:
    sizes = [f"{size:,} ({size / found['blocks']:.1%})" for size in found["capacities"]]
    title = f"{name}: {found['requests']:,} requests, {found['refs']:,} blocks asked for, {found['blocks']:,} different"
    rows = [[policy, *(f"{share:.4f}" for share in shares)] for policy, shares in found["hit_share"].items()]
    return Table(title, ["policy", *sizes], rows)


def verdicts(name: str, found: dict[str, Any]) -> list[Verdict]:
    out, shares = [], found["hit_share"]
    best = Bound("ours", "hit share", ">=", CLOSE, ("the best of " + ", ".join(TEXTBOOK),))
    near = Bound("ours", "hit share", ">=", UPSTREAM_FACTOR, ("upstream",))
    for i, size in enumerate(found["capacities"]):
        case = f"{name}, {size:,} blocks"
        ours = shares["ours"][i]
        out.append(Verdict(case, best, ours, limit_of(best, [max(shares[p][i] for p in TEXTBOOK)])))
        if size == UPSTREAM_AT and "conversation" in name:
            out.append(Verdict(case, near, ours, limit_of(near, [shares["upstream"][i]])))
    return out

