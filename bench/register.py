"""bench register: what registering many buffers costs, one by one and as one batch, and that the last one works.

The buffers are adjacent pieces of one mapping, as the KV blocks of an engine are. Each row is a fresh pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.context import Context
from bench.pairs import BenchError, Impl, Pair
from bench.report import Report, Table
from bench.stats import KIB, number_text
from bench.targets import REGISTER_US, judge

COUNTS = (100, 1000, 10_000)
QUICK_COUNTS = (100, 1000)
BUFFER = 64 * KIB
TIMEOUT_S = 600


@dataclass(frozen=True)
class Cost:
    us_each: float
    cpu_us_each: float


def run(ctx: Context) -> Report:
    report = Report("register", "Registering many buffers", notes=list(ctx.missing))
    counts = QUICK_COUNTS if ctx.is_quick else COUNTS
    impls = ctx.one_each()
    table = Table(
        f"us a buffer of {BUFFER // KIB} KiB (CPU us in brackets), best of {ctx.reps}",
        ["implementation", "how", *(f"{n} buffers" for n in counts)],
        [],
    )
    ctx.progress.phase("register: measuring", len(impls) * 2 * len(counts) * ctx.reps)
    for impl in impls:
        for is_batched in (False, True):
            how = "one batch" if is_batched else "one by one"
            cells = []
            for count in counts:
                cost, failure = _best(ctx, impl, count, is_batched, report)
                cells.append(f"{number_text(cost.us_each)} ({number_text(cost.cpu_us_each)})" if cost else "FAIL")
                if failure:
                    report.notes.append(f"FAIL {impl.name}, {count} buffers {how}: {failure}")
                if impl.name == "ours" and count == counts[-1]:
                    what = f"{count} buffers, {how}"
                    report.verdicts.append(judge(what, REGISTER_US, cost.us_each if cost else None, failure=failure))
            table.rows.append([impl.name, how, *cells])
    ctx.progress.clear()
    report.tables.append(table)
    return report


def _best(ctx: Context, impl: Impl, count: int, is_batched: bool, report: Report) -> tuple[Cost | None, str | None]:
    """The cheapest repetition. A slow implementation is measured once: its number is not about noise."""
    best: Cost | None = None
    for rep in range(ctx.reps):
        ctx.progress.step(f"{impl.name}: {count} buffers, {'one batch' if is_batched else 'one by one'}")
        try:
            cost = _once(ctx, impl, count, is_batched)
        except BenchError as error:
            return None, str(error)
        report.raw.append({"impl": impl.name, "count": count, "batched": is_batched, "rep": rep, **vars(cost)})
        if not best or cost.us_each < best.us_each:
            best = cost
        if cost.us_each * count > 2e6:
            break
    return best, None


def _once(ctx: Context, impl: Impl, count: int, is_batched: bool) -> Cost:
    """Register at the target, then write to the last buffer from its peer, and compare."""
    pair = Pair(impl, 4 * BUFFER, ctx.logs)
    try:
        target, initiator = pair.target, pair.initiator
        answer = target.call("register", TIMEOUT_S, count=count, len=BUFFER, batched=is_batched)
        last = answer["last"]
        initiator.call("connect", TIMEOUT_S, peer=target.call("describe", addr=last))
        initiator.call("fill", off=0, len=BUFFER, seed=11)
        rc = initiator.call("once", TIMEOUT_S, op="write", block=BUFFER, batch=1)["rc"]
        if rc != 0:
            raise BenchError(f"a write to the last buffer returned {rc}")
        if initiator.call("hash", off=0, len=BUFFER) != target.call("hash", addr=last, off=0, len=BUFFER):
            raise BenchError("a write to the last buffer moved wrong bytes")
        return Cost(answer["us_each"], answer["cpu_us_each"])
    finally:
        pair.close()
