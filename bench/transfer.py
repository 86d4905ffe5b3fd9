"""bench transfer: every implementation, path and raw limit over the same cases, interleaved in one run.

A repetition runs each case on all columns back to back, in reverse order every second time, while the processes of the
other columns are stopped. The first column runs a second time under another name: the ratios of the two are what
"equal" looks like in this run (A/A). Data is checked before anything is measured.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from bench import svg
from bench.context import Context
from bench.pairs import BenchError, Impl, Pair
from bench.raw import Limits
from bench.report import Report, Table
from bench.stats import KIB, METRICS, MIB, Summary, number_text, spread, summarize
from bench.targets import MEMFD, PROCESS_VM, RAW_TCP, RAW_TCP2, RAW_TCP4, UNITS, Case, Verdict, judge_transfer

SHAPES = (
    (4 * KIB, 1, 1),
    (64 * KIB, 1, 1),
    (MIB, 1, 1),
    (16 * MIB, 1, 1),
    (4 * KIB, 128, 1),
    (64 * KIB, 128, 1),
    (64 * KIB, 1, 4),
)
QUICK_SHAPES = ((4 * KIB, 1, 1), (MIB, 1, 1), (4 * KIB, 128, 1))
STREAMED = {(16 * MIB, 1, 1), (64 * KIB, 128, 1)}  # where raw programs with more streams are in the table
FAILURES_MAX = 2  # of one column on one case, then it is left out
AA_SUFFIX = " again"


@dataclass
class Results:
    rows: dict[tuple[Case, str], list[dict]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[tuple[Case, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    wrong: dict[str, str] = field(default_factory=dict)  # column -> why none of its figures counts

    def failure(self, case: Case, column: str) -> str | None:
        found = self.failures.get((case, column))
        reason = self.wrong.get(column) or (found[0] if found else None)
        return f"FAIL {reason}" if reason else None

    def summaries(self) -> dict[tuple[Case, str], Summary]:
        return {key: summarize(rows) for key, rows in self.rows.items() if rows and not self.failure(*key)}


def run(ctx: Context) -> Report:
    report = Report("transfer", "Transfers between two processes on one host", notes=list(ctx.missing))
    cases = [Case(op, *shape) for shape in (QUICK_SHAPES if ctx.is_quick else SHAPES) for op in ("write", "read")]
    impls = ctx.columns()
    if impls:
        impls.append(impls[0].named(impls[0].name + AA_SUFFIX))
    limits = Limits(ctx.pool)
    results = Results()
    pairs = _open_all(ctx, impls, results, report)
    try:
        _measure(ctx, cases, pairs, limits, results)
    finally:
        for pair in pairs.values():
            pair.close()
    ctx.progress.clear()
    columns = [i.name for i in impls] + [RAW_TCP, RAW_TCP2, RAW_TCP4, PROCESS_VM, MEMFD]
    _fill(report, ctx, cases, columns, results)
    return report


def _open_all(ctx: Context, impls: list[Impl], results: Results, report: Report) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    ctx.progress.phase("transfer: starting and checking data", len(impls))
    for impl in impls:
        ctx.progress.step(impl.name)

        def failed(why: str, name: str = impl.name) -> None:
            results.wrong[name] = why
            report.notes.append(why)

        pair = ctx.open(impl, failed)
        if not pair:
            continue
        try:
            pair.verify()
        except BenchError as error:
            failed(str(error))
            pair.close()
            continue
        pair.pause()
        pairs[impl.name] = pair
    versions = {name.split()[0]: pair.version for name, pair in pairs.items()}
    report.notes.append("Versions: " + ", ".join(f"{name} is {version}" for name, version in versions.items()) + ".")
    return pairs


def _measure(ctx: Context, cases: list[Case], pairs: dict[str, Pair], limits: Limits, results: Results) -> None:
    jobs = {case: [*pairs, *_raw_jobs(case)] for case in cases}
    ctx.progress.phase("transfer: measuring", ctx.reps * sum(map(len, jobs.values())))
    for rep in range(ctx.reps):
        for case in cases:
            for column in jobs[case] if rep % 2 == 0 else reversed(jobs[case]):
                ctx.progress.step(f"{rep + 1}/{ctx.reps} {case}: {column}")
                if len(results.failures[case, column]) >= FAILURES_MAX or column in results.wrong:
                    continue
                try:
                    if column in pairs:
                        row = _run_pair(pairs[column], case, ctx.secs)
                    else:
                        test, arguments = _raw_jobs(case)[column]
                        row = limits.run(test, ctx.secs, *arguments)
                except BenchError as error:
                    results.failures[case, column].append(str(error))
                    if column in pairs and not pairs[column].is_alive:
                        results.wrong[column] = str(error)
                    continue
                results.rows[case, column].append({"rep": rep, **row})


def _run_pair(pair: Pair, case: Case, secs: float) -> dict:
    pair.resume()
    try:
        return pair.case(*case, secs)
    finally:
        pair.pause()


def _raw_jobs(case: Case) -> dict[str, tuple[str, list[object]]]:
    """The raw programs of a case: column -> (test, arguments)."""
    common: list[object] = ["-s", case.block, "-b", case.batch, *(["-w"] if case.op == "write" else [])]
    jobs = {RAW_TCP: ("tcp", [*common, "-T", case.threads])}
    if case[1:] in STREAMED:
        jobs[RAW_TCP2] = ("tcp", [*common, "-n", 2])
        jobs[RAW_TCP4] = ("tcp", [*common, "-n", 4])
    if case.threads == 1:
        jobs[PROCESS_VM] = ("process_vm", common)
        jobs[MEMFD] = ("memfd", common)
    return jobs


def _fill(report: Report, ctx: Context, cases: list[Case], columns: list[str], results: Results) -> None:
    summaries = results.summaries()

    def lookup(case: Case, column: str, metric: str) -> float | None:
        s = summaries.get((case, column))
        return s[metric] if s else None

    ours = [c for c in columns if c.startswith("ours")]
    report.verdicts = judge_transfer(cases, lookup, results.failure) if ours else []
    for metric in METRICS:
        table = Table(f"{UNITS[metric]}, median [range over the repetitions]", ["case", *columns, "verdict"], [])
        for case in cases:
            cells = [_cell(results, summaries, case, column, metric) for column in columns]
            mine = [v for v in report.verdicts if v.what == str(case) and v.bound.metric == metric]
            table.rows.append([str(case), *cells, _verdict_cell(mine)])
        report.tables.append(table)
    report.notes += _noise(cases, columns, summaries, results) + _detours(ctx, results)
    report.raw = [
        {"case": list(case), "column": column, **row} for (case, column), rows in results.rows.items() for row in rows
    ]
    report.raw += [
        {"case": list(case), "column": column, "failures": why}
        for (case, column), why in results.failures.items()
        if why
    ]
    shown = [c for c in columns if not c.endswith(AA_SUFFIX)]
    panels = [
        svg.BarPanel(UNITS[metric], [[lookup(case, column, metric) for column in shown] for case in cases])
        for metric in ("GBps", "p50_us", "cpu_s_per_GB")
    ]
    report.svg = svg.bars(f"{report.title}: median of {ctx.reps} repetitions", [str(c) for c in cases], shown, panels)


def _cell(results: Results, summaries: dict[tuple[Case, str], Summary], case: Case, column: str, metric: str) -> str:
    if results.failure(case, column):
        return "FAIL"
    s = summaries.get((case, column))
    if not s:
        return "-"
    if s.count == 1:
        return number_text(s[metric])
    return f"{number_text(s[metric])} [{number_text(s.low[metric])}-{number_text(s.high[metric])}]"


def _verdict_cell(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return "-"
    bad = [f"{v.outcome}: {v.bound.column} {v.bound}" for v in verdicts if v.outcome != "pass"]
    return "; ".join(bad) if bad else "pass"


def _noise(
    cases: list[Case], columns: list[str], summaries: dict[tuple[Case, str], Summary], results: Results
) -> list[str]:
    """How far two runs of the same thing lie apart, and what else the machine did."""
    notes = []
    for again in (c for c in columns if c.endswith(AA_SUFFIX)):
        first = again.removesuffix(AA_SUFFIX)
        both = [
            (summaries[c, first], summaries[c, again])
            for c in cases
            if (c, first) in summaries and (c, again) in summaries
        ]
        parts = [f"{UNITS[m]} {s}" for m in METRICS if (s := spread([b[m] / a[m] for a, b in both]))]
        if parts:
            notes.append(f"A/A ({again} / {first}), geometric mean [range over the cases]: " + ", ".join(parts) + ".")
    others = sorted(row["others"] for rows in results.rows.values() for row in rows)
    if others:
        notes.append(f"Unrelated processes used {others[len(others) // 2]:.2f} cores (median).")
    for (case, column), why in results.failures.items():
        if why:
            notes.append(f"FAIL {case}, {column}: {why[0]}")
    return notes


def _detours(ctx: Context, results: Results) -> list[str]:
    """Columns of ours that should use shared memory and did not, as the loopback device tells."""
    notes = []
    for impl in ctx.columns():
        shares = [
            row["net_share"]
            for (case, column), rows in results.rows.items()
            if column == impl.name and case.block >= MIB
            for row in rows
        ]
        if shares and not impl.is_network and sorted(shares)[len(shares) // 2] > 0.5:
            notes.append(f"{impl.name} went over the network, not over shared memory: its figures are TCP's.")
    return notes
