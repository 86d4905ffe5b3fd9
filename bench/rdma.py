"""bench rdma: RDMA on Soft-RoCE in one run of the guest machine (tests/guest), against perftest and upstream.

All of it is emulated, so only ratios within the run mean anything. rdma_inside.py measures, this file judges. perftest
runs twice in each repetition; the ratio of the two is what a ratio of 1 looks like here.

Repetitions end with the time that their step has, so that all of it takes a quarter of an hour. What was measured lies in
results/rdma-guest.json from the first repetition on: a guest that dies is started again for the rest, and a run that was
cut short is gone on with by the same command at the same commit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import svg, targets
from bench.context import Context
from bench.pairs import HERE, BenchError
from bench.report import Report, Table, commit
from bench.stats import number_text, spread
from bench.targets import judge

GUEST_RUN = HERE.parent / "tests/guest/guest-run"
RAILS, RATE, RATE_GBPS = 4, "20mbit", 0.0025
DEPTH = 16
LOST_AT_S, REPAIRED_AT_S = 4.0, 12.0  # as in rdma_inside.py
PACKET = 4096
WINDOW_S = 0.5
LOSSES = ("link down", "silent loss")  # as in rdma_inside.py
BACK_SHARE = 0.5  # of its rate: the NIC carries again
COLUMNS = ("perftest", "perftest again", "ours", "upstream")
ENV = {"MC_GID_INDEX": "1", "MC_NO_SHM": "1"}
LIMIT_S = 870.0
BUDGET_S = {"one NIC": 330.0, "four NICs": 130.0}  # the losses of a NIC take a minute each
GUESTS_MAX = 3  # a run
GUEST_S = 90.0  # not worth one more guest
SAMPLES_MIN = 50  # of a stream with a loss, to say anything of it


@dataclass(frozen=True)
class Fault:
    """What the loss of one NIC of four did to a stream of 16 MiB writes."""

    stall_s: float  # longest time after the loss in which no NIC sent anything
    meanwhile: float  # share of the four NICs' sum from the end of the allowed stall to the repair
    back_s: float | None  # from the repair until all four carry; None: not within the run
    errors: int


def run(ctx: Context) -> Report:
    report = Report("rdma", "RDMA on Soft-RoCE, emulated", notes=list(ctx.missing))
    ctx.results.mkdir(parents=True, exist_ok=True)
    raw = _measure(ctx, report.notes)
    report.notes += [f"FAIL {what}: {why}" for what, why in raw["failed"].items()]
    reps = 1 + max((row["rep"] for row in raw["rows"]), default=-1)
    report.notes.append(f"Medians over up to {reps} repetitions, as many as the time of a step allows.")
    report.raw = raw["rows"] + raw["faults"]
    columns = [c for c in COLUMNS if any(row["column"] == c for row in raw["rows"])]
    cells = _cells(raw["rows"])
    report.tables.append(_table("GB/s, medians", "1 MiB", f", one NIC, depth {DEPTH}", columns, cells))
    report.tables.append(_table("us, medians", "4 KiB", ", one NIC, alone", columns, cells))
    report.tables.append(_shares(columns, cells))
    report.verdicts += _verdicts(cells, raw["failed"])
    report.tables.append(_faults(raw["faults"], report))
    noise = spread([a / b for what in {w for w, _ in cells} for a, b in _again(cells, what)])
    if noise:
        report.notes.append(f"perftest against itself, geometric mean and range of the ratio: {noise}")
    return report


def _settings(ctx: Context) -> dict[str, Any]:
    impls = [(name, python, ENV) for name, python in (("ours", ctx.ours), ("upstream", ctx.upstream)) if python]
    losses = [[f"{name}, {kind}" for kind in LOSSES] for name, _, _ in impls]
    return {
        "impls": impls,
        # Ours before upstream has several NICs: what that leaves behind in a guest when it fails is not ours to bear.
        "steps": ["one NIC", *sum(losses[:1], []), "four NICs", *sum(losses[1:], [])],
        "reps": ctx.reps,
        "reps_min": 1 if ctx.is_quick else 2,
        "budget_s": BUDGET_S,
        "secs": ctx.secs if ctx.is_quick else max(ctx.secs, 1.0),
        "shaped_secs": 2.0 if ctx.is_quick else 4.0,
        "messages": 2 * DEPTH if ctx.is_quick else 4 * DEPTH,
        "depth": DEPTH,
        "rate": RATE,
    }


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """What a run with this key has measured so far."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("key") == key else None


