"""bench rpc: control calls beside a raw ping-pong of the same run, and the cost of their messages."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from bench.context import Context
from bench.pairs import BenchError
from bench.raw import program
from bench.report import Report, Table
from bench.stats import number_text
from bench.targets import P50, Bound, Verdict, limit_of

SYNC_FACTOR, CALLS_PER_S, NS_PER_KEY = 1.2, 500_000, 100


def run(ctx: Context) -> Report:
    report = Report("rpc", "Control calls")
    ctx.progress.phase("rpc: measuring", 1)
    ctx.progress.step("rpc_bench")
    argv = [str(program("rpc_bench")), "--json", "--secs", str(ctx.secs), "--reps", str(ctx.reps)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120 + 60 * ctx.secs * ctx.reps)
    ctx.progress.clear()
    if done.returncode != 0:
        raise BenchError(done.stderr.strip() or f"rpc_bench: code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    codec = found.pop("codec_ns_per_key")
    header = ["how", "p50 us", "p99 us", "calls/s", "CPU us client", "CPU us server"]
    calls = Table("64 B calls over TCP, medians", header, [])
    for how, row in found.items():
        calls.rows.append([how, *(number_text(v) for v in row.values())])
    keys = Table("Lookup, request and answer, encode + decode", ["keys", "ns a key"], [])
    keys.rows = [[n, number_text(ns)] for n, ns in codec.items()]
    report.tables += [calls, keys]
    report.raw.append({**found, "codec_ns_per_key": codec})
    report.verdicts += verdicts(found, codec)
    return report


def verdicts(found: dict[str, Any], codec: dict[str, float]) -> list[Verdict]:
    raw = min(found["raw blocking"]["p50_us"], found["raw spinning"]["p50_us"])
    sync = Bound("rpc", P50, "<=", SYNC_FACTOR, ("the faster raw",))
    batched = Bound("rpc", "calls/s", ">=", offset=CALLS_PER_S)
    key = Bound("codec", "ns a key", "<=", offset=NS_PER_KEY)
    return [
        Verdict("64 B sync", sync, found["rpc sync"]["p50_us"], limit_of(sync, [raw])),
        Verdict("64 B batched", batched, found["rpc batched"]["calls_per_s"], limit_of(batched, [])),
        *(Verdict(f"{n} keys", key, ns, limit_of(key, [])) for n, ns in codec.items()),
    ]
