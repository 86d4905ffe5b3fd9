"""Expert parallelism between two network namespaces: ranks die, are stopped or late, the network between the hosts is lost."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts
import pytest
from hosts import SILENT_S

from bench.rails import Network

NEVER_US = -1
PATIENCE_US = 400_000
SMALL, LARGE = 64, 1 << 15  # elements of a row
STALE, TIMEDOUT = -10, -4
ALL = [0, "success", 7]
MANY = 1_000_000

network = pytest.fixture(hosts.networks)


@pytest.fixture
def world(network: Network, tmp_path: Path) -> Iterator[Callable[..., hosts.World]]:
    worlds: list[hosts.World] = []

    def make(places: str, timeout_s: int = 60, has_met: bool = True) -> hosts.World:
        worlds.append(hosts.World(network, places, tmp_path, "ep_rank.py", timeout_s))
        whole = (1 << len(places)) - 1
        assert not has_met or worlds[-1].ask(["meet"]) == [[0, "success", whole]] * len(places)
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


def start(ranks: hosts.World, timeout_us: int, hidden: int) -> None:
    for rank in range(len(ranks.procs)):
        ranks.tell(rank, ["steps", MANY, timeout_us, hidden])
    time.sleep(0.3)


def two_go_on_and_one_is_told(ranks: hosts.World, lost: int, others: tuple[int, int]) -> None:
    """Their last step was without it, or half of it; the next ones are; it hears that it was left out."""
    (code, text, _, done), (*same, as_many) = (ranks.hear(r) for r in others)
    assert (code, same[0], done) == (0, 0, as_many), (text, same[1])
    assert ranks.ask(["steps", 3, PATIENCE_US, SMALL], others) == [[0, "success", 7 & ~(1 << lost), 3]] * 2
    code, text, _, late = ranks.hear(lost)
    if code == 0:  # that step it ended by itself
        code, text, _, late = ranks.ask(["steps", 1, PATIENCE_US, SMALL], (lost,))[0]
    assert code == STALE and "left out" in text
    assert late <= done


def test_a_step_is_what_one_process_computes(network: Network, world: Callable) -> None:
    ranks = world("aab")
    assert ranks.ask(["steps", 20, NEVER_US, SMALL]) == [[*ALL, 20]] * 3
    assert ranks.ask(["steps", 3, NEVER_US, LARGE]) == [[*ALL, 3]] * 3
    for ns in (network.a, network.b):
        network.lose(0, ns, percent=3)
    assert ranks.ask(["steps", 20, NEVER_US, SMALL]) == [[*ALL, 20]] * 3
    assert ranks.ask(["steps", 2, NEVER_US, LARGE]) == [[*ALL, 2]] * 3


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_killed_with_tokens_on_their_way_is_left_out_and_replaced(world: Callable, victim: int) -> None:
    ranks = world("aab")
    others = tuple(r for r in range(3) if r != victim)
    assert ranks.ask(["steps", 2, NEVER_US, SMALL]) == [[*ALL, 2]] * 3
    for rank in others:
        ranks.tell(rank, ["steps", MANY, NEVER_US, LARGE])
    ranks.tell(victim, ["die", LARGE])
    begin = time.monotonic()
    left = 7 & ~(1 << victim)
    assert [ranks.hear(r)[::2] for r in others] == [[0, left]] * 2
    assert time.monotonic() - begin < SILENT_S  # by proof, not by waiting
    assert ranks.ask(["steps", 3, NEVER_US, SMALL], others) == [[0, "success", left, 3]] * 2
    ranks.replace(victim)
    assert ranks.ask(["activate", 1 << victim], others[:1]) == [[0, 0]]
    assert ranks.ask(["meet"]) == [ALL] * 3
    assert ranks.ask(["steps", 3, NEVER_US, SMALL]) == [[*ALL, 3]] * 3


@pytest.mark.parametrize("places", ["aab", "ab"])
def test_a_stopped_rank_is_left_out_after_timeout_us_and_told_so(world: Callable, places: str) -> None:
    ranks = world(places)
    size, last = len(places), len(places) - 1
    others, left = tuple(range(last)), (1 << last) - 1
    assert [a[0] for a in ranks.ask(["steps", 2, NEVER_US, SMALL])] == [0] * size
    ranks.procs[last].send_signal(signal.SIGSTOP)
    ranks.tell(last, ["steps", 1, NEVER_US, SMALL])
    assert ranks.ask(["steps", 3, PATIENCE_US, SMALL], others) == [[0, "success", left, 1]] * last
    assert ranks.ask(["steps", 3, PATIENCE_US, SMALL], others) == [[0, "success", left, 3]] * last
    ranks.procs[last].send_signal(signal.SIGCONT)
    code, text, *_ = ranks.hear(last)
    assert code == STALE and "left out" in text
    assert [a[0] for a in ranks.ask(["meet"])] == [0] * size
    assert [a[2] for a in ranks.ask(["steps", 2, NEVER_US, SMALL])] == [(1 << size) - 1] * size


def test_a_death_that_is_proved_late_ends_the_half(world: Callable) -> None:
    ranks = world("abb")
    assert ranks.ask(["steps", 2, NEVER_US, SMALL]) == [[*ALL, 2]] * 3
    ranks.procs[2].send_signal(signal.SIGSTOP)
    ranks.tell(0, ["steps", 1, 1_000_000, SMALL])
    time.sleep(1.7)  # it does without both; the idle rank has said that it is out, the stopped one cannot
    ranks.procs[2].kill()
    code, text, there, _ = ranks.hear(0, 20)
    assert (code, there) == (0, 1), text


@pytest.mark.parametrize("places", ["abb", "ab"])
def test_a_slot_that_a_stopped_rank_still_reads_is_taken_only_by_those_who_are_enough(world: Callable, places: str) -> None:
    ranks = world(places)
    others = tuple(range(1, len(places)))
    ranks.tell(0, ["hold", SMALL])
    for rank in others:
        ranks.tell(rank, ["ahead", 2_000_000, SMALL])
    assert ranks.hear(0) == [0]
    time.sleep(0.3)  # it has shown both, and its loop tells of the first
    ranks.procs[0].send_signal(signal.SIGSTOP)
    for code, text in (ranks.hear(r) for r in others):
        assert (code == 0) if len(others) == 2 else (code == STALE and "left out" in text), text


@pytest.mark.parametrize(("places", "lost"), [("aab", 2), ("baa", 0)])
@pytest.mark.parametrize("hidden", [SMALL, LARGE])
def test_one_side_of_a_partition_goes_on_and_the_other_is_told(
    network: Network, world: Callable, places: str, lost: int, hidden: int
) -> None:
    ranks = world(places)
    start(ranks, PATIENCE_US, hidden)
    network.silence(0)
    two_go_on_and_one_is_told(ranks, lost, tuple(r for r in range(3) if r != lost))


@pytest.mark.parametrize("deaf", "ab")
@pytest.mark.parametrize("hidden", [SMALL, LARGE])
def test_a_way_that_carries_nothing_is_a_partition(network: Network, world: Callable, deaf: str, hidden: int) -> None:
    ranks = world("baa")
    start(ranks, PATIENCE_US, hidden)
    network.lose(0, getattr(network, deaf))
    two_go_on_and_one_is_told(ranks, 0, (1, 2))


def test_a_silent_host_is_left_out_by_the_larger_side_though_nobody_is_late(network: Network, world: Callable) -> None:
    ranks = world("baa")
    start(ranks, NEVER_US, SMALL)
    network.silence(0)
    begin = time.monotonic()
    two_go_on_and_one_is_told(ranks, 0, (1, 2))
    assert time.monotonic() - begin > SILENT_S


def test_of_two_ranks_without_a_network_the_lower_one_goes_on(network: Network, world: Callable) -> None:
    ranks = world("ab")
    start(ranks, PATIENCE_US, SMALL)
    network.silence(0)
    assert ranks.hear(0)[0] == 0
    assert ranks.ask(["steps", 3, PATIENCE_US, SMALL], (0,)) == [[0, "success", 1, 3]]
    code, text, *_ = ranks.hear(1)
    assert code == STALE and "left out" in text


def test_a_connection_that_is_never_made_ends_a_half_with_the_groups_timeout(network: Network, world: Callable) -> None:
    ranks = world("ab", timeout_s=3, has_met=False)
    hubs = ",".join(address.rsplit(":", 1)[1] for address in ranks.addresses)
    drop = f"tcp dport 12001-17000 tcp dport != {{ {hubs} }} drop;"
    rule = f"table inet doors {{ chain c {{ type filter hook input priority 0; {drop} }}; }}"
    for ns in (network.a, network.b):
        subprocess.run(["ip", "netns", "exec", ns, "nft", rule], check=True)
    # An operation of the group that is done; what it is for is not.
    assert [a[0] for a in ranks.ask(["meet"])] == [0, 0]
    begin = time.monotonic()
    assert [a[0] for a in ranks.ask(["steps", 1, NEVER_US, SMALL])] == [TIMEDOUT] * 2
    assert 2 < time.monotonic() - begin < 20
