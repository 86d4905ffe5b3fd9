"""bench ssd: the SSD tier's log: objects put and got at a depth, against fio's writes and reads of that size and depth.

An object counts as put when it is durable, so fio is asked twice: as the raw limit of the disk, over a file that was
written before and without a sync, and for a new file with blocks and a sync after each round of the depth.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench import fio
from bench.context import Context
from bench.pairs import BenchError
from bench.raw import program
from bench.report import Report, Table
from bench.stats import KIB, MIB, Summary, number_text, size_text, summarize
from bench.targets import FILE_GBPS, SSD_OPEN, judge

DEPTH = 32
SIZES = (MIB, 64 * KIB)
OPENED = ((4 * KIB, 200_000), (64 * KIB, 60_000))  # bytes and number of objects
COLUMNS = ("ours", "fio", "fio synced")
METRICS = ("GBps", "cpu_s_per_GB")

Rows = dict[tuple[str, int, str], list[dict]]  # write or read, bytes of an object, column


def run(ctx: Context) -> Report:
    report = Report("ssd", f"SSD tier, {DEPTH} objects at a time, O_DIRECT")
    total = (128 if ctx.is_quick else 1024) * MIB
    path = ctx.results / f"ssd-{os.getpid()}"
    has_fio = fio.has_fio()
    if not has_fio:
        report.notes.append(fio.MISSING)
    rows: Rows = {(op, size, name): [] for op in ("write", "read") for size in SIZES for name in COLUMNS}
    ctx.results.mkdir(parents=True, exist_ok=True)
    ctx.progress.phase("ssd: measuring", ctx.reps * len(SIZES))
    try:
        if has_fio:
            fio.create(path.with_suffix(".fio"), total)
        for rep in range(ctx.reps):
            for size in SIZES:
                ctx.progress.step(f"{rep + 1}/{ctx.reps} {size_text(size)}")
                _measure(path, total, size, has_fio, rows)
        report.tables.append(_speeds(report, rows))
        report.tables.append(_openings(ctx, report, path))
    finally:
        shutil.rmtree(path, ignore_errors=True)
        for suffix in (".fio", ".new"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        ctx.progress.clear()
    return report


def _measure(path: Path, total: int, size: int, has_fio: bool, rows: Rows) -> None:
    if has_fio:
        written, new = path.with_suffix(".fio"), path.with_suffix(".new")
        synced = ("--fallocate=native", f"--fdatasync={DEPTH}")
        new.unlink(missing_ok=True)
        rows["write", size, "fio"].append(fio.measure(written, total, "write", size, DEPTH))
        rows["write", size, "fio synced"].append(fio.measure(new, total, "write", size, DEPTH, *synced))
        rows["read", size, "fio"].append(fio.measure(written, total, "read", size, DEPTH))
    found = _log(path, total // size, size)
    for op, name in (("write", "put"), ("read", "get")):
        cpu = found[f"{name}_cpu_s"] / (total / 1e9)
        rows[op, size, "ours"].append({"GBps": found[f"{name}_GBps"], "cpu_s_per_GB": cpu, "others": 0.0})


def _log(path: Path, objects: int, size: int) -> dict:
    shutil.rmtree(path, ignore_errors=True)
    argv = [str(program("log_bench")), str(path), str(objects), str(size), str(DEPTH)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    shutil.rmtree(path, ignore_errors=True)
    if done.returncode != 0:
        raise BenchError(done.stderr.strip()[-300:] or f"log_bench: code {done.returncode}")
    return json.loads(done.stdout)


def _summary(rows: list[dict]) -> Summary | None:
    return summarize(rows, METRICS) if rows else None


def _speeds(report: Report, rows: Rows) -> Table:
    table = Table("GB/s (CPU s/GB), medians", ["case", *COLUMNS, "verdict"], [])
    for op in ("write", "read"):
        for size in SIZES:
            what = f"{op} {size_text(size)}"
            found = [_summary(rows[op, size, name]) for name in COLUMNS]
            ours, limit = (s["GBps"] if s else None for s in found[:2])
            verdict = judge(what, FILE_GBPS, ours, limit)
            report.verdicts.append(verdict)
            cells = [f"{number_text(s['GBps'])} ({number_text(s['cpu_s_per_GB'])})" if s else "-" for s in found]
            table.rows.append([what, *cells, verdict.outcome])
            report.raw += [{"case": what, "column": name, **row} for name in COLUMNS for row in rows[op, size, name]]
    return table


def _openings(ctx: Context, report: Report, path: Path) -> Table:
    table = Table("Opening, seconds", ["objects", "by the checkpoint", "without one"], [])
    ctx.progress.phase("ssd: opening", len(OPENED))
    for size, objects in OPENED:
        ctx.progress.step(f"objects of {size_text(size)}")
        objects //= 10 if ctx.is_quick else 1
        found = _log(path, objects, size)
        report.raw.append({"case": f"open {size_text(size)}", **found})
        table.rows.append([f"{objects:,} of {size_text(size)}", *(number_text(found[k]) for k in ("open_s", "walk_s"))])
        for how, key in (("by the checkpoint", "open_s"), ("without one", "walk_s")):
            million = found[key] * 1e6 / objects
            report.verdicts.append(judge(f"open, {size_text(size)}, {how}", SSD_OPEN, million))
    return table
