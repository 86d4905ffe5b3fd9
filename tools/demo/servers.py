"""Starts the two vLLM API servers, waits until they answer, watches them, and ends them, by process group, on
every path.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aiohttp import ClientError, ClientSession, ClientTimeout

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
MODEL_NAME = "smollm2-135m"
PORT_FIRST, PORT_LAST = 20000, 32767  # below the ephemeral range, which begins at 32768
READY_S = 420.0
STOP_S = 8.0
LOG_TAIL_LINES = 30
PARALLEL_MEM_BYTES = 6 << 30  # two servers at ~2.3 GB each, and room for the rest
CONNECTOR_LOGGER = "vllm.distributed.kv_transfer.kv_connector.v1.mooncake.mooncake_connector"
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class DemoError(Exception):
    """The demo failed; the text says why."""


class Progress:
    """What the demo waits for: one line rewritten on a terminal, a line per change (without the seconds) when piped."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._parts: dict[str, str] = {}
        self._last_print = 0.0

    def update(self, what: str, state: str) -> None:
        before, self._parts[what] = self._parts.get(what, ""), state
        if self._live:
            line = "  ".join(f"{k}: {v}" for k, v in self._parts.items())
            self._out.write(f"\r\033[K{line}")
            self._out.flush()
        elif before.split(",")[0] != state.split(",")[0] or time.monotonic() - self._last_print > 20.0:
            self._last_print = time.monotonic()
            print(f"{what}: {state}", file=self._out, flush=True)

    def close(self) -> None:
        if self._live and self._parts:
            self._out.write("\n")
        self._parts.clear()


@dataclass
class Server:
    """One vLLM API server. `metrics_port` is where our engine inside it serves its own counters."""

    role: str  # "prefill" or "decode"
    kv_role: str
    port: int
    metrics_port: int
    bootstrap_port: int
    log: Path
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    ready_s: float = 0.0
    last_lines: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def bootstrap_url(self) -> str:
        return f"http://{HOST}:{self.bootstrap_port}"

    @property
    def engine_metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:]) or "    (empty)"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, on any address: the bootstrap inside vLLM binds 0.0.0.0."""
    ports: list[int] = []
    for port in random.sample(range(PORT_FIRST, PORT_LAST + 1), 500):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise DemoError(f"no {count} free TCP ports between {PORT_FIRST} and {PORT_LAST}")


def memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def write_log_config(path: Path) -> None:
    """vLLM's log with times in seconds, and the connector's debug lines, from which the timeline takes the transfer."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"demo": {"format": "%(created).6f %(levelname)s [%(name)s] %(message)s"}},
        "handlers": {"demo": {"class": "logging.StreamHandler", "formatter": "demo", "stream": "ext://sys.stdout"}},
        "loggers": {
            "vllm": {"handlers": ["demo"], "level": "INFO", "propagate": False},
            CONNECTOR_LOGGER: {"level": "DEBUG"},
        },
    }
    path.write_text(json.dumps(config, indent=2))


def base_environment(python_path: list[str]) -> dict[str, str]:
    """What both servers run under. The caller's PYTHONPATH is left out: it could put another mooncake package first."""
    ours = ("MC_FORCE_TCP", "MC_METRICS_PORT", "MC_CACHE_DIR", "MC_WHEEL", "MC_DEMO_")
    drop = ("PYTHON", "VLLM_", "MOONCAKE_", *ours)
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    env["PYTHONPATH"] = os.pathsep.join(python_path)
    env["PYTHONNOUSERSITE"] = "1"
    env["NO_PROXY"] = env["no_proxy"] = f"{HOST},localhost"
    return env


