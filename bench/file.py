"""bench file: a file as a segment ("file:///path"), 1 MiB O_DIRECT operations, against fio at the same depth.

Depth is threads with one operation each, for both: fio's io_uring job keeps that many in flight, and so do our threads.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench import fio
from bench.context import Context
from bench.pairs import BenchError, Impl, WorkerProcess
from bench.report import Report, Table
from bench.stats import MIB, Summary, number_text, summarize
from bench.targets import FILE_GBPS, Case, judge

BLOCK = MIB
DEPTHS = (1, 8)
COLUMNS = ("ours", "fio")

Rows = dict[tuple[Case, str], list[dict]]


def run(ctx: Context) -> Report:
    report = Report("file", "File segment, 1 MiB O_DIRECT", notes=list(ctx.missing))
    size = (256 if ctx.is_quick else 1024) * MIB
    path = ctx.results / f"file-{os.getpid()}.bin"
    has_fio = fio.has_fio()
    if not has_fio:
        report.notes.append(fio.MISSING)
    cases = [Case(op, BLOCK, 1, depth) for depth in DEPTHS for op in ("write", "read")]
    rows: Rows = {(case, name): [] for case in cases for name in COLUMNS}
    ctx.results.mkdir(parents=True, exist_ok=True)
    try:
        fio.create(path, size)
        failure = _measure_all(ctx, path, size, has_fio, rows)
    finally:
        path.unlink(missing_ok=True)
    ctx.progress.clear()
    if failure:
        report.notes.append(f"FAIL ours: {failure}")
    table = Table("GB/s (p50 us; CPU s/GB), medians", ["case", *COLUMNS, "verdict"], [])
    for case in cases:
        what = f"{case.op} 1 MiB, depth {case.threads}"
        found = [_summary(rows[case, name]) for name in COLUMNS]
        ours, limit = (s["GBps"] if s else None for s in found)
        verdict = judge(what, FILE_GBPS, ours, limit, failure=f"FAIL {failure}" if failure else None)
        if ctx.ours:
            report.verdicts.append(verdict)
        table.rows.append([what, *map(_cell, found), verdict.outcome if ctx.ours else "-"])
        report.raw += [{"case": what, "column": name, **row} for name in COLUMNS for row in rows[case, name]]
    report.tables.append(table)
    return report


def _summary(rows: list[dict]) -> Summary | None:
    return summarize(rows, ("GBps", "p50_us", "cpu_s_per_GB")) if rows else None


def _cell(s: Summary | None) -> str:
    return f"{number_text(s['GBps'])} ({s['p50_us']:.0f}; {number_text(s['cpu_s_per_GB'])})" if s else "-"


def _measure_all(ctx: Context, path: Path, size: int, has_fio: bool, rows: Rows) -> str | None:
    """Fill the rows; returns why ours failed, if it did."""
    secs = ctx.secs if ctx.is_quick else max(ctx.secs, 2.0)
    cases = list(dict.fromkeys(case for case, _ in rows))
    worker, failure = _open(ctx, ctx.ours, path, size) if ctx.ours else (None, None)
    ctx.progress.phase("file: measuring", ctx.reps * len(cases))
    try:
        for rep in range(ctx.reps):
            for case in cases:
                ctx.progress.step(f"{rep + 1}/{ctx.reps} {case}")
                if worker and not failure:
                    try:
                        rows[case, "ours"].append(_measure(worker, case, secs))
                    except BenchError as error:
                        failure = str(error)
                if has_fio:
                    runtime = f"--runtime={max(secs, 0.1):g}"
                    rows[case, "fio"].append(fio.measure(path, size, case.op, BLOCK, case.threads, runtime, "--time_based"))
    finally:
        if worker:
            worker.stop()
    return failure


def _open(ctx: Context, python: str, path: Path, size: int) -> tuple[WorkerProcess | None, str | None]:
    """An engine that knows the file as its peer, after a check that what it writes is what the file holds."""
    worker = WorkerProcess(Impl("ours", python), "file", ctx.logs)
    try:
        worker.call("open", role="initiator", host="127.0.0.1", device="", protocol="tcp", alloc="managed", pool=size)
        worker.call("connect", peer={"name": f"file://{path}", "addr": 0})
        worker.call("fill", off=0, len=BLOCK, seed=5)
        rc = worker.call("once", op="write", block=BLOCK, batch=1)["rc"]
        if rc != 0:
            raise BenchError(f"a write to the file returned {rc}")
        before = worker.call("hash", off=0, len=BLOCK)
        worker.call("fill", off=0, len=BLOCK, seed=6)
        rc = worker.call("once", op="read", block=BLOCK, batch=1)["rc"]
        if rc != 0 or worker.call("hash", off=0, len=BLOCK) != before:
            raise BenchError(f"reading back what was written returned {rc}, or other bytes")
    except BenchError as error:
        return worker, str(error)
    return worker, None


def _measure(worker: WorkerProcess, case: Case, secs: float) -> dict:
    row = worker.call("case", 60 + 4 * secs, **case._asdict(), secs=secs)
    if row["err"] or not row["ops"]:
        raise BenchError(f"{row['err']} of {row['ops']} operations failed")
    return row
