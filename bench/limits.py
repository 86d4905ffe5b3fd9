"""bench limits: the raw programs alone, to know a machine."""

from __future__ import annotations

from collections import defaultdict

from bench.context import Context
from bench.pairs import BenchError
from bench.raw import Limits
from bench.report import Report, Table
from bench.stats import KIB, METRICS, MIB, number_text, summarize
from bench.targets import UNITS

TESTS: tuple[tuple[str, tuple[object, ...]], ...] = (
    *(("memcpy", ("-s", MIB, *c)) for c in ((), ("-c",))),
    *(("memfd", ("-s", size, *w)) for size in (64 * KIB, MIB, 16 * MIB) for w in ((), ("-w",))),
    *(("process_vm", ("-s", size, *w)) for size in (4 * KIB, MIB) for w in ((), ("-w",))),
    *(("tcp", ("-s", size, *w)) for size in (4 * KIB, MIB) for w in ((), ("-w",))),
    *(("tcp", ("-s", 16 * MIB, "-n", n)) for n in (1, 2, 4)),
    *(("tcp", ("-s", 64 * KIB, "-b", 128, "-n", n)) for n in (1, 2, 4)),
    *(("pingpong", ("-s", 64, *s)) for s in ((), ("-S",))),
)


def run(ctx: Context) -> Report:
    report = Report("limits", "Raw limits of this machine")
    limits = Limits(ctx.pool)
    rows = defaultdict(list)
    ctx.progress.phase("limits: measuring", ctx.reps * len(TESTS))
    for _ in range(ctx.reps):
        for test, arguments in TESTS:
            name = " ".join(str(a) for a in (test, *arguments))
            ctx.progress.step(name)
            try:
                rows[name].append(limits.run(test, ctx.secs, *arguments))
            except BenchError as error:
                report.notes.append(f"{name}: {error}")
    ctx.progress.clear()
    table = Table("Medians", ["limits ...", *(UNITS[m] for m in METRICS)], [])
    for name, found in rows.items():
        summary = summarize(found)
        table.rows.append([name, *(number_text(summary[m]) for m in METRICS)])
        report.raw += [{"test": name, **row} for row in found]
    report.tables.append(table)
    return report
