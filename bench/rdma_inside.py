"""The part of bench rdma that runs in the guest: rdma_inside.py OUT SETTINGS, both JSON; see rdma.py.

Everything is interleaved: each repetition measures every column of a case before the next one begins. NICs 0 to 3 are the
initiator's, 4 to 7 the target's. OUT gets {"rows": [...], "faults": [...], "failed": {column: why}}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from bench.pairs import BenchError, Impl, Pair, Place

MIB = 1 << 20
RAILS = 4
PERFTEST_PORT = 18515
START_S = 30  # for a server of perftest to listen, emulated
POOL = 32 * MIB
PACKET = 4096  # the path MTU
SAMPLE_S = 0.05
LOST_AT_S, REPAIRED_AT_S, END_S = 4.0, 12.0, 20.0
FAULT_BLOCK = 16 * MIB


def sent_packets() -> list[int]:
    """Of the initiator's NICs and the target's, by number: what only RDMA counts up."""
    return [
        int(Path(f"/sys/class/infiniband/rxe{i}/ports/1/hw_counters/sent_pkts").read_text()) for i in range(2 * RAILS)
    ]


def perftest(tool: str, *args: str) -> list[float]:
    """The numbers of the one line of results of a tool of perftest between rxe0 and rxe4."""
    common = [tool, "-x", "1", "-F", "-p", str(PERFTEST_PORT), *args]
    server = subprocess.Popen([*common, "-d", f"rxe{RAILS}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(server, tool)
        client = [*common, "-d", "rxe0", "127.0.0.1"]
        done = subprocess.run(client, capture_output=True, text=True, timeout=300)
        server.wait(30)
    finally:
        server.kill()
        server.wait()
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] == args[args.index("-s") + 1]:
            return [float(word) for word in words]
    raise BenchError(f"{tool}: no line of results: {(done.stderr or done.stdout).strip()[-300:]}")


def wait_for_listener(server: subprocess.Popen, tool: str) -> None:
    """Without connecting: perftest serves the first connection and no other."""
    end = time.monotonic() + START_S
    wanted = f":{PERFTEST_PORT:04X} "
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
    """One pair an implementation, all open at once and stopped while another one is measured."""

    def __init__(self, impls: list[Impl], nics: int, logs: Path, failed: dict[str, str]) -> None:
        self.failed = failed
        self.pairs: dict[str, Pair] = {}
        for impl in impls:
            try:
                pair = Pair(impl, POOL, logs, place(nics))
                self.pairs[impl.name] = pair
                pair.pause()
            except BenchError as error:
                failed[f"{impl.name}, {nics} NICs"] = str(error)

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
        self.failed[name] = why
        pair = self.pairs.pop(name)
        pair.resume()
        pair.close()

    def close(self) -> None:
        for pair in self.pairs.values():
            pair.resume()
            pair.close()


def one_nic(impls: list[Impl], s: dict[str, Any], out: dict[str, Any], logs: Path) -> None:
    """WRITE and READ: 1 MiB at a depth of s["depth"], and 4 KiB alone."""
    columns = Columns(impls, 1, logs, out["failed"])
    depth, size = s["depth"], ["-s", str(MIB), "-n", str(s["messages"])]
    for rep in range(s["reps"]):
        for op in ("write", "read"):
            limits = ["perftest", "perftest again"] if rep % 2 else ["perftest again", "perftest"]
            for name in [limits[0], *columns.pairs, limits[1]]:
                if name.startswith("perftest"):
                    # perftest calls 2^20 bytes a MB: what it prints is MiB/s
                    bw = perftest(f"ib_{op}_bw", *size, "-t", str(depth))[3] * MIB / 1e9
                    half = perftest(f"ib_{op}_lat", "-s", "4096", "-n", "1000")[4]
                    lat = 2 * half if op == "write" else half
                else:
                    big = columns.case(name, op, MIB, depth, s["secs"])
                    small = columns.case(name, op, 4096, 1, s["secs"]) if big else None
                    if not big or not small:
                        continue
                    bw, lat = big["GBps"], small["p50_us"]
                out["rows"].append({"what": f"{op} 1 MiB", "column": name, "rep": rep, "value": bw})
                out["rows"].append({"what": f"{op} 4 KiB", "column": name, "rep": rep, "value": lat})
        print(f"one NIC: {rep + 1} of {s['reps']}", file=sys.stderr, flush=True)
    columns.close()


def shape(rate: str) -> None:
    for i in range(2 * RAILS):
        argv = ["tc", "qdisc", "replace", "dev", f"nic{i}", "root", "tbf", "rate", rate, "burst", "64kb", "limit", "4mb"]
        subprocess.run(argv, check=True)


def four_nics(impls: list[Impl], s: dict[str, Any], out: dict[str, Any], logs: Path) -> None:
    """One request of 16 MiB at a time over four shaped NICs."""
    columns = Columns(impls, RAILS, logs, out["failed"])
    for rep in range(s["reps"]):
        for name in list(columns.pairs):
            for op in ("write", "read"):
                row = columns.case(name, op, FAULT_BLOCK, 1, s["shaped_secs"])
                if not row:
                    break
                out["rows"].append({"what": f"{op} 16 MiB, 4 NICs", "column": name, "rep": rep, "value": row["GBps"]})
        print(f"four NICs: {rep + 1} of {s['reps']}", file=sys.stderr, flush=True)
    columns.close()


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
    try:
        pair.initiator.call("fill", off=0, len=POOL, seed=1)
        pair.initiator.call("once", op="write", block=FAULT_BLOCK, batch=1)
        start = time.monotonic()
        timers = [threading.Timer(at, nic, [how]) for at, how in ((LOST_AT_S, lose), (REPAIRED_AT_S, repair))]
        for timer in timers:
            timer.start()
        sampler.start()
        row = pair.initiator.call(
            "case", 120, op="write", block=FAULT_BLOCK, batch=1, threads=1, secs=END_S, target_pid=pair.target.pid
        )
        hashes = [end.call("hash", off=0, len=FAULT_BLOCK)["hash"] for end in pair.workers]
    finally:
        nic(repair)
        sampler.over.set()
        pair.close()
    samples = [(at - start, packets) for at, packets in sampler.samples]
    return {"errors": row["err"], "ops": row["ops"], "is_equal": hashes[0] == hashes[1], "samples": samples}


def nic(how: str) -> None:
    subprocess.run(["guest-nic", "0", how], check=True)


def main(argv: list[str]) -> int:
    path, s = Path(argv[0]), json.loads(argv[1])
    logs = path.parent / "logs"
    impls = [Impl(name, python, env=env, protocol="rdma") for name, python, env in s["impls"]]
    out: dict[str, Any] = {"rows": [], "faults": [], "failed": {}}
    steps: list[tuple[str, Callable[[], None]]] = [
        ("one NIC", lambda: one_nic(impls, s, out, logs)),
        ("four NICs", lambda: (shape(s["rate"]), four_nics(impls, s, out, logs))[1]),
    ]
    for kind, lose, repair in (("link down", "down", "up"), ("silent loss", "drop", "pass")):
        for impl in impls:
            steps.append(
                (
                    f"{impl.name}, {kind}",
                    lambda i=impl, k=kind, a=lose, b=repair: out["faults"].append(
                        {"column": i.name, "kind": k, **fault(i, a, b, logs)}
                    ),
                )
            )
    for title, step in steps:
        try:
            step()
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            out["failed"][title] = str(error)
        path.write_text(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
