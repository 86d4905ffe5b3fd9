"""bench store: the Store beside upstream's wheel, Redis and memcached, interleaved in one run.

Each column is its services (master and node, or one server) and one Python client, all on loopback; while another column
is measured they are stopped. `ours tcp` moves bytes over TCP as between two machines, `ours shm` as on one. CPU is that of
all processes of a column. `memfd nt` is what a C program does that only copies as many bytes from or to memory shared with
another process, past the cache. `get_into cold` reads each object once, so its place is asked for; `get_into` read them all
before. `put` and `get` take and give bytes objects, the others the caller's registered memory. What checksums cost is told
by a build of ours without them.
"""

from __future__ import annotations

import shutil
import signal
from collections import defaultdict

from bench import store_alone, svg
from bench.context import TCP_ONLY, Context
from bench.pairs import BenchError, Impl
from bench.raw import Limits
from bench.report import Report, Table
from bench.stats import KIB, MIB, Summary, number_text, spread, summarize
from bench.store_column import Column
from bench.targets import (
    CHECKSUMS, GBPS, GET_COLD, GET_INTO, MEMCACHED, MEMFD, OURS_SHM, OURS_TCP, PUT_FROM, REDIS, STORE, UNCHECKED, UPSTREAM, StoreCase,
    Verdict, judge,
)  # fmt: skip

CASES = tuple(StoreCase(op, *shape) for shape in (
    (4 * KIB, 1), (64 * KIB, 1), (MIB, 1), (16 * MIB, 1), (4 * KIB, 100), (64 * KIB, 32), (MIB, 16),
) for op in (PUT_FROM, GET_INTO)) + (
    StoreCase("put", 4 * KIB, 1), StoreCase("get", 4 * KIB, 1), StoreCase("put", 64 * KIB, 1), StoreCase("get", 64 * KIB, 1),
    StoreCase(GET_COLD, 4 * KIB, 1), StoreCase(GET_COLD, MIB, 1), StoreCase("exist", 64, 1), StoreCase("exist", 64, 100),
)  # fmt: skip
QUICK = tuple(c for c in CASES if c.size in (64, 4 * KIB, MIB))
METRICS = {"GBps": "GB/s", "keys_s": "keys/s", "p50_us": "p50 us", "p99_us": "p99 us", "cpu_us_per_key": "CPU us/key"}
AGAIN = " again"


def columns_of(ctx: Context, report: Report) -> list[Impl]:
    script = "store_worker.py"
    impls = []
    if ctx.ours:
        impls.append(Impl(OURS_TCP, ctx.ours, env=TCP_ONLY, script=script))
        impls.append(Impl(OURS_SHM, ctx.ours, script=script))
    if ctx.upstream:
        impls.append(Impl(UPSTREAM, ctx.upstream, env={"MC_STORE_MEMCPY": "0"}, script=script))
    for name, program in ((REDIS, "redis-server"), (MEMCACHED, "memcached")):
        if shutil.which(program):
            impls.append(Impl(name, "python3", backend=name, script=script))
        else:
            report.notes.append(f"{program} is not installed: its column is missing.")
    if ctx.ours:
        impls.append(impls[0].named(OURS_TCP + AGAIN))
    return impls


def unchecked_of(ctx: Context) -> list[Impl]:
    """Ours without CRCs; only the cases of CHECKSUMS."""
    if not ctx.ours or not ctx.unchecked:
        return []
    tcp = Impl(OURS_TCP + UNCHECKED, ctx.unchecked, env=TCP_ONLY, script="store_worker.py")
    return [tcp, Impl(OURS_SHM + UNCHECKED, ctx.unchecked, script="store_worker.py")]


def run(ctx: Context) -> Report:
    report = Report("store", "The Store: objects between a client, a master and a node on one host", notes=list(ctx.missing))
    cases = QUICK if ctx.is_quick else CASES
    rows: dict[tuple[StoreCase, str], list[dict]] = defaultdict(list)
    failures: dict[str, str] = {}
    columns: dict[str, Column] = {}
    taken: set[int] = set()
    impls = columns_of(ctx, report)
    alone = store_alone.measure(ctx, impls, taken)
    started = [*impls, *unchecked_of(ctx)]
    try:
        ctx.progress.phase("store: starting, checking data, filling the pools once", len(started))
        for impl in started:
            ctx.progress.step(impl.name)
            try:
                columns[impl.name] = Column(impl, ctx.logs, taken)
                columns[impl.name].check()
                if not ctx.is_quick:
                    columns[impl.name].warm()
            except BenchError as error:
                failures[impl.name] = str(error)
            if impl.name in columns:
                columns[impl.name].signal(signal.SIGSTOP)
        _measure(ctx, cases, columns, rows, failures)
    finally:
        for column in columns.values():
            column.close()
    ctx.progress.clear()
    _fill(report, cases, [*(i.name for i in impls), MEMFD], rows, failures)
    alone.fill(report)
    return report


