"""The part of bench rdma that runs in the guest: rdma_inside.py OUT SETTINGS, both JSON; see rdma.py.

Everything is interleaved: each repetition measures every column of a case before the next one begins. NICs 0 to 3 are the
initiator's, 4 to 7 the target's. OUT gets what was measured after each repetition and each loss, so that nothing is lost
with the guest; an OUT that is there already is gone on with: steps in its "done" are over, "spent" is what the others took.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from bench.pairs import BenchError, Impl, Pair, Place

MIB = 1 << 20
RAILS = 4
PERFTEST_PORTS = itertools.cycle(range(18515, 18915))  # one each: the last one's connection may linger
PERFTEST_S = 120
START_S = 30  # for a server of perftest to listen, emulated
POOL = 32 * MIB
PACKET = 4096  # the path MTU
SAMPLE_S = 0.05
LOST_AT_S, REPAIRED_AT_S, END_S = 4.0, 12.0, 20.0
FAULT_BLOCK = 16 * MIB
FAULT_LATE_S = 60  # after the end of the stream: its last request may wait for the repair
LOSSES = {"link down": ("down", "up"), "silent loss": ("drop", "pass")}
MISSES_MAX = 3  # of perftest, after which its column is left out


class Outcome:
    """What OUT says. Its parts are written through save() alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        document = json.loads(path.read_text()) if path.exists() else {}
        self.key = document.get("key")
        self.rows: list[dict[str, Any]] = document.get("rows", [])
        self.faults: list[dict[str, Any]] = document.get("faults", [])
        self.failed: dict[str, str] = document.get("failed", {})
        self.done: list[str] = document.get("done", [])
        self.spent: dict[str, float] = document.get("spent", {})

    def save(self) -> None:
        new = self.path.with_suffix(".new")
        document = {name: value for name, value in vars(self).items() if name != "path"}
        new.write_text(json.dumps(document))
        os.replace(new, self.path)

    def add(self, what: str, column: str, rep: int, value: float) -> None:
        self.rows.append({"what": what, "column": column, "rep": rep, "value": value})
        self.save()
        print(f"  {what}, {column}: {value:.4g}", file=sys.stderr, flush=True)

    def reps(self, what: str) -> int:
        """Repetitions of a case that are there already."""
        return 1 + max((row["rep"] for row in self.rows if what in row["what"]), default=-1)


class Turns:
    """Repetitions of a step, until their number is reached or its time is over; one at least, and each is kept."""

    def __init__(self, title: str, what: str, s: dict[str, Any], out: Outcome) -> None:
        self.title, self.what, self.s, self.out = title, what, s, out

    def __iter__(self) -> Iterator[int]:
        first = self.out.reps(self.what)
        for rep in range(first, self.s["reps"]):
            spent = self.out.spent.get(self.title, 0.0)
            if rep >= self.s["reps_min"] and spent * (rep + 1) / max(rep, 1) > self.s["budget_s"][self.title]:
                return
            start = time.monotonic()
            yield rep
            self.out.spent[self.title] = spent + time.monotonic() - start
            self.out.save()
            print(f"{self.title}: {rep + 1} of at most {self.s['reps']}", file=sys.stderr, flush=True)


def sent_packets() -> list[int]:
    """Of the initiator's NICs and the target's, by number: what only RDMA counts up."""
    return [
        int(Path(f"/sys/class/infiniband/rxe{i}/ports/1/hw_counters/sent_pkts").read_text()) for i in range(2 * RAILS)
    ]


