"""One end of a benchmark pair, run by the interpreter of the implementation under test.

Obeys JSON lines on stdin and answers each with one line on stdout; what the implementation itself prints goes to
stderr. Imports the standard library and that implementation, nothing else (start it with `python -P`, so that the
other files of this folder do not shadow anybody's modules). Latencies and CPU time are measured here.

    worker.py te | nixl
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib.metadata
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

Operation = Callable[[], int]
Message = dict[str, Any]

DISTRIBUTIONS = ("mooncake-c", "mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine", "nixl")
RING_MAX = 4096  # operations prepared ahead for one thread
ERRORS_MAX = 20  # a case that fails this often ends early
WARM_OPS = 3
PATTERN = (bytes(range(256)) * 17)[:4099]  # a prime period: shifted blocks differ


class Backend(Protocol):
    def register(self, addr: int, length: int) -> None: ...

    def register_many(self, addrs: list[int], length: int) -> None: ...

    def allocate(self, length: int) -> int: ...

    def describe(self, addr: int) -> Message: ...

    def connect(self, peer: Message) -> None: ...

    def prepare(self, is_write: bool, block: int, local: list[int], remote: list[int]) -> Operation: ...

    def release(self) -> None: ...

    ring_max: int


def want_zero(rc: int, what: str) -> None:
    if rc != 0:
        raise RuntimeError(f"{what} returned {rc}")


class TeBackend:
    """mooncake.engine.TransferEngine: ours, upstream's, or anybody's with the same Python API."""

    ring_max = RING_MAX

    def __init__(self, m: Message) -> None:
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        rc = self.engine.initialize(m["host"], "P2PHANDSHAKE", m["protocol"], m["device"])
        want_zero(rc, "initialize")
        self.name = f"{m['host'].split(':')[0]}:{self.engine.get_rpc_port()}"
        self.peer, self.remote_base = "", 0

    def register(self, addr: int, length: int) -> None:
        want_zero(self.engine.register_memory(addr, length), "register_memory")

    def register_many(self, addrs: list[int], length: int) -> None:
        rc = self.engine.batch_register_memory(addrs, [length] * len(addrs))
        want_zero(rc, "batch_register_memory")

    def allocate(self, length: int) -> int:
        addr = self.engine.allocate_managed_buffer(length)
        if not addr:
            raise RuntimeError(f"allocate_managed_buffer({length}) returned 0")
        return addr

    def describe(self, addr: int) -> Message:
        return {"name": self.name, "addr": addr}

    def connect(self, peer: Message) -> None:
        self.peer, self.remote_base = peer["name"], peer["addr"]

    def prepare(self, is_write: bool, block: int, local: list[int], remote: list[int]) -> Operation:
        e = self.engine
        far = [self.remote_base + r for r in remote]
        if len(local) == 1:
            one = e.transfer_sync_write if is_write else e.transfer_sync_read
            return functools.partial(one, self.peer, local[0], far[0], block)
        many = e.batch_transfer_sync_write if is_write else e.batch_transfer_sync_read
        return functools.partial(many, self.peer, local, far, [block] * len(local))

    def release(self) -> None:
        pass


class NixlBackend:
    """NIXL's Python agent. Handles are made once and posted again, its cheapest way."""

    ring_max = 64

    def __init__(self, m: Message) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent(f"{m['role']}{os.getpid()}", nixl_agent_config(backends=["UCX"]))
        self.peer, self.remote_base = "", 0
        self.handles: list[Any] = []

    def register(self, addr: int, length: int) -> None:
        self.agent.register_memory([(addr, length, 0, "")], "DRAM")

    def register_many(self, addrs: list[int], length: int) -> None:
        self.agent.register_memory([(a, length, 0, "") for a in addrs], "DRAM")

    def allocate(self, length: int) -> int:
        raise RuntimeError("NIXL does not allocate")

    def describe(self, addr: int) -> Message:
        return {"name": self.agent.name, "addr": addr, "meta": self.agent.get_agent_metadata().hex()}

    def connect(self, peer: Message) -> None:
        name = self.agent.add_remote_agent(bytes.fromhex(peer["meta"]))
        self.peer = name.decode() if isinstance(name, bytes) else name
        self.remote_base = peer["addr"]
        self.agent.make_connection(self.peer)

    def prepare(self, is_write: bool, block: int, local: list[int], remote: list[int]) -> Operation:
        a = self.agent
        near = a.get_xfer_descs([(addr, block, 0) for addr in local], "DRAM")
        far = a.get_xfer_descs([(self.remote_base + r, block, 0) for r in remote], "DRAM")
        handle = a.initialize_xfer("WRITE" if is_write else "READ", near, far, self.peer)
        self.handles.append(handle)

        def run(transfer=a.transfer, check=a.check_xfer_state) -> int:
            state = transfer(handle)
            while state == "PROC":
                state = check(handle)
            return 0 if state == "DONE" else -1

        return run

    def release(self) -> None:
        for handle in self.handles:
            self.agent.release_xfer_handle(handle)
        self.handles = []


