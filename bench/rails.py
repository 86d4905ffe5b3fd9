"""bench rails: four TCP rails of 1 Gbit/s between two network namespaces, and what the loss of one costs.

A rail is a veth pair, shaped to the rate by tbf at both ends. The share is measured against the sum of the rails. Then
one rail is lost in the middle of a stream of writes, either with its link (the kernel tells) or silently (nftables
drops its packets at both ends, nobody is told), and repaired. Needs root. The namespaces are this program's own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import svg, targets
from bench.context import TCP_ONLY, Context
from bench.pairs import BenchError, Impl, Pair, Place
from bench.report import Report, Table
from bench.stats import KIB, MIB, number_text, summarize
from bench.targets import Case, judge

RAILS, RATE, RATE_GBPS = 4, "1gbit", 0.125
SUM_GBPS = RAILS * RATE_GBPS
CASES = (
    Case("write", MIB, 32, 1),
    Case("read", MIB, 32, 1),
    Case("write", 64 * KIB, 128, 1),
    Case("write", 16 * MIB, 1, 1),
)
POOL = 256 * MIB
FAULT_CASE = Case("write", MIB, 8, 1)
LOST_AT_S, REPAIRED_AT_S, END_S = 2.0, 6.0, 9.0
SAMPLE_S = 0.02
FAULT_REPS = 3  # the worst of them counts
CLONE_NEWNET = 0x40000000


def command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def missing_tool() -> str | None:
    """What keeps this program from running here, or None."""
    if os.geteuid() != 0:
        return "rails need root (network namespaces)"
    for tool in ("ip", "tc", "nft"):
        if not shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return f"rails need the program {tool!r}"
    return None


class Network:
    """Two namespaces, `a` and `b`, joined by veth pairs, shaped to a rate if there is one. Use as a context."""

    def __init__(self, rails: int = RAILS, rate: str | None = RATE, queue: str = "20ms") -> None:
        self.rails, self.rate, self.queue = rails, rate, queue
        self.a, self.b = f"mcbA{os.getpid()}", f"mcbB{os.getpid()}"

    def __enter__(self) -> Network:
        try:
            for ns in (self.a, self.b):
                command("ip", "netns", "add", ns)
                command("ip", "-n", ns, "link", "set", "lo", "up")
            for rail in range(self.rails):
                dev = self.device(rail)
                command("ip", "link", "add", dev, "netns", self.a, "type", "veth", "peer", "name", dev, "netns", self.b)
                for ns in (self.a, self.b):
                    command("ip", "-n", ns, "addr", "add", f"{self.address(ns, rail)}/24", "dev", dev)
                    command("ip", "-n", ns, "link", "set", dev, "up")
                    if self.rate:
                        shape = ("root", "tbf", "rate", self.rate, "burst", "256kb", "latency", self.queue)
                        command("tc", "-n", ns, "qdisc", "add", "dev", dev, *shape)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for ns in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)

    def device(self, rail: int) -> str:
        return f"rail{rail}"

    def address(self, ns: str, rail: int) -> str:
        return f"10.77.{rail}.{1 if ns == self.a else 2}"

    def addresses(self, ns: str) -> list[str]:
        return [self.address(ns, rail) for rail in range(self.rails)]

    def link(self, rail: int, state: str) -> None:
        command("ip", "-n", self.a, "link", "set", self.device(rail), state)

    def silence(self, rail: int) -> None:
        """Drop everything that arrives on the rail, at both ends."""
        for ns in (self.a, self.b):
            self.lose(rail, ns)

    def lose(self, rail: int, ns: str, percent: int = 100) -> None:
        """Drop that share of what arrives on the rail in one namespace."""
        when = f"numgen random mod 100 < {percent} " if percent < 100 else ""
        chain = f'type filter hook input priority 0; iifname "{self.device(rail)}" {when}drop;'
        command("ip", "netns", "exec", ns, "nft", f"table inet mcbench {{ chain c {{ {chain} }}; }}")

    def unsilence(self) -> None:
        for ns in (self.a, self.b):
            # Both commands: there is one to delete, though nothing was lost here.
            command("ip", "netns", "exec", ns, "nft", "add table inet mcbench; delete table inet mcbench")


class Watcher(threading.Thread):
    """Samples the bytes each rail carried; only this thread is inside the namespace."""

    def __init__(self, network: Network) -> None:
        super().__init__(daemon=True)
        self.network = network
        self.samples: list[tuple[float, list[int]]] = []  # CLOCK_MONOTONIC, bytes so far
        self.over = threading.Event()

    def run(self) -> None:
        with open(f"/run/netns/{self.network.a}") as ns:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(ns.fileno(), CLONE_NEWNET) != 0:
                return  # without samples the row fails
        while not self.over.wait(SAMPLE_S):
            self.samples.append((time.monotonic(), self._read()))

    def _read(self) -> list[int]:
        found = [0] * RAILS
        with open("/proc/thread-self/net/dev") as f:
            for line in f.readlines()[2:]:
                name, numbers = line.split(":")
                values = numbers.split()
                if name.strip().startswith("rail"):
                    found[int(name.strip()[4:])] = int(values[0]) + int(values[8])
        return found

    def stop(self) -> None:
        self.over.set()
        self.join()

    def rates(self, window_s: float) -> list[tuple[float, list[float]]]:
        """(time, GB/s of each rail) over windows."""
        out = []
        begin = 0
        for i in range(1, len(self.samples)):
            (t0, old), (t1, new) = self.samples[begin], self.samples[i]
            if t1 - t0 >= window_s:
                out.append((t1, [(b - a) / 1e9 / (t1 - t0) for a, b in zip(old, new)]))
                begin = i
        return out


@dataclass(frozen=True)
class Fault:
    """What one lost rail did to a stream of writes."""

    stall_ms: float  # longest time without an end of an operation around the loss, less the usual time
    meanwhile: float  # share of the sum of the rails still up, from the end of the allowed stall to the repair
    recovery_ms: float | None  # from the repair until the rail carries half of its rate again; None: not within the run
    errors: int


def run(ctx: Context) -> Report:
    report = Report("rails", f"{RAILS} TCP rails of 1 Gbit/s", notes=list(ctx.missing))
    why = missing_tool()
    if why:
        report.notes.append(f"SKIP: {why}")
        return report
    panels: list[svg.LinePanel] = []
    table = Table(
        f"Share of the rails' sum ({SUM_GBPS:g} GB/s), median of {ctx.reps}; in brackets CPU s/GB of both ends",
        ["implementation", *map(str, CASES)],
        [],
    )
    faults = Table(
        f"Rail 0 lost after {LOST_AT_S:g} s, repaired after {REPAIRED_AT_S:g} s; worst of {_fault_reps(ctx)}",
        ["implementation", "loss", "stall, ms", "share of the rails still up", "back after, ms", "failed operations"],
        [],
    )
    with Network() as network:
        for impl, place in _columns(ctx, network):
            table.rows.append([impl.name, *_shares(ctx, impl, place, report)])
            for kind, lose, repair in (
                ("link down", lambda: network.link(0, "down"), lambda: network.link(0, "up")),
                ("silent", lambda: network.silence(0), network.unsilence),
            ):
                ctx.progress.phase(f"rails: {impl.name}, {kind}")
                faults.rows.append(
                    [impl.name, kind, *_fault_row(ctx, impl, place, network, kind, lose, repair, report, panels)]
                )
    report.tables += [table, faults]
    if panels:
        report.svg = svg.lines(f"{report.title}: GB/s while one rail is lost", panels)
    return report


def _columns(ctx: Context, network: Network) -> list[tuple[Impl, Place]]:
    """Ours gets its rails as an address list; NIXL is told to use several; upstream has one."""
    names = {"target_namespace": network.b, "initiator_namespace": network.a}
    place = Place(target_host=network.address(network.b, 0), initiator_host=network.address(network.a, 0), **names)
    out = []
    if ctx.ours:
        rails = Place(
            target_host=place.target_host,
            initiator_host=place.initiator_host,
            target_device=",".join(network.addresses(network.b)),
            initiator_device=",".join(network.addresses(network.a)),
            **names,
        )
        out.append((Impl("ours", ctx.ours, env=TCP_ONLY), rails))
    if ctx.upstream:
        out.append((Impl("upstream", ctx.upstream, env=TCP_ONLY), place))
    if ctx.nixl:
        env = {"UCX_TLS": "tcp", "UCX_MAX_RNDV_RAILS": str(RAILS), "UCX_MAX_EAGER_RAILS": str(RAILS)}
        out.append((Impl("nixl", ctx.nixl, backend="nixl", env=env), place))
    return out


def _shares(ctx: Context, impl: Impl, place: Place, report: Report) -> list[str]:
    ctx.progress.phase(f"rails: {impl.name}", ctx.reps * len(CASES))
    secs = ctx.secs if ctx.is_quick else max(ctx.secs, 2.0)
    rows: dict[Case, list[dict]] = {case: [] for case in CASES}
    failure = None
    pair = None
    try:
        pair = Pair(impl, POOL, ctx.logs, place)
        pair.verify()
        for rep in range(ctx.reps):
            for case in CASES:
                ctx.progress.step(f"{case}")
                rows[case].append(pair.case(*case, secs))
                report.raw.append({"impl": impl.name, "case": list(case), "rep": rep, **rows[case][-1]})
    except BenchError as error:
        failure = str(error)
        report.notes.append(f"FAIL {impl.name}: {failure}")
    finally:
        if pair:
            pair.close()
    ctx.progress.clear()
    cells = []
    for case in CASES:
        s = summarize(rows[case]) if rows[case] and not failure else None
        share = s["GBps"] / SUM_GBPS if s else None
        cells.append(f"{share:.2f} ({number_text(s['cpu_s_per_GB'])})" if s and share is not None else "FAIL")
        if impl.name == "ours":
            report.verdicts.append(judge(str(case), targets.RAILS_SHARE, share, failure=failure and f"FAIL {failure}"))
    return cells


def _fault_row(
    ctx: Context,
    impl: Impl,
    place: Place,
    network: Network,
    kind: str,
    lose: Callable[[], None],
    repair: Callable[[], None],
    report: Report,
    panels: list[svg.LinePanel],
) -> list[str]:
    stall_bound = targets.RAIL_DOWN_MS if kind == "link down" else targets.RAIL_SILENT_MS
    bounds = (stall_bound, targets.RAIL_MEANWHILE, targets.RAIL_RECOVERY_MS, targets.RAIL_ERRORS)
    allowed_s = stall_bound.offset / 1e3
    try:
        runs = [_fault(ctx, impl, place, network, allowed_s, lose, repair) for _ in range(_fault_reps(ctx))]
    except BenchError as error:
        report.notes.append(f"FAIL {impl.name}, {kind}: {error}")
        if impl.name == "ours":
            report.verdicts += [judge(f"rail lost, {kind}", b, None, failure=f"FAIL {error}") for b in bounds]
        return ["FAIL"] * 4
    fault = _worst([f for f, _ in runs])
    panels.append(svg.LinePanel(f"{impl.name}, {kind}", *runs[0][1]))
    report.raw += [{"impl": impl.name, "fault": kind, "rep": rep, **vars(f)} for rep, (f, _) in enumerate(runs)]
    values = (fault.stall_ms, fault.meanwhile, fault.recovery_ms, float(fault.errors))
    if impl.name == "ours":
        for bound, value in zip(bounds, values):
            failure = "miss: not within the run" if value is None else None
            report.verdicts.append(judge(f"rail lost, {kind}", bound, value, failure=failure))
    return [number_text(v) if v is not None else "not within the run" for v in values]


def _fault_reps(ctx: Context) -> int:
    return min(ctx.reps, FAULT_REPS)


def _worst(faults: list[Fault]) -> Fault:
    """The worst of each figure, which need not come from one run."""
    recoveries = [f.recovery_ms for f in faults]
    return Fault(
        stall_ms=max(f.stall_ms for f in faults),
        meanwhile=min(f.meanwhile for f in faults),
        recovery_ms=None if None in recoveries else max(r for r in recoveries if r is not None),
        errors=sum(f.errors for f in faults),
    )


def _fault(
    ctx: Context,
    impl: Impl,
    place: Place,
    network: Network,
    allowed_s: float,
    lose: Callable[[], None],
    repair: Callable[[], None],
) -> tuple[Fault, tuple[list, list]]:
    """Stream writes, lose rail 0 and repair it, with a fresh pair (nobody remembers the last fault)."""
    pair = Pair(impl, POOL, ctx.logs, place)
    watcher = Watcher(network)
    moments: dict[str, float] = {}
    trouble: list[BenchError] = []

    def script() -> None:
        begin = time.monotonic()
        try:
            for at, name, act in ((LOST_AT_S, "lost", lose), (REPAIRED_AT_S, "repaired", repair)):
                time.sleep(max(0.0, begin + at - time.monotonic()))
                moments[name] = time.monotonic()
                act()
        except BenchError as error:
            trouble.append(error)

    actor = threading.Thread(target=script)
    try:
        watcher.start()
        start = time.monotonic()
        actor.start()
        row = pair.initiator.call(
            "case", 120, **FAULT_CASE._asdict(), secs=END_S, target_pid=pair.target.pid, trace=True
        )
    finally:
        if actor.ident:
            actor.join()  # the repair is part of it, whatever became of the transfers
        watcher.stop()
        pair.close()
    if trouble:
        raise trouble[0]
    if not row["ops"] or not watcher.samples:
        raise BenchError("nothing moved" if watcher.samples else "cannot read the rails' counters")
    fault = _judge_fault(row, moments, watcher.rates(0.1), allowed_s)
    series = [(f"rail {r}", [(t - start, rates[r]) for t, rates in watcher.rates(0.1)]) for r in range(RAILS)]
    marks = [(at - start, name) for name, at in moments.items()]
    return fault, (series, marks)


def _judge_fault(
    row: dict, moments: dict[str, float], rates: list[tuple[float, list[float]]], allowed_s: float
) -> Fault:
    lost, repaired = moments["lost"], moments["repaired"]
    ends = row["ends_s"]
    gaps = [(b, b - a) for a, b in zip(ends, ends[1:])]
    usual = statistics.median([gap for end, gap in gaps if end < lost] or [0.0])
    stall = max([gap for end, gap in gaps if end >= lost] or [0.0])
    begin = lost + allowed_s
    moved = sum(begin <= end < repaired for end in ends) * FAULT_CASE.block * FAULT_CASE.batch / 1e9
    meanwhile = moved / (repaired - begin) / (SUM_GBPS * (RAILS - 1) / RAILS)
    back = next((t for t, each in rates if t > repaired and each[0] >= RATE_GBPS / 2), None)
    recovery = None if back is None else (back - repaired) * 1e3
    return Fault(max(0.0, stall - usual) * 1e3, meanwhile, recovery, row["err"])
