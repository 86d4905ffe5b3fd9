"""The client of a Store benchmark, run by the interpreter of the implementation under test.

Obeys JSON lines as worker.py does. Redis and memcached are spoken to over a plain socket, one system call a request and
straight into the caller's memory: the least that a Python client of theirs can cost.

    store_worker.py te | redis | memcached
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

Message = dict[str, Any]

KEYS_MAX = 2048  # objects that are read over and over
COLD_MAX = 8192  # objects that are read once
READ_BYTES_MAX = 256 << 20
WRITE_BYTES_MAX = 768 << 20  # of one case
ERRORS_MAX = 20
ASKED_SIZE = 64  # of objects that are only asked about
VECTOR_MAX = 512
VALUES_MAX = 64  # bytes objects that are put in turn


class Mooncake:
    def __init__(self, m: Message) -> None:
        from mooncake.store import MooncakeDistributedStore

        self.store = MooncakeDistributedStore()
        host, segment, buffer = "127.0.0.1", 0, m["buffer"]
        rc = self.store.setup(host, "P2PHANDSHAKE", segment, buffer, "tcp", "", m["master"])
        if rc != 0:
            raise RuntimeError(f"setup returned {rc}")
        self.put, self.get = self.store.batch_put_from, self.store.batch_get_into
        self.put_one, self.get_one = self.store.put_from, self.store.get_into
        self.exist, self.exist_one = self.store.batch_is_exist, self.store.is_exist

    def put_bytes(self, key: str, value: bytes, address: int) -> int:
        return self.store.put(key, value)

    def get_bytes(self, key: str, address: int, size: int) -> bytes:
        return self.store.get(key)

    def register(self, memory: mmap.mmap, base: int) -> None:
        rc = self.store.register_buffer(base, len(memory))
        if rc != 0:
            raise RuntimeError(f"register_buffer returned {rc}")

    def clear(self) -> None:
        self.store.remove_all(True)


class Socket:
    """A connection with a line protocol whose payloads go straight between the socket and memory."""

    def __init__(self, m: Message) -> None:
        host, port = m["master"].split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.view, self.base = memoryview(b""), 0

    def register(self, memory: mmap.mmap, base: int) -> None:
        self.view, self.base = memoryview(memory), base

    def at(self, address: int, size: int) -> memoryview:
        return self.view[address - self.base : address - self.base + size]

    def send(self, parts: list[bytes | memoryview]) -> None:
        while parts:
            sent = self.socket.sendmsg(parts[:VECTOR_MAX])
            done = 0
            while done < len(parts) and sent >= len(parts[done]):
                sent -= len(parts[done])
                done += 1
            parts = parts[done:]
            if sent:
                parts[0] = memoryview(parts[0])[sent:]

    def line(self) -> bytes:
        while b"\r\n" not in self.rest:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError("the server closed the connection")
            self.rest += more
        line, self.rest = self.rest.split(b"\r\n", 1)
        return line

    def into(self, target: memoryview) -> int:
        """A payload and the line end behind it."""
        have = min(len(target), len(self.rest))
        target[:have] = self.rest[:have]
        self.rest = self.rest[have:]
        while have < len(target):
            have += self.socket.recv_into(target[have:])
        self.line()
        return have

    def put_one(self, key: str, address: int, size: int) -> int:
        return self.put([key], [address], [size])[0]

    def get_one(self, key: str, address: int, size: int) -> int:
        return self.get([key], [address], [size])[0]

    def put_bytes(self, key: str, value: bytes, address: int) -> int:
        """The bytes at the address are as good as these: sendmsg() takes both."""
        return self.put([key], [address], [len(value)])[0]

    def get_bytes(self, key: str, address: int, size: int) -> bytes:
        return bytes(self.at(address, size)) if self.get([key], [address], [size]) == [size] else b""

    def exist_one(self, key: str) -> int:
        return self.exist([key])[0]

    def put(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        raise NotImplementedError

    def get(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        raise NotImplementedError

    def exist(self, keys: list[str]) -> list[int]:
        raise NotImplementedError


class Redis(Socket):
    def put(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        parts: list[bytes | memoryview] = []
        for key, address, size in zip(keys, addresses, sizes):
            parts += [b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key.encode(), size), self.at(address, size), b"\r\n"]
        self.send(parts)
        return [0 if self.line() == b"+OK" else -1 for _ in keys]

    def get(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        self.send([b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(k), k.encode()) for k in keys)])
        got = []
        for address in addresses:
            size = int(self.line()[1:])
            got.append(self.into(self.at(address, size)) if size >= 0 else -1)
        return got

    def exist(self, keys: list[str]) -> list[int]:
        self.send([b"".join(b"*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n" % (len(k), k.encode()) for k in keys)])
        return [int(self.line()[1:]) for _ in keys]

    def clear(self) -> None:
        self.send([b"*1\r\n$8\r\nFLUSHALL\r\n"])
        self.line()


class Memcached(Socket):
    def put(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        parts: list[bytes | memoryview] = []
        for key, address, size in zip(keys, addresses, sizes):
            parts += [b"set %b 0 0 %d\r\n" % (key.encode(), size), self.at(address, size), b"\r\n"]
        self.send(parts)
        return [0 if self.line() == b"STORED" else -1 for _ in keys]

    def get(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        self.send([b"get " + " ".join(keys).encode() + b"\r\n"])
        place, got = dict(zip(keys, addresses)), dict.fromkeys(keys, -1)
        while (line := self.line()) != b"END":
            _, name, _, size = line.split()
            key = name.decode()
            got[key] = self.into(self.at(place[key], int(size)))
        return [got[key] for key in keys]

    def exist(self, keys: list[str]) -> list[int]:
        self.send([b"".join(b"mg %b\r\n" % k.encode() for k in keys)])
        return [1 if self.line() == b"HD" else 0 for _ in keys]

    def clear(self) -> None:
        self.send([b"flush_all\r\n"])
        self.line()


class Meter:
    """Wall time, CPU of this process and of the services, and of everybody else, over an interval."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = list(pids)
        self.begin = self._read()

    def _read(self) -> tuple[float, float, float]:
        mine = time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)
        with open("/proc/stat") as file:
            ticks = [int(x) for x in file.readline().split()[1:9]]
        return time.perf_counter(), mine, (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> tuple[float, float, float]:
        wall, mine, busy = (b - a for a, b in zip(self.begin, self._read()))
        return wall, mine, max(0.0, busy - mine) / wall


class Worker:
    def __init__(self, backend: str) -> None:
        self.backend_name = backend
        self.base = self.size = 0

    def open(self, m: Message) -> Message:
        start = time.perf_counter()
        self.backend: Any = {"te": Mooncake, "redis": Redis, "memcached": Memcached}[self.backend_name](m)
        opened = time.perf_counter() - start
        self.size = m["pool"]
        self.memory = mmap.mmap(-1, self.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        noise = os.urandom(1 << 20)
        for offset in range(0, self.size, len(noise)):
            self.memory[offset : offset + len(noise)] = noise[: self.size - offset]
        self.backend.register(self.memory, self.base)
        return {"pid": os.getpid(), "open_ms": opened * 1e3}

    def check(self, m: Message) -> Message:
        """Every size in and out again, alone and in a batch; what is wrong is named."""
        wrong = []
        for size in m["sizes"]:
            half = self.size // 2
            keys = [f"check-{random.getrandbits(64):x}" for _ in range(3)]
            data = os.urandom(size)
            self.memory[:size], self.memory[half : half + size] = data, bytes(size)
            codes = [self.backend.put_one(keys[0], self.base, size), *self.backend.put(keys[1:], [self.base] * 2, [size] * 2)]
            for key in keys:
                got = self.backend.get_one(key, self.base + half, size)
                if got != size or self.memory[half : half + size] != data:
                    wrong.append(f"{size} bytes came back as {got}, or others")
            if codes != [0, 0, 0] or self.backend.exist([*keys, "none"]) != [1, 1, 1, 0]:
                wrong.append(f"{size} bytes: codes {codes}, or what exists does not")
        self.backend.clear()
        return {"wrong": wrong}

    def warm(self, m: Message) -> Message:
        """So many bytes in and out: from here on no page of the pool is touched for the first time, on either side."""
        size = 1 << 20
        for first in range(0, m["bytes"] // size, 16):
            some = self._some("warm-", first, 16, size, self.size // size)
            self.backend.put(*some)
            self.backend.get(*some)
        self.backend.clear()
        return {}

    def case(self, m: Message) -> Message:
        op, size, batch = m["op"], m["size"], m["batch"]
        prefix = f"{random.getrandbits(48):x}-"
        run, limit = self._operations(op, prefix, size, batch)
        latencies: list[int] = []
        clock = time.perf_counter_ns
        errors, done = 0, 0
        meter = Meter(m["pids"])
        last = clock()
        end = last + int(m["secs"] * 1e9)
        while last < end and done < limit and errors <= ERRORS_MAX:
            errors += not run(done)
            now = clock()
            latencies.append(now - last)
            last = now
            done += 1
        wall, cpu, others = meter.stop()
        self.backend.clear()
        latencies.sort()
        gigabytes, keys = done * batch * size / 1e9, done * batch
        return {
            "ops": done, "err": errors, "others": others, "GBps": gigabytes / wall, "keys_s": keys / wall,
            "p50_us": latencies[done // 2] / 1e3, "p99_us": latencies[min(done - 1, done * 99 // 100)] / 1e3,
            "cpu_s_per_GB": cpu / gigabytes, "cpu_us_per_key": cpu / keys * 1e6,
        }  # fmt: skip

    def _operations(self, op: str, prefix: str, size: int, batch: int) -> tuple[Callable[[int], bool], int]:
        """One operation by its number, true when it did what it should, and how many there are."""
        slots = max(1, self.size // size)
        if op in ("put", "put_from"):
            total = min(WRITE_BYTES_MAX // (size * batch), 400_000 // batch)
            if op == "put":
                put_bytes, base = self.backend.put_bytes, self.base
                values = [self.memory[i * size : (i + 1) * size] for i in range(min(slots, VALUES_MAX))]
                return lambda i: put_bytes(f"{prefix}{i}", values[i % len(values)], base) == 0, total
            if batch == 1:
                put_one, base = self.backend.put_one, self.base
                return lambda i: put_one(f"{prefix}{i}", base + i % slots * size, size) == 0, total
            return lambda i: not any(self.backend.put(*self._some(prefix, i * batch, batch, size, slots))), total
        is_cold = op == "get_into cold"
        most = min(COLD_MAX, WRITE_BYTES_MAX // size) if is_cold else min(KEYS_MAX, READ_BYTES_MAX // size)
        count = max(batch, most // batch * batch)
        for first in range(0, count, 64):
            self.backend.put(*self._some(prefix, first, min(64, count - first), size, slots))
        groups = [self._some(prefix, first, batch, size, slots) for first in range(0, count, batch)]
        if op == "get":
            get_bytes, firsts = self.backend.get_bytes, [(keys[0], addresses[0]) for keys, addresses, _ in groups]
            for key, address in firsts:
                get_bytes(key, address, size)
            return lambda i: len(get_bytes(*firsts[i % len(firsts)], size)) == size, sys.maxsize
        if op in ("get_into", "get_into cold"):
            wanted = [size] * batch
            for keys, addresses, sizes in [] if is_cold else groups:
                self.backend.get(keys, addresses, sizes)
            if batch == 1:
                ones = [(keys[0], addresses[0], size) for keys, addresses, _ in groups]
                return lambda i: self.backend.get_one(*ones[i % len(ones)]) == size, len(ones) if is_cold else sys.maxsize
            return lambda i: self.backend.get(*groups[i % len(groups)]) == wanted, sys.maxsize
        names = [keys for keys, _, _ in groups]
        if batch == 1:
            return lambda i: self.backend.exist_one(names[i % len(names)][0]) == 1, sys.maxsize
        there = [1] * batch
        return lambda i: self.backend.exist(names[i % len(names)]) == there, sys.maxsize

    def _some(self, prefix: str, first: int, n: int, size: int, slots: int) -> tuple[list[str], list[int], list[int]]:
        numbers = range(first, first + n)
        return [f"{prefix}{i}" for i in numbers], [self.base + i % slots * size for i in numbers], [size] * n


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    commands = {name: getattr(worker, name) for name in ("open", "check", "warm", "case")}
    for line in sys.stdin:
        message = json.loads(line)
        if message["cmd"] == "quit":
            break
        try:
            answer = commands[message["cmd"]](message)
        except Exception as error:  # the driver decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    os._exit(0)  # no destructors: a client that hangs in one must not hang the benchmark


if __name__ == "__main__":
    main()