def _copy_limit(limits: Limits, case: StoreCase, secs: float) -> dict:
    """The bytes of a case copied by a C program, as a row of a column."""
    row = limits.run("memfd", secs, "-s", case.size, "-b", case.batch, *(["-w"] if "put" in case.op else []))
    return {**row, "keys_s": row["GBps"] * 1e9 / case.size, "cpu_us_per_key": row["cpu_us_per_op"] / case.batch}


def _measure(ctx: Context, cases, columns: dict[str, Column], rows, failures: dict[str, str]) -> None:
    limits = Limits(ctx.pool)
    checked = {case for case, _ in CHECKSUMS}
    ctx.progress.phase("store: measuring", ctx.reps * len(cases) * (len(columns) + 1))
    for rep in range(ctx.reps):
        for case in cases:
            for name in columns if rep % 2 == 0 else reversed(columns):
                ctx.progress.step(f"{rep + 1}/{ctx.reps} {case}: {name}")
                if name in failures or (name.endswith(UNCHECKED) and case not in checked):
                    continue
                columns[name].signal(signal.SIGCONT)
                try:
                    rows[case, name].append({"rep": rep, **columns[name].case(case, ctx.secs)})
                except BenchError as error:
                    failures[name] = f"{case}: {error}"
                columns[name].signal(signal.SIGSTOP)
            ctx.progress.step(f"{rep + 1}/{ctx.reps} {case}: {MEMFD}")
            if case.op != "exist":
                rows[case, MEMFD].append({"rep": rep, **_copy_limit(limits, case, ctx.secs)})


def _fill(report: Report, cases, columns: list[str], rows, failures: dict[str, str]) -> None:
    found: dict[tuple[StoreCase, str], Summary] = {
        key: summarize(some, (*METRICS, "cpu_s_per_GB")) for key, some in rows.items() if some
    }

    def figure(case: StoreCase, column: str, metric: str) -> float | None:
        s = found.get((case, column))
        return s[metric] if s else None

    for case in cases:
        for bound in STORE.get(case, []):
            references = [figure(case, name, bound.metric) for name in bound.references]
            value = figure(case, bound.column, bound.metric)
            report.verdicts.append(judge(str(case), bound, value, *references, failure=failures.get(bound.column)))
    for metric, unit in METRICS.items():
        table = Table(f"{unit}, median [range over the repetitions]", ["case", *columns, "verdict"], [])
        for case in cases:
            mine = [v for v in report.verdicts if v.what == str(case) and v.bound.metric == metric]
            cells = [_cell(found.get((case, name)), metric) for name in columns]
            table.rows.append([str(case), *cells, _verdict(mine)])
        report.tables.append(table)
    if any(name.endswith(UNCHECKED) for _, name in found):
        _fill_checksums(report, figure, failures)
    report.notes += [f"FAIL {name}: {why}" for name, why in failures.items()]
    report.notes += _noise(cases, found)
    report.raw = [{"case": list(case), "column": name, **row} for (case, name), some in rows.items() for row in some]
    shown = [name for name in columns if not name.endswith(AGAIN)]
    panels = [
        svg.BarPanel(METRICS[m], [[figure(case, name, m) for name in shown] for case in cases])
        for m in ("keys_s", "p50_us", "cpu_us_per_key")
    ]
    report.svg = svg.bars(report.title, [str(c) for c in cases], shown, panels)


def _fill_checksums(report: Report, figure, failures: dict[str, str]) -> None:
    table = Table("Checksums: GB/s with CRCs and without", ["case", "column", "with", "without"], [])
    for case, bound in CHECKSUMS:
        with_crc, without = figure(case, bound.column, GBPS), figure(case, bound.references[0], GBPS)
        table.rows.append([str(case), bound.column, *(number_text(x) if x else "-" for x in (with_crc, without))])
        report.verdicts.append(judge(str(case), bound, with_crc, without, failure=failures.get(bound.column)))
    report.tables.append(table)


def _cell(s: Summary | None, metric: str) -> str:
    if not s:
        return "-"
    many = f" [{number_text(s.low[metric])}-{number_text(s.high[metric])}]" if s.count > 1 else ""
    return number_text(s[metric]) + many


def _verdict(verdicts: list[Verdict]) -> str:
    bad = [f"{v.outcome}: {v.bound.column} {v.bound}" for v in verdicts if v.outcome != "pass"]
    return "; ".join(bad) if bad else "pass" if verdicts else "-"


def _noise(cases, found: dict[tuple[StoreCase, str], Summary]) -> list[str]:
    """How far two columns of the same thing lie apart."""
    both = [(found[c, OURS_TCP], found[c, OURS_TCP + AGAIN]) for c in cases if {(c, OURS_TCP), (c, OURS_TCP + AGAIN)} <= set(found)]
    parts = [f"{unit} {s}" for m, unit in METRICS.items() if (s := spread([b[m] / a[m] for a, b in both]))]
    return [f"A/A ({OURS_TCP + AGAIN} / {OURS_TCP}), geometric mean [range over the cases]: {', '.join(parts)}."] if parts else []