def _measure(ctx: Context, notes: list[str]) -> dict[str, Any]:
    settings = _settings(ctx)
    steps = settings["steps"]
    key = json.dumps([commit(HERE.parent), settings])
    out = ctx.results / "rdma-guest.json"
    found = _read(out, key)
    if found and len(found["done"]) < len(steps):
        notes.append(f"Goes on with a run that was cut short after: {', '.join(found['done']) or 'nothing whole'}.")
    else:
        found = {"key": key, "rows": [], "faults": [], "failed": {}, "done": [], "spent": {}}
        out.write_text(json.dumps(found))
    end = time.monotonic() + LIMIT_S
    for guest in range(GUESTS_MAX):
        left = end - time.monotonic()
        if left < GUEST_S:
            break
        ctx.progress.phase(f"rdma: guest {guest + 1}, for {left / 60:.0f} minutes at most")
        status = _guest(out, settings, left)
        before, found = found, _read(out, key) or found
        if len(found["done"]) == len(steps):
            return found
        notes.append(f"A guest ended early ({status}) after: {', '.join(found['done']) or 'no whole step'}.")
        if found == before:
            break  # it does not get anywhere
    if not found["rows"] and not found["faults"]:
        raise BenchError(f"nothing was measured; {notes[-1]}")
    missing = [step for step in steps if step not in found["done"]]
    notes.append(f"Not whole: {', '.join(missing)}. The same command goes on where this one ended.")
    return found


def _guest(out: Path, settings: dict[str, Any], limit_s: float) -> str:
    """Run one guest; how it ended."""
    argv = [sys.executable, GUEST_RUN, "--nics", 2 * RAILS, "--timeout", limit_s, "--rw", out.parent, "--"]
    argv += [sys.executable, "-P", HERE / "rdma_inside.py", out, json.dumps(settings)]
    try:
        done = subprocess.run(list(map(str, argv)), stdout=subprocess.DEVNULL, timeout=limit_s + 60)
    except subprocess.TimeoutExpired:
        return "it hung"
    return "out of time" if done.returncode == 124 else f"code {done.returncode}"


