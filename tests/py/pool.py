"""A Store of real processes for the tests: a master, and nodes where a test wants them."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from cluster import free_port

import mooncake
from mooncake.store import MooncakeDistributedStore

PROGRAMS = Path(mooncake.__file__).parent / "bin"
START_S = 30
MIB = 1 << 20


class Process:
    """One program of the package, on loopback; its log is kept for messages."""

    def __init__(self, log: Path, name: str, *flags: str, env: dict[str, str] | None = None) -> None:
        self.log, self.name, self.flags, self.env = log, name, flags, env or {}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [PROGRAMS / self.name, *self.flags], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=os.environ | {"MC_TCP_BIND_ADDRESS": "127.0.0.1"} | self.env,
            )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """As an operator stops it; it has to end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def tail(self, lines: int = 15) -> str:
        return f"{self.name}'s log ends:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Pool:
    """A master; node() adds a process that owns memory."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.port, self.http = free_port(), free_port()
        while self.http == self.port:
            self.http = free_port(self.port + 1)
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: list[Process] = []
        self.master = Process(
            folder / "master.log", "mooncake_master", f"--rpc_port={self.port}", "--rpc_address=127.0.0.1",
            f"--metrics_port={self.http}", "--metrics_host=127.0.0.1", f"--state_dir={folder / 'state'}", *flags,
        )  # fmt: skip
        self.wait(lambda: self.get("/health") is not None, "the master is not ready")

    def node(self, size: str = "64 MB", *flags: str, env: dict[str, str] | None = None) -> Process:
        before = self.segments()
        port = free_port(self.http + 1 + len(self.nodes) * 10, 32000)
        one = Process(
            self.folder / f"node{len(self.nodes)}.log", "mooncake_client", "--host=127.0.0.1", f"--port={port}",
            f"--global_segment_size={size}", f"--master_server_address={self.address}", "--metadata_server=P2PHANDSHAKE",
            *flags, env=env,
        )  # fmt: skip
        one.address = f"127.0.0.1:{port}"
        self.nodes.append(one)
        self.wait(lambda: len(self.segments()) > len(before), "the node does not join", one)
        return one

    def get(self, path: str) -> str | None:
        """What the master's HTTP server answers; None when it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def json(self, path: str):
        return json.loads(self.get(path) or "null")

    def segments(self) -> list[str]:
        return (self.get("/get_all_segments") or "").split()

    def wait(self, is_so, otherwise: str, *processes: Process) -> None:
        end = time.monotonic() + START_S
        while not is_so():
            for one in (self.master, *processes):
                assert one.process.poll() is None, f"{one.name} ended with {one.process.returncode}; {one.tail()}"
            if time.monotonic() > end:
                raise TimeoutError(f"{otherwise} after {START_S} s; " + "\n".join(p.tail() for p in (self.master, *processes)))
            time.sleep(0.02)

    def close(self) -> None:
        for one in (*self.nodes, self.master):
            one.close()


def connect(pool: Pool, segment: int = 0, kind: type = MooncakeDistributedStore, **options) -> MooncakeDistributedStore:
    """A client of this pool, which gives it so much memory."""
    store = kind()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", segment, 16 * MIB, "tcp", "", pool.address, **options) == 0
    return store
