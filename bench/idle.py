"""bench idle: what connected engines cost that do nothing, and what an occasional operation costs.

Idle: CPU of both ends after one checked transfer, and the wake-ups of the busiest thread (a timer shows here).
Paced: 4 KiB writes over TCP at 100 a second against a blocking C program; what pacing itself costs either program is
measured by the same loop without the operation, and subtracted.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.context import Context
from bench.pairs import BenchError, Impl, WorkerProcess
from bench.raw import Limits
from bench.report import Report, Table
from bench.stats import KIB, MIB, number_text, summarize
from bench.targets import IDLE_PERCENT, IDLE_WAKEUPS, OURS_TCP, PACED_CPU, PACED_RATE, RAW_TCP, judge

SETTLE_S = 1.5
PACED_METRICS = ("p50_us", "p99_us", "net_us")


def run(ctx: Context) -> Report:
    report = Report("idle", "Idle engines and occasional operations", notes=list(ctx.missing))
    _idle(ctx, report)
    _paced(ctx, report)
    ctx.progress.clear()
    return report


def _cpu_s(worker: WorkerProcess) -> float:
    return time.clock_gettime((~worker.pid << 3) | 2)


def _wakeups(worker: WorkerProcess) -> dict[str, int]:
    """Voluntary context switches of each thread: how often it went to sleep, so how often it was woken."""
    found = {}
    for task in Path(f"/proc/{worker.pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except FileNotFoundError:
            continue  # the thread ended meanwhile
        found[task.name] = int(text.split("voluntary_ctxt_switches:")[1].split()[0])
    return found


def _idle(ctx: Context, report: Report) -> None:
    secs = 2.0 if ctx.is_quick else 20.0
    table = Table(
        f"Idle for {secs:g} s",
        ["implementation", "CPU of both ends, % of a core", "wake-ups/s, busiest thread", "threads"],
        [],
    )
    impls = ctx.one_each()
    ctx.progress.phase("idle: nothing to do", len(impls))
    for impl in impls:
        ctx.progress.step(impl.name)
        try:
            percent, wakeups, threads = _idle_once(ctx, impl, secs)
        except BenchError as error:
            report.notes.append(f"FAIL {impl.name}: {error}")
            table.rows.append([impl.name, "FAIL", "FAIL", "-"])
            if impl.name == "ours":
                report.verdicts.append(judge("idle", IDLE_PERCENT, None, failure=f"FAIL {error}"))
            continue
        report.raw.append({"impl": impl.name, "percent": percent, "wakeups_s": wakeups, "threads": threads})
        table.rows.append([impl.name, number_text(percent), number_text(wakeups), str(threads)])
        if impl.name == "ours":
            report.verdicts.append(judge("idle", IDLE_PERCENT, percent))
            report.verdicts.append(judge("idle", IDLE_WAKEUPS, wakeups))
    report.tables.append(table)


def _idle_once(ctx: Context, impl: Impl, secs: float) -> tuple[float, float, int]:
    pair = ctx.open(impl, _raise, pool=64 * MIB)
    assert pair
    try:
        pair.verify()
        time.sleep(SETTLE_S)  # what a transfer leaves behind (spinning, closing lanes) is over
        cpu = [_cpu_s(w) for w in pair.workers]
        before = [_wakeups(w) for w in pair.workers]
        time.sleep(secs)
        percent = sum(_cpu_s(w) - c for w, c in zip(pair.workers, cpu)) / secs * 100
        after = [_wakeups(w) for w in pair.workers]
    finally:
        pair.close()
    busiest = max(new[t] - old.get(t, 0) for old, new in zip(before, after) for t in new)
    return percent, busiest / secs, sum(map(len, after))


def _raise(why: str) -> None:
    raise BenchError(why)


def _paced(ctx: Context, report: Report) -> None:
    secs = max(ctx.secs, 0.5 if ctx.is_quick else 4.0)
    impls = [i for i in ctx.columns() if i.is_network]
    limits = Limits(64 * MIB)
    rows: dict[str, list[dict]] = {name: [] for name in [*(i.name for i in impls), RAW_TCP]}
    failures: dict[str, str] = {}
    pairs = {}
    for impl in impls:

        def failed(why: str, name: str = impl.name) -> None:
            failures[name] = why

        pair = ctx.open(impl, failed, pool=64 * MIB)
        if pair:
            pair.pause()
            pairs[impl.name] = pair
    ctx.progress.phase(f"idle: 4 KiB at {PACED_RATE} operations/s", ctx.reps * len(rows))
    try:
        for rep in range(ctx.reps):
            for name in rows:
                ctx.progress.step(name)
                if name in failures:
                    continue
                try:
                    if name in pairs:
                        pairs[name].resume()
                        row = pairs[name].case("write", 4 * KIB, 1, 1, secs, rate=PACED_RATE)
                        pairs[name].pause()
                    else:
                        row = limits.run("tcp", secs, "-w", "-s", 4 * KIB, "-r", PACED_RATE)
                except BenchError as error:
                    failures[name] = str(error)
                    continue
                row["net_us"] = row["cpu_us_per_op"] - row["base_us_per_op"]
                rows[name].append(row)
                report.raw.append({"impl": name, "rep": rep, "rate": PACED_RATE, **row})
    finally:
        for pair in pairs.values():
            pair.close()
    _paced_table(report, rows, failures)


def _paced_table(report: Report, rows: dict[str, list[dict]], failures: dict[str, str]) -> None:
    header = ["implementation", "p50 us", "p99 us", "CPU us/op beyond pacing", "CPU us/op", "of it pacing"]
    table = Table(f"4 KiB writes over TCP, {PACED_RATE} a second; CPU of both ends, medians", header, [])
    found = {}
    for name, mine in rows.items():
        if name in failures:
            report.notes.append(f"FAIL {name} at {PACED_RATE}/s: {failures[name]}")
            table.rows.append([name, *["FAIL"] * 5])
            continue
        s = found[name] = summarize(mine, (*PACED_METRICS, "cpu_us_per_op", "base_us_per_op"))
        cells = [s[m] for m in (*PACED_METRICS, "cpu_us_per_op", "base_us_per_op")]
        table.rows.append([name, *map(number_text, cells)])
    report.tables.append(table)
    if OURS_TCP in rows:
        ours, raw = found.get(OURS_TCP), found.get(RAW_TCP)
        verdict = judge(
            f"4 KiB at {PACED_RATE}/s",
            PACED_CPU,
            ours["net_us"] if ours else None,
            raw["net_us"] if raw else None,
            failure=failures.get(OURS_TCP),
        )
        report.verdicts.append(verdict)