def _cells(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cells.setdefault((row["what"], row["column"]), []).append(row["value"])
    return cells


def _again(cells: dict[tuple[str, str], list[float]], what: str) -> list[tuple[float, float]]:
    return list(zip(cells.get((what, "perftest"), []), cells.get((what, "perftest again"), [])))


def _median(cells: dict[tuple[str, str], list[float]], what: str, column: str) -> float | None:
    values = cells.get((what, column))
    return statistics.median(values) if values else None


def _text(value: float | None) -> str:
    return "-" if value is None else number_text(value)


def _table(
    title: str, size: str, detail: str, columns: list[str], cells: dict[tuple[str, str], list[float]]
) -> Table:
    table = Table(f"{size}{detail}: {title}", ["operation", *columns], [])
    for op in ("write", "read"):
        table.rows.append([op, *(_text(_median(cells, f"{op} {size}", column)) for column in columns)])
    return table


def _shares(columns: list[str], cells: dict[tuple[str, str], list[float]]) -> Table:
    names = [c for c in columns if not c.startswith("perftest")]
    table = Table(f"One request of 16 MiB over {RAILS} NICs of {RATE}: share of their sum", ["operation", *names], [])
    for op in ("write", "read"):
        found = [_median(cells, f"{op} 16 MiB, {RAILS} NICs", name) for name in names]
        table.rows.append([op, *(_text(v / (RAILS * RATE_GBPS) if v else None) for v in found)])
    return table


def _verdicts(cells: dict[tuple[str, str], list[float]], failed: dict[str, str]) -> list[targets.Verdict]:
    verdicts = []
    failure = next((f"FAIL {why}" for name, why in failed.items() if name.startswith("ours")), None)
    for op in ("write", "read"):
        for size, bound in (("1 MiB", targets.RDMA_GBPS), ("4 KiB", targets.RDMA_P50)):
            what = f"{op} {size}"
            ours, limit = (_median(cells, what, column) for column in ("ours", "perftest"))
            verdicts.append(judge(what, bound, ours, limit, failure=None if ours else failure))
        what = f"{op} 16 MiB, {RAILS} NICs"
        ours = _median(cells, what, "ours")
        share = ours / (RAILS * RATE_GBPS) if ours else None
        verdicts.append(judge(what, targets.RDMA_SHARE, share, failure=None if ours else failure))
    return verdicts


def _faults(faults: list[dict[str, Any]], report: Report) -> Table:
    header = ["implementation", "loss", "stall, s", "share of the sum meanwhile", "all four back after, s", "failed"]
    table = Table(f"NIC 0 of {RAILS} lost after {LOST_AT_S:g} s, back after {REPAIRED_AT_S:g} s", header, [])
    panels = []
    for one in faults:
        if len(one["samples"]) < SAMPLES_MIN:
            report.notes.append(f"{one['column']}, {one['kind']}: only {len(one['samples'])} samples, not judged.")
            continue
        fault = _fault(one)
        values = (fault.stall_s, fault.meanwhile, fault.back_s, float(fault.errors))
        cells = ["not within the run" if v is None else number_text(v) for v in values]
        table.rows.append([one["column"], one["kind"], *cells])
        times, rates = _rates(one["samples"])
        series = [(f"rxe{rail}", list(zip(times, rates[rail]))) for rail in range(RAILS)]
        marks = ((LOST_AT_S, "lost"), (REPAIRED_AT_S, "back"))
        panels.append(svg.LinePanel(f"{one['column']}, {one['kind']}", series, marks))
        if one["column"] != "ours":
            continue
        bounds = (targets.RDMA_STALL, targets.RDMA_MEANWHILE, targets.RDMA_BACK, targets.RDMA_ERRORS)
        for bound, value in zip(bounds, values):
            why = None if one["is_equal"] else "FAIL: other bytes at the target"
            report.verdicts.append(judge(f"NIC lost, {one['kind']}", bound, value, failure=why))
    if panels:
        report.svg = svg.lines("One NIC of four is lost: GB/s of each", panels)
    return table


def _rates(samples: list[tuple[float, list[int]]]) -> tuple[list[float], list[list[float]]]:
    """Ends of windows, and GB/s of each NIC in them."""
    times: list[float] = []
    rates: list[list[float]] = [[] for _ in range(RAILS)]
    begin = 0
    for i in range(1, len(samples)):
        (t0, old), (t1, new) = samples[begin], samples[i]
        if t1 - t0 < WINDOW_S:
            continue
        times.append(t1)
        for rail in range(RAILS):
            rates[rail].append((new[rail] - old[rail]) * PACKET / 1e9 / (t1 - t0))
        begin = i
    return times, rates


def _fault(one: dict[str, Any]) -> Fault:
    samples = one["samples"]
    stall, since = 0.0, LOST_AT_S
    for (_, old), (t1, new) in zip(samples, samples[1:]):
        if new != old:
            if t1 > LOST_AT_S:
                stall = max(stall, t1 - since)
            since = max(t1, LOST_AT_S)
    times, rates = _rates(samples)
    sums = [sum(rates[rail][i] for rail in range(RAILS)) for i in range(len(times))]
    settled = LOST_AT_S + targets.RDMA_STALL.offset + WINDOW_S
    during = [s for t, s in zip(times, sums) if settled < t < REPAIRED_AT_S]
    back = [
        t - REPAIRED_AT_S
        for i, t in enumerate(times)
        if t > REPAIRED_AT_S and all(rates[rail][i] > BACK_SHARE * RATE_GBPS for rail in range(RAILS))
    ]
    return Fault(
        stall_s=stall,
        meanwhile=statistics.mean(during) / (RAILS * RATE_GBPS) if during else 0.0,
        back_s=min(back) if back else None,
        errors=one["errors"],
    )
