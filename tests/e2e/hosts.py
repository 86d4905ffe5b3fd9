"""Ranks of a process group in two network namespaces: what the tests of groups over hosts share."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from bench.rails import Network, missing_tool

SILENT_S = 2


def networks(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One rail; an indirect parameter is its rate, and how long packets may wait in its queue."""
    why = missing_tool()
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)
    with Network(1, *getattr(request, "param", (None,))) as made:
        yield made


class World:
    """Ranks by the letter of their namespace: "aab" is two in a and one in b. `program` is what a rank runs."""

    def __init__(self, network: Network, places: str, logs: Path, program: str, timeout_s: int = 60):
        self.network, self.places, self.logs, self.program, self.timeout_s = network, places, logs, program, timeout_s
        self.procs = [self.spawn(rank) for rank in range(len(places))]
        self.addresses = [self.hear(rank) for rank in range(len(places))]
        for rank in range(len(places)):
            self.tell(rank, [rank, len(places), len(places), timeout_s, self.addresses])
        for rank in range(len(places)):
            assert self.hear(rank) == "open"

    def spawn(self, rank: int) -> subprocess.Popen:
        ns = getattr(self.network, self.places[rank])
        argv = ["ip", "netns", "exec", ns, sys.executable, "-P", str(ROOT / "tests/e2e" / self.program)]
        env = {**os.environ, "MC_COLL_SILENT": str(SILENT_S)}
        with open(self.logs / f"rank{rank}.log", "a") as log:
            return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env)

    def replace(self, rank: int) -> None:
        """Another process for the slot of a dead one; it waits to be made active."""
        self.procs[rank].wait()
        self.procs[rank] = self.spawn(rank)
        self.addresses[rank] = self.hear(rank)
        self.tell(rank, [rank, 0, len(self.places), self.timeout_s, self.addresses])
        assert self.hear(rank) == "open"

    def tell(self, rank: int, what: list) -> None:
        self.procs[rank].stdin.write(json.dumps(what).encode() + b"\n")
        self.procs[rank].stdin.flush()

    def hear(self, rank: int, timeout_s: float = 50):
        out = self.procs[rank].stdout
        assert select.select([out], [], [], timeout_s)[0], f"rank {rank} does not answer"
        line = out.readline()
        assert line, f"rank {rank} has ended"
        return json.loads(line)

    def ask(self, what: list, ranks: tuple[int, ...] | None = None) -> list:
        """The same of several ranks. -> their answers"""
        ranks = tuple(range(len(self.procs))) if ranks is None else ranks
        for rank in ranks:
            self.tell(rank, what)
        return [self.hear(rank) for rank in ranks]

    def close(self) -> None:
        for proc in self.procs:
            proc.kill()
            proc.wait()
