"""./run demo ep: a layer of experts served across processes, of which one is killed, replaced, and one stopped.

No vLLM: four processes of torch with a quarter of the experts each, over mooncake.mooncake_ep_buffer. Every output is compared,
bit by bit, with one process that computes the same. See docs/demo.md.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_package
from lifelines import rank_picture
from process import HOST, DemoError, Process, base_environment, free_ports
from report import align
from story import Story
from timeline import seconds

RANKS = 4
KILLED, STOPPED = 2, 1
STEPS = 20
READY_S, ANSWER_S = 60.0, 60.0
PATIENCE_US = 3_000_000  # above what ranks that live may be apart on a busy machine


@dataclass
class Served:
    """What the ranks said of one stretch of steps."""

    what: str
    ranks: int
    steps: int
    ms: list[float]  # of every step of every rank
    is_equal: bool
    missing: int | None  # whose experts are left out at the end

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.ms)

    def row(self) -> list[str]:
        oracle = "one process" + (f" without rank {self.missing}'s experts" if self.missing is not None else "")
        equal = "equal" if self.is_equal else "DIFFERS"
        return [self.what, str(self.ranks), str(self.steps), f"{self.p50_ms:.1f} ms", f"{max(self.ms):.1f} ms", f"{equal}: {oracle}"]

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "ranks": self.ranks, "steps": self.steps, "p50_ms": round(self.p50_ms, 3),
                "slowest_ms": round(max(self.ms), 3), "equal": self.is_equal, "missing": self.missing}  # fmt: skip


class Lines:
    """A rank's end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, **order: Any) -> None:
        self._writer.write(json.dumps(order).encode() + b"\n")
        await self._writer.drain()

    async def get(self, event: str) -> dict[str, Any]:
        try:
            line = await asyncio.wait_for(self._reader.readline(), ANSWER_S)
        except TimeoutError:
            raise DemoError(f"a rank does not say {event!r} within {ANSWER_S:g} s") from None
        told = json.loads(line) if line else {}
        if told.get("event") != event:
            raise DemoError(f"a rank says {told or 'nothing more'}, not {event!r}")
        return told


