"""bench ep: dispatch and combine of expert parallelism, ours and composed from Gloo's all_to_all, beside plain copies."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench import svg
from bench.coll import Column, Pythons, ratio, readers, workplace
from bench.context import Context
from bench.pairs import HERE, BenchError
from bench.report import Report, Table
from bench.stats import number_text, spread
from bench.targets import P50, Bound, judge

OURS, ZERO, FP8, AGAIN, GLOO, COPIES = "ours", "ours zero-copy", "ours fp8", "ours again", "gloo", "copies"
WHAT = {OURS: "bf16", ZERO: "zero", FP8: "fp8", AGAIN: "bf16", COPIES: "copies"}
CPU = "cpu_us"


class Case(NamedTuple):
    tokens: int
    hidden: int
    topk: int
    experts: int
    ranks: int

    def __str__(self) -> str:
        return f"{self.tokens} x {self.hidden}, top-{self.topk} of {self.experts}, {self.ranks} ranks"

    @property
    def bytes(self) -> int:
        """Rows of a rank's tokens to their experts and back."""
        return 2 * self.tokens * self.topk * self.hidden * 2


def cases(is_quick: bool) -> list[Case]:
    if is_quick:
        return [Case(16, 512, 8, 64, 2)]
    return [Case(128, 7168, 8, 64, 2), Case(8, 7168, 8, 64, 2), Case(128, 2048, 8, 64, 2), Case(128, 7168, 8, 64, 4)]


def run_one(column: Column, what: str, case: Case, secs: float) -> dict[str, float]:
    """The slower rank's times and the mean CPU of a rank, in microseconds."""
    count = max(5, min(300, int(secs * 2e9 / max(case.bytes, 1 << 20))))
    shape = f"{case.tokens} {case.hidden} {case.topk} {case.experts}"
    rows = [[int(x) / 1000 for x in line.split()] for line in column.tell(f"run {what} {shape} {count}")]
    out = dict(zip(("min_us", P50, "p99_us"), (max(values) for values in zip(*(row[:3] for row in rows)))))
    return out | {CPU: statistics.mean(row[3] for row in rows)}


def open_columns(makers: Pythons, ranks: int) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, library in ((OURS, "mooncake-cpu"), (GLOO, "gloo")):
        if not makers.python or (name == OURS and not makers.has_ours):
            continue
        home = tempfile.mkdtemp(dir=makers.folder)
        argvs = [[makers.python, "-P", str(HERE / "ep_worker.py"), library, "SOCKET", str(r), str(ranks), home] for r in range(ranks)]
        env = {**os.environ, "PYTHONPATH": str(makers.package), "GLOO_SOCKET_IFNAME": "lo"}
        try:
            columns[name] = Column(name, ranks, makers.folder, argvs, env, makers.log)
        except BenchError as error:
            makers.missed(error)
    return columns


def measure(ctx: Context, makers: Pythons, wanted: list[Case], rows: dict[tuple[Case, str], list[dict[str, float]]]) -> None:
    names = (OURS, ZERO, FP8, GLOO, AGAIN, COPIES)
    ctx.progress.phase("ep: measuring", ctx.reps * len(wanted))
    for ranks in sorted({case.ranks for case in wanted}):
        columns = open_columns(makers, ranks)
        try:
            for rep in range(ctx.reps):
                for case in (c for c in wanted if c.ranks == ranks):
                    ctx.progress.step(str(case))
                    for name in names if rep % 2 == 0 else names[::-1]:
                        column = columns.get(GLOO if name == GLOO else OURS)
                        if column:
                            found = run_one(column, WHAT.get(name, "bf16"), case, ctx.secs)
                            rows.setdefault((case, name), []).append(found)
        finally:
            for column in columns.values():
                column.close()
    ctx.progress.clear()


def tell(report: Report, wanted: list[Case], rows: dict[tuple[Case, str], list[dict[str, float]]]) -> None:
    present = [n for n in (OURS, ZERO, FP8, GLOO, COPIES) if any(name == n for _, name in rows)]
    median, cell = readers(rows)
    noise = spread([b / a for c in wanted if (a := median(c, OURS)) and (b := median(c, AGAIN))])
    if noise:
        report.notes.append(f"A/A ({AGAIN} / {OURS}), p50, geometric mean [range over the cases]: {noise}.")
    title = "Microseconds of a dispatch and a combine, the slower rank's min / p50 / p99, medians of the repetitions; ratio of p50"
    report.tables.append(Table(title, ["case", *present, f"{GLOO} / {OURS}"],
                               [[str(c), *(cell(c, n) for n in present), ratio(median(c, GLOO), median(c, OURS))] for c in wanted]))  # fmt: skip
    cpu = [[str(c), *(number_text((median(c, n, CPU) or 0) * 1000 / c.bytes) if (c, n) in rows else "-" for n in present),
            ratio(median(c, OURS, CPU), median(c, COPIES, CPU))] for c in wanted]  # fmt: skip
    report.tables.append(Table("CPU of a rank, ns for each byte of rows (bf16) there and back", ["case", *present, f"{OURS} / {COPIES}"], cpu))
    first = wanted[0]
    report.verdicts.append(judge(str(first), Bound(OURS, P50, "<=", 0.2, (GLOO,)), median(first, OURS), median(first, GLOO)))
    report.verdicts.append(judge(str(first), Bound(OURS, CPU, "<=", 2, (COPIES,)), median(first, OURS, CPU), median(first, COPIES, CPU)))
    report.raw += [{"case": str(case), "column": name, "repetitions": found} for (case, name), found in rows.items()]
    bars = [[median(c, n) for n in present] for c in wanted]
    report.svg = svg.bars("Dispatch and combine on one host", [str(c) for c in wanted], present, [svg.BarPanel("p50, microseconds", bars)])


def run(ctx: Context) -> Report:
    report = Report("ep", "Expert parallelism on one host")
    rows: dict[tuple[Case, str], list[dict[str, float]]] = {}
    wanted = cases(ctx.is_quick)
    with workplace() as folder:
        makers = Pythons(ctx, Path(folder), report)
        try:
            measure(ctx, makers, wanted, rows)
        finally:
            makers.log.close()
    if rows:
        tell(report, wanted, rows)
    cores = len(os.sched_getaffinity(0))
    report.notes.append(f"Ranks pinned, one after the other, to {cores} cores, one thread each; what the experts compute is not measured.")
    report.notes.append("gloo: counts, then rows by all_to_all_single, put in the order of the experts; the same back; a weighted sum.")
    report.notes.append("copies: the rows of one rank's tokens, there and back, each copied once by every rank at the same time.")
    return report