def perftest(tool: str, *args: str) -> list[float]:
    """The numbers of the one line of results of a tool of perftest between rxe0 and rxe4."""
    port = next(PERFTEST_PORTS)
    common = [tool, "-x", "1", "-F", "-p", str(port), *args]
    server = subprocess.Popen([*common, "-d", f"rxe{RAILS}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(server, tool, port)
        client = [*common, "-d", "rxe0", "127.0.0.1"]
        done = subprocess.run(client, capture_output=True, text=True, timeout=PERFTEST_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{tool}: not over after {PERFTEST_S} s") from None
    finally:
        server.kill()
        server.wait()
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] == args[args.index("-s") + 1]:
            return [float(word) for word in words]
    raise BenchError(f"{tool}: no line of results: {(done.stderr or done.stdout).strip()[-300:]}")


def wait_for_listener(server: subprocess.Popen, tool: str, port: int) -> None:
    """Without connecting: perftest serves the first connection and no other."""
    end = time.monotonic() + START_S
    wanted = f":{port:04X} "
    while time.monotonic() < end:
        if server.poll() is not None:
            raise BenchError(f"{tool}: its server ended with {server.returncode}")
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            if any(wanted in line and " 0A " in line for line in Path(table).read_text().splitlines()):
                return
        time.sleep(0.02)
    raise BenchError(f"{tool}: its server does not listen")


def place(nics: int) -> Place:
    mine, other = (",".join(f"rxe{first + i}" for i in range(nics)) for first in (0, RAILS))
    return Place(initiator_device=mine, target_device=other)


class Columns:
    """One pair an implementation, all open at once and stopped while another one is measured; a context manager."""

    def __init__(self, impls: list[Impl], nics: int, logs: Path, failed: dict[str, str]) -> None:
        self.failed, self.where = failed, "one NIC" if nics == 1 else f"{nics} NICs"
        self.pairs: dict[str, Pair] = {}
        for impl in impls:
            try:
                pair = Pair(impl, POOL, logs, place(nics))
                self.pairs[impl.name] = pair
                pair.pause()
            except BenchError as error:
                failed[f"{impl.name}, {self.where}"] = str(error)

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *error: object) -> None:
        for pair in self.pairs.values():
            pair.resume()
            pair.close()

    def case(self, name: str, op: str, block: int, batch: int, secs: float) -> dict[str, Any] | None:
        """None when the column has failed. That its bytes went by RDMA is seen in the devices' counters."""
        pair = self.pairs.get(name)
        if not pair:
            return None
        pair.resume()
        before = sum(sent_packets())
        try:
            row = pair.case(op, block, batch, 1, secs)
        except BenchError as error:
            self.drop(name, str(error))
            return None
        packets = sum(sent_packets()) - before
        pair.pause()
        if packets * PACKET < row["ops"] * block * batch * 0.9:
            self.drop(name, f"{op} of {block} bytes did not go by RDMA: {packets} packets for {row['ops']} operations")
            return None
        return row

    def drop(self, name: str, why: str) -> None:
        self.failed[f"{name}, {self.where}"] = why
        print(f"  {name}: {why}", file=sys.stderr, flush=True)
        pair = self.pairs.pop(name)
        pair.resume()
        pair.close()


class Limits:
    """perftest's columns; one that fails again and again is left out."""

    def __init__(self, s: dict[str, Any], out: Outcome) -> None:
        self.size = ["-s", str(MIB), "-n", str(s["messages"]), "-t", str(s["depth"])]
        self.failed, self.misses = out.failed, 0

    def case(self, op: str) -> tuple[float, float] | None:
        """GB/s and us; None when there is nothing to be had."""
        if self.misses >= MISSES_MAX:
            return None
        try:
            # perftest calls 2^20 bytes a MB: what it prints is MiB/s
            bw = perftest(f"ib_{op}_bw", *self.size)[3] * MIB / 1e9
            us = perftest(f"ib_{op}_lat", "-s", "4096", "-n", "300")[4]
            if op == "write":
                # Twice half a round trip, of two programs that poll memory. With two processors that is when the
                # kernel gets to run at all: then one write after the other is the better limit.
                alone = perftest("ib_write_bw", "-s", "4096", "-n", "1000", "-t", "1")[3] * MIB
                us = min(2 * us, 4096 / alone * 1e6)
        except BenchError as error:
            self.misses += 1
            self.failed["perftest"] = str(error)
            return None
        self.misses = 0
        return bw, us


def one_nic(impls: list[Impl], s: dict[str, Any], out: Outcome, logs: Path) -> None:
    """WRITE and READ: 1 MiB at a depth of s["depth"], and 4 KiB alone."""
    perf = Limits(s, out)
    with Columns(impls, 1, logs, out.failed) as columns:
        for rep in Turns("one NIC", "1 MiB", s, out):
            for op in ("write", "read"):
                limits = ["perftest", "perftest again"] if rep % 2 else ["perftest again", "perftest"]
                for name in [limits[0], *list(columns.pairs), limits[1]]:
                    if name.startswith("perftest"):
                        both = perf.case(op)
                    else:
                        big = columns.case(name, op, MIB, s["depth"], s["secs"])
                        small = columns.case(name, op, 4096, 1, s["secs"]) if big else None
                        both = (big["GBps"], small["p50_us"]) if big and small else None
                    for size, value in zip(("1 MiB", "4 KiB"), both or ()):
                        out.add(f"{op} {size}", name, rep, value)


def shape(rate: str) -> None:
    for i in range(2 * RAILS):
        argv = ["tc", "qdisc", "replace", "dev", f"nic{i}", "root", "tbf", "rate", rate, "burst", "64kb", "limit", "4mb"]
        subprocess.run(argv, check=True)


def four_nics(impls: list[Impl], s: dict[str, Any], out: Outcome, logs: Path) -> None:
    """One request of 16 MiB at a time over four shaped NICs."""
    shape(s["rate"])
    with Columns(impls, RAILS, logs, out.failed) as columns:
        for rep in Turns("four NICs", "16 MiB", s, out):
            for name in list(columns.pairs):
                for op in ("write", "read"):
                    row = columns.case(name, op, FAULT_BLOCK, 1, s["shaped_secs"])
                    if not row:
                        break
                    out.add(f"{op} 16 MiB, 4 NICs", name, rep, row["GBps"])


class Sampler(threading.Thread):
    """Packets that each of the initiator's NICs has sent, over time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, list[int]]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_S):
            self.samples.append((time.monotonic(), sent_packets()[:RAILS]))


def fault(impl: Impl, lose: str, repair: str, logs: Path) -> dict[str, Any]:
    """A stream of 16 MiB writes; NIC 0 is lost and comes back. Raises BenchError when the pair does not end well."""
    pair = Pair(impl, POOL, logs, place(RAILS))
    sampler = Sampler()
    timers: list[threading.Timer] = []
    try:
        pair.initiator.call("fill", off=0, len=POOL, seed=1)
        pair.initiator.call("once", op="write", block=FAULT_BLOCK, batch=1)
        start = time.monotonic()
        timers += [threading.Timer(at, nic, [how]) for at, how in ((LOST_AT_S, lose), (REPAIRED_AT_S, repair))]
        for timer in timers:
            timer.start()
        sampler.start()
        stream = {"op": "write", "block": FAULT_BLOCK, "batch": 1, "threads": 1, "secs": END_S}
        row = pair.initiator.call("case", END_S + FAULT_LATE_S, target_pid=pair.target.pid, **stream)
        hashes = [end.call("hash", off=0, len=FAULT_BLOCK)["hash"] for end in pair.workers]
    finally:
        for timer in timers:
            timer.cancel()
            if timer.ident is not None:
                timer.join()
        nic(repair)
        sampler.over.set()
        pair.close()
    samples = [(at - start, packets) for at, packets in sampler.samples]
    return {"errors": row["err"], "ops": row["ops"], "is_equal": hashes[0] == hashes[1], "samples": samples}


def nic(how: str) -> None:
    subprocess.run(["guest-nic", "0", how], check=True)


def lose(impl: Impl, kind: str, s: dict[str, Any], out: Outcome, logs: Path) -> None:
    shape(s["rate"])
    out.faults.append({"column": impl.name, "kind": kind, **fault(impl, *LOSSES[kind], logs)})


def main(argv: list[str]) -> int:
    path, s = Path(argv[0]), json.loads(argv[1])
    logs = path.parent / "logs"
    impls = [Impl(name, python, env=env, protocol="rdma") for name, python, env in s["impls"]]
    out = Outcome(path)
    steps: dict[str, Callable[[], None]] = {
        "one NIC": lambda: one_nic(impls, s, out, logs),
        "four NICs": lambda: four_nics(impls, s, out, logs),
    }
    for impl in impls:
        for kind in LOSSES:
            steps[f"{impl.name}, {kind}"] = lambda i=impl, k=kind: lose(i, k, s, out, logs)
    for title in s["steps"]:
        if title in out.done:
            continue
        step = steps[title]
        print(f"{title} ...", file=sys.stderr, flush=True)
        try:
            step()
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            out.failed[title] = str(error)
            print(f"  {title}: {error}", file=sys.stderr, flush=True)
        out.done.append(title)
        out.save()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
