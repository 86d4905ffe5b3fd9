"""Drive processes that hold an engine (worker.py), ours or upstream's. Every wait has a limit."""

import json
import os
import selectors
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
ANSWER_S = 90  # longer than an engine's own timeouts


class Node:
    """One worker process. Its methods are the worker's."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MC_")}
        # Upstream's initiator waits at least 5 s for a dead peer, whatever is asked; ours follows the variable too.
        # Loopback only: with a metadata service upstream's would advertise the first interface.
        fixed = {"MC_TRANSFER_TIMEOUT": "5", "MC_FORCE_TCP": "1", "MC_TCP_BIND_ADDRESS": "127.0.0.1"}
        self.log = log
        self.name = ""
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=inherited | fixed | {"PYTHONFAULTHANDLER": "1"} | env,
                bufsize=0,
            )
        self._rest = b""

    def _answer(self, timeout_s: float) -> bytes:
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"no answer after {timeout_s} s; its log ends:\n{self.tail()}")
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    raise EOFError(f"the process is gone ({self.process.poll()}); its log ends:\n{self.tail()}")
                self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def ask(self, method: str, *args: Any) -> None:
        """Send a request; its answer is taken with take()."""
        self.process.stdin.write(json.dumps([method, args]).encode() + b"\n")

    def take(self, timeout_s: float = ANSWER_S) -> Any:
        answer = json.loads(self._answer(timeout_s))
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}its log ends:\n{self.tail()}")
        return answer["value"]

    def do(self, method: str, *args: Any) -> Any:
        self.ask(method, *args)
        return self.take()

    def call(self, method: str, *args: Any) -> Any:
        """A method of TransferEngine."""
        return self.do("call", method, *args)

    def start(self, host: str = "127.0.0.1", metadata: str = "P2PHANDSHAKE") -> "Node":
        rc, port = self.do("start", host, metadata)
        assert rc == 0, f"initialize() = {rc}; its log ends:\n{self.tail()}"
        self.name = f"{host}:{port}" if metadata == "P2PHANDSHAKE" else host
        return self

    def memory(self, size: int, seed: int | None = None) -> int:
        """Registered memory; its address."""
        address = self.do("buffer", size, seed)
        assert self.call("register_memory", address, size) == 0, self.tail()
        return address

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread stands still: those that run still answer for a while."""
        self.process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 30
        while any(state != "T" for state in self._states()):
            if time.monotonic() > end:
                raise TimeoutError("the process does not stop")
            time.sleep(0.001)

    def _states(self) -> list[str]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.stdout.close()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def free_port(low: int = 20000, high: int = 30000) -> int:
    """A free port below the ephemeral ones. Starts where the process's number says, so that runs do not meet."""
    start = low + os.getpid() % (high - low)
    for port in (*range(start, high), *range(low, start)):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")


def wait_for_port(port: int, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
