"""Process groups between two network namespaces: a process dies, is stopped, the network between the hosts is lost."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from bench.rails import Network, missing_tool

PEER_DEAD = -24
SILENT_S = 2
LARGE = 1 << 19  # elements of 8 bytes


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One rail; an indirect parameter is its rate, and how long packets may wait in its queue."""
    why = missing_tool()
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)
    with Network(1, *getattr(request, "param", (None,))) as made:
        yield made


class World:
    """Ranks by the letter of their namespace: "aab" is two in a and one in b."""

    def __init__(self, network: Network, places: str, logs: Path):
        env = {**os.environ, "MC_COLL_SILENT": str(SILENT_S)}
        self.procs = []
        for rank, place in enumerate(places):
            argv = ["ip", "netns", "exec", getattr(network, place), sys.executable, "-P", str(ROOT / "tests/e2e/pg_rank.py")]
            with open(logs / f"rank{rank}.log", "w") as log:
                self.procs.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env))
        addresses = [self.hear(rank) for rank in range(len(places))]
        for rank in range(len(places)):
            self.tell(rank, [rank, len(places), len(places), 60, addresses])
        for rank in range(len(places)):
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

    def start(self, count: int = 1, times: int = 1, ranks: tuple[int, ...] | None = None) -> tuple[int, ...]:
        ranks = tuple(range(len(self.procs))) if ranks is None else ranks
        for rank in ranks:
            self.tell(rank, ["sum", count, times])
        return ranks

    def sums(self, ranks: tuple[int, ...] | None = None) -> list:
        return [self.hear(rank)[0] for rank in self.start(ranks=ranks)]

    def close(self) -> None:
        for proc in self.procs:
            proc.kill()
            proc.wait()


@pytest.fixture
def world(network: Network, tmp_path: Path) -> Iterator[Callable[[str], World]]:
    worlds: list[World] = []

    def make(places: str) -> World:
        worlds.append(World(network, places, tmp_path))
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


@pytest.mark.parametrize("count", [1, LARGE])
def test_the_larger_side_of_a_partition_goes_on_and_the_other_errs(network: Network, world: Callable, count: int) -> None:
    ranks = world("aab")
    assert ranks.sums() == [[0, 7, 111.0]] * 3
    ranks.start(count, 1_000_000)
    time.sleep(0.3)
    network.silence(0)
    (last, times), (other, others), (lost, _) = (ranks.hear(r) for r in range(3))
    assert last == other == [0, 3, 11.0]
    assert times == others
    assert lost[0] == PEER_DEAD
    network.unsilence()
    # What was given up stays so.
    assert ranks.sums((0, 1)) == [[0, 3, 11.0]] * 2
    assert ranks.sums((2,))[0][0] == PEER_DEAD


def test_two_halves_both_err(network: Network, world: Callable) -> None:
    ranks = world("ab")
    assert ranks.sums() == [[0, 3, 11.0]] * 2
    network.silence(0)
    assert [s[0] for s in ranks.sums()] == [PEER_DEAD] * 2


@pytest.mark.parametrize("deaf", "ab")
def test_a_way_that_carries_nothing_is_a_partition(network: Network, world: Callable, deaf: str) -> None:
    ranks = world("aab")
    assert ranks.sums() == [[0, 7, 111.0]] * 3
    ranks.start(1000, 1_000_000)
    time.sleep(0.3)
    network.lose(0, getattr(network, deaf))
    (last, times), (other, others), (lost, _) = (ranks.hear(r) for r in range(3))
    assert last == other == [0, 3, 11.0]
    assert times == others
    assert lost[0] == PEER_DEAD


def test_packets_that_are_lost_change_nothing(network: Network, world: Callable) -> None:
    ranks = world("aab")
    for ns in (network.a, network.b):
        network.lose(0, ns, percent=3)
    for count, times in ((1, 300), (LARGE, 3)):
        ranks.start(count, times)
        assert [ranks.hear(r) for r in range(3)] == [[[0, 7, 111.0], times]] * 3


@pytest.mark.parametrize("network", [("20mbit", "700ms")], indirect=True)
def test_a_queue_that_is_slow_changes_nothing(network: Network, world: Callable) -> None:
    ranks = world("aab")
    begin = time.monotonic()
    ranks.start(LARGE // 2, 4)
    assert [ranks.hear(r) for r in range(3)] == [[[0, 7, 111.0], 4]] * 3
    assert time.monotonic() - begin > 2 * SILENT_S  # else nothing was slow


def test_a_loss_shorter_than_silence_changes_nothing(network: Network, world: Callable) -> None:
    ranks = world("aab")
    ranks.start(LARGE // 8, 300)
    time.sleep(0.2)
    network.silence(0)
    time.sleep(SILENT_S / 4)
    network.unsilence()
    assert [ranks.hear(r) for r in range(3)] == [[[0, 7, 111.0], 300]] * 3


@pytest.mark.parametrize("victim", range(3))
def test_a_killed_process_is_left_out_within_a_second(world: Callable, victim: int) -> None:
    ranks = world("aab")
    assert ranks.sums() == [[0, 7, 111.0]] * 3
    left = tuple(r for r in range(3) if r != victim)
    ranks.start(1000, 1_000_000)
    time.sleep(0.3)
    ranks.procs[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    answers = [ranks.hear(r) for r in left]
    assert answers[0] == answers[1]
    assert answers[0][0] == [0, sum(1 << r for r in left), sum(10.0**r for r in left)]
    assert time.monotonic() - begin < SILENT_S  # by proof, not by waiting


def test_a_stopped_process_is_waited_for(world: Callable) -> None:
    ranks = world("aab")
    assert ranks.sums() == [[0, 7, 111.0]] * 3
    ranks.procs[2].send_signal(signal.SIGSTOP)
    ranks.start(LARGE)
    time.sleep(2 * SILENT_S)
    ranks.procs[2].send_signal(signal.SIGCONT)
    assert [ranks.hear(r)[0] for r in range(3)] == [[0, 7, 111.0]] * 3
