"""Process groups between two network namespaces: a process dies, is stopped, the network between the hosts is lost."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts
import pytest
from hosts import SILENT_S

from bench.rails import Network

PEER_DEAD = -24
LARGE = 1 << 19  # elements of 8 bytes

network = pytest.fixture(hosts.networks)


class World(hosts.World):
    def __init__(self, network: Network, places: str, logs: Path):
        super().__init__(network, places, logs, "pg_rank.py")

    def start(self, count: int = 1, times: int = 1, ranks: tuple[int, ...] | None = None) -> tuple[int, ...]:
        ranks = tuple(range(len(self.procs))) if ranks is None else ranks
        for rank in ranks:
            self.tell(rank, ["sum", count, times])
        return ranks

    def sums(self, ranks: tuple[int, ...] | None = None) -> list:
        return [self.hear(rank)[0] for rank in self.start(ranks=ranks)]


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
