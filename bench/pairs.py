"""Implementations under test and the pairs of worker processes that run them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1 << 20

# Shapes checked before anything is measured: (block, batch). Odd sizes, one byte, more items than an iovec call takes.
VERIFY_SHAPES = ((1, 1), (4096, 1), (4096, 128), (65536, 33), (64, 2000), (MIB + 13, 3), (16 * MIB, 1))
KILL_S = 20  # for a killed process to be gone
GUARD = 4096  # bytes behind the range that must stay as they were

# Upstream refuses ports from 32768 up, so everybody gets the range it likes.
COMMON_ENV = {
    "MC_MIN_RPC_PORT": "15000",
    "MC_MAX_RPC_PORT": "17000",
    "MC_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "2",
    "NIXL_LOG_LEVEL": "ERROR",
    "UCX_LOG_LEVEL": "ERROR",
}


class BenchError(Exception):
    """Something the reader of the table must know: named, and no reason to stop the other rows."""


@dataclass(frozen=True)
class Impl:
    """One column: an interpreter that has the implementation, and how it is set up."""

    name: str
    python: str
    backend: str = "te"  # what the script calls: te, nixl, …
    script: str = "worker.py"
    env: dict[str, str] = field(default_factory=dict)
    alloc: str = "mmap"  # mmap: memory the engine did not allocate; managed: allocate_managed_buffer
    is_network: bool = False  # its bytes must be seen on a network device; else they should not be
    protocol: str = "tcp"
    device: str = ""

    def named(self, name: str) -> Impl:
        return replace(self, name=name)


def can_import(python: str, module: str) -> str | None:
    """None when the interpreter imports the module, else why not."""
    try:
        done = subprocess.run([python, "-P", "-c", f"import {module}"], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


class WorkerProcess:
    """One worker.py, optionally in a network namespace."""

    def __init__(self, impl: Impl, role: str, log_dir: Path, namespace: str | None = None) -> None:
        self.name = f"{impl.name} {role}"
        self.log_path = log_dir / f"{impl.name}-{role}.log".replace(" ", "-")
        log_dir.mkdir(parents=True, exist_ok=True)
        argv = [impl.python, "-P", str(HERE / impl.script), impl.backend]
        if namespace:
            argv = ["ip", "netns", "exec", namespace, *argv]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **COMMON_ENV, **impl.env},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(self, cmd: str, timeout_s: float = 60, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"cmd": cmd, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost(cmd) from None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.kill()
            raise BenchError(f"{self.name}: no answer to {cmd!r} within {timeout_s:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise self._lost(cmd)
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def _lost(self, cmd: str) -> BenchError:
        self.kill()
        return BenchError(f"{self.name}: ended during {cmd!r} (code {self.process.returncode}), see {self.log_path}")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.is_running:
            self.process.kill()
        try:
            self.process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            pass  # the kernel does not let it go; nothing more can be done about it here

    def stop(self) -> None:
        self.signal(signal.SIGCONT)
        try:
            assert self.process.stdin
            self.process.stdin.write('{"cmd": "quit"}\n')
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()


@dataclass(frozen=True)
class Place:
    """Where the two ends of a pair live."""

    target_host: str = "127.0.0.1"
    initiator_host: str = "127.0.0.1"
    target_device: str = ""
    initiator_device: str = ""
    target_namespace: str | None = None
    initiator_namespace: str | None = None


class Pair:
    """A target and an initiator of one implementation, connected."""

    def __init__(self, impl: Impl, pool: int, log_dir: Path, place: Place = Place()) -> None:
        self.impl = impl
        self.target = WorkerProcess(impl, "target", log_dir, place.target_namespace)
        self.initiator = WorkerProcess(impl, "initiator", log_dir, place.initiator_namespace)
        try:
            common: dict[str, Any] = {"pool": pool, "protocol": impl.protocol, "alloc": impl.alloc}
            self.target_info = self.target.call(
                "open", role="target", host=place.target_host, device=place.target_device or impl.device, **common
            )
            self.initiator_info = self.initiator.call(
                "open",
                role="initiator",
                host=place.initiator_host,
                device=place.initiator_device or impl.device,
                **common,
            )
            self.initiator.call("connect", peer=self.target_info)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        return (self.target, self.initiator)

    @property
    def version(self) -> str:
        return self.initiator_info["version"]

    @property
    def is_alive(self) -> bool:
        return all(w.is_running for w in self.workers)

    def verify(self) -> None:
        """Move every shape both ways and compare hashes, and the bytes behind the range. Raises BenchError."""
        for block, batch in VERIFY_SHAPES:
            for op in ("write", "read"):
                self._verify_shape(op, block, batch)

    def _verify_shape(self, op: str, block: int, batch: int) -> None:
        length = block * batch
        source, sink = (self.initiator, self.target) if op == "write" else (self.target, self.initiator)
        source.call("fill", off=0, len=length, seed=block + batch)
        sink.call("fill", off=0, len=length + GUARD, seed=7)
        guard = sink.call("hash", off=length, len=GUARD)
        rc = self.initiator.call("once", op=op, block=block, batch=batch)["rc"]
        if rc != 0:
            raise BenchError(f"{self.impl.name}: {op} of {block} x {batch} returned {rc}")
        if source.call("hash", off=0, len=length) != sink.call("hash", off=0, len=length):
            raise BenchError(f"{self.impl.name}: {op} of {block} x {batch} moved wrong bytes")
        if sink.call("hash", off=length, len=GUARD) != guard:
            raise BenchError(f"{self.impl.name}: {op} of {block} x {batch} wrote behind its range")

    def case(self, op: str, block: int, batch: int, threads: int, secs: float, **more: Any) -> dict[str, Any]:
        """One measured case. Raises BenchError on a failed operation, or when a network column avoided the network."""
        row = self.initiator.call(
            "case",
            timeout_s=60 + 4 * secs,
            op=op,
            block=block,
            batch=batch,
            threads=threads,
            secs=secs,
            target_pid=self.target.pid,
            **more,
        )
        if row["err"] or not row["ops"]:
            raise BenchError(f"{self.impl.name}: {row['err']} of {row['ops']} operations failed")
        if self.impl.is_network and row["net_share"] < 0.9:
            raise BenchError(f"{self.impl.name}: only {row['net_share']:.0%} of the bytes went over the network")
        return row

    def pause(self) -> None:
        """Stop both processes, so that one that spins when idle does not slow the others' rows."""
        for worker in self.workers:
            worker.signal(signal.SIGSTOP)

    def resume(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGCONT)

    def close(self) -> None:
        for worker in (getattr(self, "initiator", None), getattr(self, "target", None)):
            if worker:
                worker.stop()