class EpDemo(Story):
    name = "ep"
    module = "mooncake.mooncake_ep_buffer"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.served: list[Served] = []
        self.times: dict[str, float] = {}
        self.step = 0
        self._lines: dict[str, Lines] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="mc-ep-")
        self._socket = str(Path(self._folder.name) / "ranks")
        self._store: Any = None
        self._port = 0

    def check_setup(self) -> None:
        self.engine = engine_package.probe(self.python_path, self.module)
        engine_package.check(self.engine)
        self.say(f"package: {engine_package.DIST_NAME} {self.engine['version']}, {self.engine['engine']}")

    def tidy(self) -> None:
        self._folder.cleanup()

    # ---- ranks ----

    async def _on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = Lines(reader, writer)
        self._lines[(await lines.get("ready"))["name"]] = lines

    async def start_rank(self, rank: int, name: str, joins: bool = False) -> Process:
        worker = str(Path(__file__).resolve().parent / "moe_rank.py")
        command = [sys.executable, "-P", worker, self._socket, name, str(rank), str(RANKS), str(self._port)]
        env = base_environment(self.python_path)
        process = Process(name, [*command, *(["joins"] if joins else [])], env, self.work / f"{name.replace(' ', '-')}.log")

        async def ready(_: Any) -> bool:
            return name in self._lines

        await self.processes.start(process, ready, READY_S)
        return process

    async def each(self, ranks: dict[int, Process], event: str, **order: Any) -> list[dict[str, Any]]:
        for process in ranks.values():
            await self._lines[process.name].send(**order)
        return [await self._lines[p.name].get(event) for p in ranks.values()]

    def note(self, what: str, answers: list[dict[str, Any]], missing: int | None = None, steps: int = STEPS) -> None:
        """Add up what they answered, and check it; a stretch of the same name goes on."""
        want = [int(r != missing) for r in range(RANKS)]
        for told in answers:
            if told["error"] or told["active"] != want:
                raise DemoError(f"{what}: active {told['active']}, {want} was due; {told['error'] or 'no error'}")
        took = [ms for told in answers for ms in told["ms"]]
        equal = all(told["equal"] == steps == len(told["ms"]) for told in answers)
        if self.served and self.served[-1].what == what:
            self.served[-1].ms += took
            self.served[-1].steps += steps
        else:
            self.served.append(Served(what, len(answers), steps, took, equal, missing))
        if not equal:
            self.served[-1].is_equal = False
            raise DemoError(f"{what}: an output is not what one process computes")

    async def serve(
        self, what: str, ranks: dict[int, Process], missing: int | None = None, steps: int = STEPS, timeout_us: int = -1
    ) -> None:
        first, self.step = self.step, self.step + steps
        order = {"do": "serve", "first": first, "count": steps, "timeout_us": timeout_us, "pause_at": -1}
        self.note(what, await self.each(ranks, "served", **order), missing, steps)
        self.verbose(f"    {what}: {steps} steps, {self.served[-1].p50_ms:.1f} ms each")

    # ---- the story ----

    async def tell(self) -> None:
        import torch.distributed as dist  # here: the other demos do without

        self._port = free_ports(1)[0]
        self._store = dist.TCPStore(HOST, self._port, is_master=True, wait_for_workers=False)
        server = await asyncio.start_unix_server(self._on_connect, self._socket)
        async with server:
            begun = await asyncio.gather(*(self.start_rank(r, f"rank {r}") for r in range(RANKS)))
            ranks = dict(enumerate(begun))
            self.say(f"\n[A] {RANKS} ranks, 32 experts, top-4; bf16 and FP8 take turns")
            await self.serve("all are there", ranks)
            await self.kill(ranks)
            await self.replace(ranks)
            await self.stop_one(ranks)
        notes = ["equal: bit by bit, in every step of every rank; the oracle routes, computes and adds up in one process."]
        self.finish(rank_picture(self.processes.all), notes)

    async def kill(self, ranks: dict[int, Process]) -> None:
        self.say(f"\n[B] kill -9 of rank {KILLED}, when the tokens of this step have been routed to it and its own are sent")
        victim, first = ranks.pop(KILLED), self.step
        self.step += STEPS
        order = {"do": "serve", "first": first, "count": STEPS, "timeout_us": -1}
        await self._lines[victim.name].send(**order, pause_at=first + 3)
        for process in ranks.values():
            await self._lines[process.name].send(**order, pause_at=-1)
        await self._lines[victim.name].get("routed")
        killed = time.monotonic()
        await self.processes.kill(victim)
        answers = [await self._lines[p.name].get("served") for p in ranks.values()]
        self.times["killed_to_served_s"] = time.monotonic() - killed
        # Steps before the death had all experts.
        self.note("one dies in step 4", answers, KILLED)
        self.say(f"    the other ranks were through all {STEPS} steps {seconds(self.times['killed_to_served_s'])} after it")
        await self.serve("without it", ranks, KILLED)

    async def replace(self, ranks: dict[int, Process]) -> None:
        self.say(f"\n[C] a new process in the place of rank {KILLED}; the others serve meanwhile")
        starting = asyncio.create_task(self.start_rank(KILLED, f"rank {KILLED} new", joins=True))
        while not starting.done():
            await self.serve("it starts", ranks, KILLED)
        new = await starting
        began = time.monotonic()
        await self._lines[new.name].send(do="join")
        await self.each({0: ranks[0]}, "recovered", do="recover", rank=KILLED)
        for process in ranks.values():
            await self._lines[process.name].send(do="update")
        await self._lines[new.name].get("joined")
        for process in ranks.values():
            await self._lines[process.name].get("updated")
        self.times["joined_s"] = time.monotonic() - began
        self.say(f"    it is in {seconds(self.times['joined_s'])} after it asked")
        ranks[KILLED] = new
        await self.serve("replaced", ranks)

    async def stop_one(self, ranks: dict[int, Process]) -> None:
        self.say(f"\n[D] rank {STOPPED} is stopped (SIGSTOP); timeout_us is {PATIENCE_US}")
        stopped = ranks[STOPPED]
        others = {r: p for r, p in ranks.items() if r != STOPPED}
        pid = stopped.child.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            order = {"do": "serve", "first": self.step, "count": STEPS, "timeout_us": PATIENCE_US, "pause_at": -1}
            await self._lines[stopped.name].send(**order)
            await self.serve("one is stopped", others, STOPPED, 1, PATIENCE_US)
            # From here on nobody waits for it, however patient.
            await self.serve("one is stopped", others, STOPPED, STEPS - 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        told = await self._lines[stopped.name].get("served")
        if not told["error"] or told["ms"]:
            raise DemoError(f"rank {STOPPED} was not told that it had been left out: {told}")
        self.say(f"    it goes on, and is told: {told['error']}")
        await self.each(ranks, "updated", do="update")
        await self.serve("all meet again", ranks)

    # ---- what is told ----

    def table(self) -> str:
        if not self.served:
            return ""
        head = ["steps in which", "ranks", "steps", "p50", "slowest", "output"]
        return align([head, *(served.row() for served in self.served)], left=1)

    def results(self) -> dict[str, Any]:
        return {"phases": [served.as_json() for served in self.served], "times": {k: round(v, 4) for k, v in self.times.items()}}
