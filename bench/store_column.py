"""The services of one column of the Store's benchmarks, and its Python client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.pairs import BenchError, Impl, WorkerProcess
from bench.stats import MIB
from bench.targets import StoreCase

CHECKED = (1, 4095, 65536, 300_000, MIB + 13)
POOL = 64 * MIB
SEGMENT_MB = 1536
WARM_MB = 1280  # with what a service keeps for itself it is nearly full then
START_S = 20


@dataclass(frozen=True)
class Service:
    """A program of a column, started before its client."""

    argv: list[str]
    port: int  # it listens there when it is ready


def free_port(taken: set[int]) -> int:
    for port in range(21000 + os.getpid() % 5000, 32000):
        if port in taken:
            continue
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    raise BenchError("no free port between 21000 and 32000")


def services_of(impl: Impl, taken: set[int], logs: Path) -> list[Service]:
    port = free_port(taken)
    if impl.backend == "redis":
        return [Service(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"], port)]
    if impl.backend == "memcached":
        size = ["-m", str(SEGMENT_MB), "-I", "64m", "-t", "2", "-R", "200"]
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [Service(["memcached", "-l", "127.0.0.1", "-p", str(port), *size, *user], port)]
    programs, node, admin = Path(impl.python).parent, free_port(taken), free_port(taken)
    master = [str(programs / "mooncake_master"), f"--rpc_port={port}", f"--metrics_port={admin}", "--client_ttl=600",
              "--rpc_address=127.0.0.1", "--metrics_host=127.0.0.1", "--default_kv_lease_ttl=5000"]  # fmt: skip
    if impl.name.startswith("ours"):
        master.append(f"--state_dir={logs / f'state-{port}'}")
    pool = [str(programs / "mooncake_client"), "--host=127.0.0.1", f"--port={node}", f"--global_segment_size={SEGMENT_MB} MB",
            f"--master_server_address=127.0.0.1:{port}", "--metadata_server=P2PHANDSHAKE", "--protocol=tcp"]  # fmt: skip
    return [Service(master, port), Service(pool, 0)]


def launch(impl: Impl, service: Service, log_path: Path) -> subprocess.Popen:
    """It listens, or need not. Raises BenchError."""
    env = {**os.environ, "MC_TCP_BIND_ADDRESS": "127.0.0.1", **impl.env}
    with open(log_path, "wb") as log:
        process = subprocess.Popen(service.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
    end = time.monotonic() + START_S
    while service.port:
        if process.poll() is not None:
            raise BenchError(f"{impl.name}: {service.argv[0]} ended with {process.returncode}")
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", service.port)) == 0:
                break
        if time.monotonic() > end:
            halt([process])
            raise BenchError(f"{impl.name}: {service.argv[0]} does not listen after {START_S} s")
        time.sleep(0.005)
    return process


def halt(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Column:
    """The services and the client of one implementation."""

    def __init__(self, impl: Impl, logs: Path, taken: set[int], pool: int = POOL) -> None:
        self.impl = impl
        self.processes: list[subprocess.Popen] = []
        self.worker: WorkerProcess | None = None
        logs.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            services = services_of(impl, taken, logs)
            for number, service in enumerate(services):
                log = logs / f"store-{impl.name}-{number}.log".replace(" ", "-")
                self.processes.append(launch(impl, service, log))
            self.worker = WorkerProcess(impl, "client", logs)
            self.worker.call("open", master=f"127.0.0.1:{services[0].port}", buffer=64 * MIB, pool=pool)
            self._first_use(start)
        except BaseException:
            self.close()
            raise

    def _first_use(self, start: float) -> None:
        """The node joins when it likes: ask until a checked object came back."""
        assert self.worker
        while wrong := self.worker.call("check", sizes=[1])["wrong"]:
            if time.monotonic() > start + START_S:
                raise BenchError(f"{self.impl.name}: not usable after {START_S} s: {wrong[0]}")
            time.sleep(0.005)
        self.start_ms = (time.monotonic() - start) * 1e3

    def check(self) -> None:
        assert self.worker
        wrong = self.worker.call("check", sizes=CHECKED)["wrong"]
        if wrong:
            raise BenchError(f"{self.impl.name}: {wrong[0]}")

    def warm(self) -> None:
        assert self.worker
        self.worker.call("warm", timeout_s=120, bytes=WARM_MB * MIB)

    def case(self, case: StoreCase, secs: float) -> dict:
        assert self.worker
        pids = [p.pid for p in self.processes]
        row = self.worker.call("case", timeout_s=120, op=case.op, size=case.size, batch=case.batch, secs=secs, pids=pids)
        if row["err"] or not row["ops"]:
            raise BenchError(f"{self.impl.name}: {row['err']} of {row['ops']} operations failed")
        return row

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(number)
        if self.worker:
            self.worker.signal(number)

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
        if self.worker:
            self.worker.stop()
        halt(self.processes[::-1])