class Meter:
    """Wall time, CPU of both ends and of everybody, and bytes received by this network namespace, over an interval."""

    def __init__(self, target_pid: int | None) -> None:
        self.target_pid = target_pid
        self.begin = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        target = time.clock_gettime((~self.target_pid << 3) | 2) if self.target_pid else 0.0
        with open("/proc/stat") as f:
            ticks = [int(x) for x in f.readline().split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/self/net/dev") as f:
            received = sum(int(line.split(":")[1].split()[0]) for line in f.readlines()[2:])
        return time.perf_counter(), time.process_time(), target, busy, float(received)

    def stop(self) -> tuple[float, float, float, float, float]:
        wall, own, target, busy, received = (b - a for a, b in zip(self.begin, self._read()))
        return wall, own, target, max(0.0, busy - own - target), received


class Worker:
    def __init__(self, backend: str) -> None:
        self.backend_name = backend
        self.backend: Backend
        self.base = 0
        self.pool = 0
        self.kept: list[mmap.mmap] = []  # mappings the implementation may still use

    # Commands; each returns the answer.

    def open(self, m: Message) -> Message:
        start = time.perf_counter()
        self.backend = NixlBackend(m) if self.backend_name == "nixl" else TeBackend(m)
        opened = time.perf_counter()
        self.pool = m["pool"]
        if m["alloc"] == "managed":
            self.base = self.backend.allocate(self.pool)
            ctypes.memset(self.base, 1, self.pool)
        elif self.pool:
            self.base = self._map(self.pool)
            self.backend.register(self.base, self.pool)
        return {
            **self.backend.describe(self.base),
            "pid": os.getpid(),
            "init_ms": (opened - start) * 1e3,
            "version": next(filter(None, map(_version, DISTRIBUTIONS)), "unknown"),
        }

    def describe(self, m: Message) -> Message:
        """How a peer reaches the memory at m["addr"]; for memory registered after open."""
        return self.backend.describe(m["addr"])

    def connect(self, m: Message) -> Message:
        self.backend.connect(m["peer"])
        return {}

    def fill(self, m: Message) -> Message:
        shift = m["seed"] % len(PATTERN)
        data = (PATTERN[shift:] + PATTERN[:shift]) * (m["len"] // len(PATTERN) + 1)
        ctypes.memmove(m.get("addr", self.base) + m["off"], data, m["len"])
        return {}

    def hash(self, m: Message) -> Message:
        data = ctypes.string_at(m.get("addr", self.base) + m["off"], m["len"])
        return {"hash": hashlib.blake2b(data).hexdigest()}

    def once(self, m: Message) -> Message:
        """One operation on the first block x batch bytes, to check the data."""
        offs = [k * m["block"] for k in range(m["batch"])]
        run = self.backend.prepare(m["op"] == "write", m["block"], [self.base + o for o in offs], offs)
        rc = run()
        self.backend.release()
        return {"rc": rc}

    def register(self, m: Message) -> Message:
        """Register m["count"] adjacent buffers more, one by one or as one batch."""
        count, length = m["count"], m["len"]
        first = self._map(count * length)
        addrs = [first + i * length for i in range(count)]
        start, cpu = time.perf_counter(), time.process_time()
        if m["batched"]:
            self.backend.register_many(addrs, length)
        else:
            for addr in addrs:
                self.backend.register(addr, length)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"us_each": wall / count * 1e6, "cpu_us_each": cpu / count * 1e6, "last": addrs[-1]}

    def case(self, m: Message) -> Message:
        threads, rate = m["threads"], m.get("rate", 0)
        rings = [self._ring(m, t) for t in range(threads)]
        base_us = _pacing_cost(rate, m["secs"]) if rate else 0.0
        lanes = [Lane(ring, m["secs"], rate) for ring in rings]
        begin = threading.Event()
        runners = [threading.Thread(target=lane.run, args=(begin,)) for lane in lanes]
        gc.collect()
        gc.disable()
        for runner in runners:
            runner.start()
        for lane in lanes:
            lane.is_warm.wait()
        meter = Meter(m.get("target_pid"))
        begin.set()
        for runner in runners:
            runner.join()
        wall, own, target, others, received = meter.stop()
        gc.enable()
        self.backend.release()
        for lane in lanes:
            if lane.failure:
                raise lane.failure
        errors = sum(lane.errors for lane in lanes)
        latencies = sorted(ns for lane in lanes for ns in lane.latencies)
        ops = len(latencies)
        if ops == 0:
            return {"err": errors, "ops": 0}
        moved = ops * m["block"] * m["batch"]
        answer = {
            "GBps": moved / 1e9 / wall,
            "ops": ops,
            "p50_us": latencies[ops // 2] / 1e3,
            "p99_us": latencies[ops * 99 // 100] / 1e3,
            "cpu_s_per_GB": (own + target) / moved * 1e9,
            "ini_cpu_s_per_GB": own / moved * 1e9,
            "tgt_cpu_s_per_GB": target / moved * 1e9,
            "cpu_us_per_op": (own + target) / ops * 1e6,
            "base_us_per_op": base_us,
            "others": others / wall,
            "net_share": received / moved,
            "err": errors,
        }
        if m.get("trace"):  # when each operation ended, on CLOCK_MONOTONIC
            answer["ends_s"] = [round(e / 1e9, 6) for lane in lanes for e in lane.ends]
        return answer

    def _ring(self, m: Message, thread: int) -> list[Operation]:
        """Operations of one thread, spread over its part of the pool so that the data is cold."""
        block, batch = m["block"], m["batch"]
        size = block * batch
        part = (self.pool // m["threads"]) // 4096 * 4096
        if size > part:
            raise ValueError(f"{block} x {batch} bytes do not fit the {part} bytes of one thread")
        count = min(part // size, RING_MAX, self.backend.ring_max)
        step = part // count if part // count < 4096 else part // count // 4096 * 4096
        ring = []
        for i in range(count):
            offs = [thread * part + i * step + k * block for k in range(batch)]
            near = [self.base + o for o in offs]
            ring.append(self.backend.prepare(m["op"] == "write", block, near, offs))
        return ring

    def _map(self, length: int) -> int:
        mapping = mmap.mmap(-1, length)
        self.kept.append(mapping)
        addr = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        ctypes.memset(addr, 1, length)
        return addr


class Lane:
    """One thread of a case: its operations over and over until the time is up."""

    def __init__(self, ring: list[Operation], secs: float, rate: float) -> None:
        self.ring, self.secs, self.rate = ring, secs, rate
        self.latencies: list[int] = []
        self.ends: list[int] = []
        self.errors = 0
        self.failure: Exception | None = None
        self.is_warm = threading.Event()

    def run(self, begin: threading.Event) -> None:
        try:
            for op in self.ring[:WARM_OPS]:
                if op() != 0:
                    self.errors += 1
            self.is_warm.set()
            begin.wait()
            if self.rate:
                self._run_paced()
            else:
                self._run_flat_out()
        except Exception as error:
            self.failure = error
            self.is_warm.set()

    def _run_flat_out(self) -> None:
        ring, latencies, ends, clock = self.ring, self.latencies, self.ends, time.monotonic_ns
        i, count = 0, len(ring)
        last = clock()
        end = last + int(self.secs * 1e9)
        while last < end and self.errors <= ERRORS_MAX:
            if ring[i]() != 0:
                self.errors += 1
            now = clock()
            latencies.append(now - last)
            ends.append(now)
            last = now
            i = i + 1 if i + 1 < count else 0

    def _run_paced(self) -> None:
        for op in _ticks(self.rate, self.secs, self.ring):
            start = time.monotonic_ns()
            if op() != 0:
                self.errors += 1
            self.latencies.append(time.monotonic_ns() - start)


def _ticks(rate: float, secs: float, ring: list[Operation]):
    """Yield operations, `rate` a second."""
    at = time.monotonic()
    for i in range(max(1, int(secs * rate))):
        at += 1 / rate
        time.sleep(max(0.0, at - time.monotonic()))
        yield ring[i % len(ring)]


def _pacing_cost(rate: float, secs: float) -> float:
    """CPU us an operation that the paced loop costs when its operation does nothing.

    Of this thread only: what the implementation's own threads burn meanwhile is its cost, not the loop's.
    """
    lane = Lane([lambda: 0], secs, rate)
    cpu = time.thread_time()
    lane._run_paced()
    return (time.thread_time() - cpu) / len(lane.latencies) * 1e6


def _version(distribution: str) -> str | None:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    commands = {
        name: getattr(worker, name)
        for name in ("open", "describe", "connect", "fill", "hash", "once", "register", "case")
    }
    for line in sys.stdin:
        message = json.loads(line)
        if message["cmd"] == "quit":
            break
        try:
            answer = commands[message["cmd"]](message)
        except Exception as error:  # the driver decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    os._exit(0)  # no destructors: an engine that hangs in one must not hang the benchmark


if __name__ == "__main__":
    main()