class Servers:
    """Both servers, from start to end. `async with` ends them whatever happens inside."""

    def __init__(self, model: Path, work: Path, transport: str, python_path: list[str]) -> None:
        ports = free_ports(5)
        self.prefill = Server("prefill", "kv_producer", ports[0], ports[1], ports[2], work / "prefill.log")
        self.decode = Server("decode", "kv_consumer", ports[3], ports[4], ports[2], work / "decode.log")
        self.all = (self.prefill, self.decode)
        self._model = model
        self._transport = transport
        self._python_path = python_path
        self._log_config = work / "logging.json"
        write_log_config(self._log_config)

    async def __aenter__(self) -> "Servers":
        return self

    async def __aexit__(self, *exc: object) -> None:
        for server in self.all:
            server.last_lines = server.tail()  # before the noise of their end
        await asyncio.shield(self.stop())

    def _command(self, server: Server) -> list[str]:
        transfer = {
            "kv_connector": "MooncakeConnector",
            "kv_role": server.kv_role,
            "kv_connector_extra_config": {"mooncake_protocol": "tcp", "num_workers": 2},
        }
        options = ["--model", str(self._model), "--served-model-name", MODEL_NAME, "--dtype", "bfloat16"]
        options += ["--host", HOST, "--port", str(server.port)]
        options += [
            "--enforce-eager",
            "--max-model-len",
            "4096",
            "--max-num-seqs",
            "4",
            "--generation-config",
            "vllm",
        ]
        options += ["--distributed-executor-backend", "uni", "--kv-transfer-config", json.dumps(transfer)]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]

    def _environment(self, server: Server) -> dict[str, str]:
        env = base_environment(self._python_path)
        env.update(
            HF_HUB_OFFLINE="1",
            PYTHONHASHSEED="0",
            PYTHONUNBUFFERED="1",
            OMP_NUM_THREADS="1",
            VLLM_NO_USAGE_STATS="1",
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_HOST_IP=HOST,
            VLLM_LOGGING_CONFIG_PATH=str(self._log_config),
            VLLM_MOONCAKE_BOOTSTRAP_PORT=str(server.bootstrap_port),
            VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT="60",
            MC_METRICS_PORT=str(server.metrics_port),
        )
        if self._transport == "tcp":
            env["MC_FORCE_TCP"] = "1"
        return env

    async def start(self, progress: Progress) -> None:
        """Return when both answer. Together where memory allows: most of a start is Python imports, one core each."""
        if memory_available() >= PARALLEL_MEM_BYTES:
            await first_failure(self._start_one(server, progress) for server in self.all)
            return
        for server in self.all:
            await self._start_one(server, progress)

    async def _start_one(self, server: Server, progress: Progress) -> None:
        begin = time.monotonic()
        with server.log.open("wb") as log:
            server.process = await asyncio.create_subprocess_exec(
                *self._command(server),
                env=self._environment(server),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        async with ClientSession(timeout=ClientTimeout(total=2.0)) as session:
            while True:
                server.ready_s = time.monotonic() - begin
                if server.process.returncode is not None:
                    raise self.death(server, "ended while starting")
                if server.ready_s > READY_S:
                    raise self.death(server, f"was not ready within {READY_S:g} s")
                if await answers(session, f"{server.url}/health"):
                    break
                progress.update(server.role, f"starting, {server.ready_s:.0f} s")
                await asyncio.sleep(0.25)
        progress.update(server.role, f"ready after {server.ready_s:.0f} s")

    def death(self, server: Server, what: str) -> DemoError:
        code = server.process.returncode if server.process else None
        status = "" if code is None else f" (exit status {code})"
        return DemoError(f"the {server.role} server {what}{status}; its log is {server.log}")

    async def watch(self) -> None:
        """Never returns while both live; raises DemoError when one ends."""
        waits = {asyncio.create_task(s.process.wait()): s for s in self.all if s.process is not None}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            raise self.death(waits[done.pop()], "ended by itself")
        finally:
            for task in waits:
                task.cancel()

    async def stop(self) -> None:
        """Ask every process of each server's own session to end, then make it."""
        live = [s.process for s in self.all if s.process is not None]
        for process in live:
            signal_session(process.pid, signal.SIGTERM)
        ends = [asyncio.create_task(p.wait()) for p in live]
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        for process in live:
            signal_session(process.pid, signal.SIGKILL)
        if ends:
            await asyncio.wait(ends)


async def first_failure(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one fails, cancel the rest and raise its exception as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def die_with_parent() -> None:
    """In the child: even if the demo is killed with SIGKILL, its servers are asked to end."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def signal_session(pid: int, number: int) -> None:
    """A server leads its own session and group, so this reaches its engine process too, even after its own end."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


async def answers(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as reply:
            return reply.status == 200
    except (ClientError, OSError, TimeoutError):
        return False
