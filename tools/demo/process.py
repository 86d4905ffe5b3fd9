"""The processes of a demo: started with their output in a log, waited for, watched, and ended, by process group, on
every path.
"""

import asyncio
import ctypes
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aiohttp import ClientError, ClientSession, ClientTimeout

HOST = "127.0.0.1"
PORT_FIRST, PORT_LAST = 20000, 32767  # below the ephemeral range, which begins at 32768
STOP_S = 8.0
POLL_S = 0.1
LOG_TAIL_LINES = 30
LOG_LINE_CHARS = 300
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Ready = Callable[[ClientSession], Awaitable[bool]]


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
        """End the line; what is updated next begins a new one."""
        if self._live and self._parts:
            self._out.write("\n")
        self._parts.clear()


@dataclass
class Life:
    """One run of a process, in seconds since the epoch."""

    start: float
    ready: float | None = None
    end: float | None = None
    ending: bool = False  # the demo wants it to end
    killed: bool = False  # with kill -9


@dataclass(eq=False)
class Process:
    """A program that may be started again after its end. Its log goes on through all its lives."""

    name: str
    command: list[str]
    env: dict[str, str] = field(repr=False)
    log: Path
    lives: list[Life] = field(default_factory=list)
    child: asyncio.subprocess.Process | None = field(default=None, repr=False)
    last_lines: str = field(default="", repr=False)  # of one that ran when the demo ended

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def ready_s(self) -> float:
        """How long the latest start took; 0 where there was none."""
        return 0.0 if not self.lives or self.life.ready is None else self.life.ready - self.life.start

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(f"    {line[:LOG_LINE_CHARS]}" for line in lines[-LOG_TAIL_LINES:]) or "    (empty)"

    def death(self, what: str) -> DemoError:
        code = self.child.returncode if self.child else None
        status = "" if code is None else f" (exit status {code})"
        return DemoError(f"the {self.name} {what}{status}; its log is {self.log}")


class Processes:
    """All processes of a demo. `async with` ends them whatever happens inside."""

    def __init__(self, progress: Progress) -> None:
        self.all: list[Process] = []
        self._progress = progress
        self._watches: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Processes":
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self.all:
            if process.child is not None:
                process.last_lines = process.tail()  # before the noise of their end
        await asyncio.shield(self.stop(*self.all))
        for watch in self._watches:
            watch.cancel()
        if self._failed is not None and not self._failed.cancel():
            self._failed.exception()  # seen: while_alive() has raised it, or something else failed first

    async def while_alive(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; a process that ends by itself meanwhile ends the work, with its name and log."""
        assert self._failed is not None, "Processes is used outside of `async with`"
        job = asyncio.create_task(work)
        try:
            await asyncio.wait({job, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            job.result()
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    async def start(self, process: Process, ready: Ready, limit_s: float) -> None:
        """Return when `ready` says so."""
        life = Life(time.time())
        if process not in self.all:
            self.all.append(process)
        process.lives.append(life)
        with process.log.open("ab") as log:
            process.child = await asyncio.create_subprocess_exec(
                *process.command,
                env=process.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._watch(process, process.child, life)
        async with ClientSession(timeout=ClientTimeout(total=2.0)) as session:
            while not await ready(session):
                took = time.time() - life.start
                if process.child.returncode is not None:
                    raise process.death("ended while starting")
                if took > limit_s:
                    raise process.death(f"was not ready within {limit_s:g} s")
                self._progress.update(process.name, f"starting, {took:.0f} s")
                await asyncio.sleep(POLL_S)
        if life.end is not None:
            raise process.death("ended while starting")
        life.ready = time.time()
        self._progress.update(process.name, f"ready after {process.ready_s:.1f} s")

    def _watch(self, process: Process, child: asyncio.subprocess.Process, life: Life) -> None:
        async def watch() -> None:
            await child.wait()
            life.end = time.time()
            wanted = life.ending or life.ready is None  # what does not start, start() tells
            if not wanted and self._failed is not None and not self._failed.done():
                self._failed.set_exception(process.death("ended by itself"))

        self._watches.add(asyncio.create_task(watch()))

    async def stop(self, *processes: Process) -> list[Process]:
        """Ask every process of each one's own session to end, then make it. Returns those that had to be made to."""
        begun = [p for p in processes if p.child is not None]
        ends = []
        for process in begun:
            process.life.ending = True
            signal_session(process, signal.SIGTERM)
            ends.append(asyncio.create_task(process.child.wait()))
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        stubborn = [p for p in begun if p.child.returncode is None]
        for process in begun:
            signal_session(process, signal.SIGKILL)
        if ends:
            await asyncio.wait(ends)
        for process in begun:
            process.child = None  # its id may be another's from now on
        return stubborn

    async def kill(self, process: Process) -> None:
        """kill -9, without a word before."""
        assert process.child is not None, f"{process.name} does not run"
        process.life.ending = process.life.killed = True
        signal_session(process, signal.SIGKILL)
        await process.child.wait()
        process.child = None


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


def base_environment(python_path: list[str]) -> dict[str, str]:
    """What every process of ours runs under. The caller's PYTHONPATH is left out: it could put another mooncake package
    first."""
    ours = ("MC_FORCE_TCP", "MC_METRICS_PORT", "MC_CACHE_DIR", "MC_WHEEL", "MC_DEMO_")
    drop = ("PYTHON", "VLLM_", "MOONCAKE_", *ours)
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    env["PYTHONPATH"] = os.pathsep.join(python_path)
    env["PYTHONNOUSERSITE"] = "1"
    env["NO_PROXY"] = env["no_proxy"] = f"{HOST},localhost"
    return env


def die_with_parent() -> None:
    """In the child: even if the demo is killed with SIGKILL, its servers are asked to end."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def signal_session(process: Process, number: int) -> None:
    """A process leads its own session and group, so this reaches its children too, even after its own end."""
    try:
        os.killpg(process.child.pid, number)
    except ProcessLookupError:
        pass


async def answers(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as reply:
            return reply.status == 200
    except (ClientError, OSError, TimeoutError):
        return False
