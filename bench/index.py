"""bench index: the master's index alone on one core: lookups, commits, memory of an object, growth."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from bench.context import Context
from bench.pairs import BenchError
from bench.raw import program
from bench.report import Report, Table
from bench.targets import Bound, Verdict, limit_of

MILLION = 1_000_000
COLUMNS = ("commits_per_s", "commit_batch_p99_us", "lookups_per_s", "lookup_batch_p99_us", "bytes_beside_key", "peak_bytes_beside_key")
TARGETS = (
    Bound("ours", "lookups_per_s", ">=", offset=2e6),
    Bound("ours", "commits_per_s", ">=", offset=5e5),
    Bound("ours", "bytes_beside_key", "<=", offset=128),
    Bound("ours", "peak_bytes_beside_key", "<=", offset=256),
)


def run(ctx: Context) -> Report:
    report = Report("index", "The master's index, one core")
    ctx.progress.phase("index: growing", 1)
    ctx.progress.step("5,000,000 objects")
    done = subprocess.run([str(program("index_bench"))], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise BenchError(done.stderr.strip() or f"index_bench: code {done.returncode}")
    ctx.progress.clear()
    found: dict[str, Any] = json.loads(done.stdout)
    report.raw.append(found)
    title = f"Batches of {found['batch']}, keys of {found['key_bytes']} bytes, CPU time; an empty index has {found['empty_bytes']:,} bytes"
    rows = [[f"{size['objects']:,}", *(f"{size[name]:,.0f}" for name in COLUMNS)] for size in found["sizes"]]
    report.tables.append(Table(title, ["objects", *(name.replace("_", " ") for name in COLUMNS)], rows))
    for size in found["sizes"]:
        if MILLION <= size["objects"] < 2 * MILLION:
            report.verdicts += [Verdict("1,000,000 objects", b, size[b.metric], limit_of(b, [])) for b in TARGETS]
    return report
