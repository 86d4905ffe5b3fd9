"""Engines of two processes over RDMA, with the API of mooncake.engine: NICs 0 to 3 are one's, 4 to 7 the other's.

That bytes went by RDMA is seen in the devices' own counters. Shared memory is switched off: both are on one host.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node

MIB = 1 << 20
RAILS = 4
SIZE = 16 * MIB
PACKET = 4096
DEADLINE_S = 20
LATE_S = 10  # what a busy emulator may add
RETRY_S = 7 * 4.096e-6 * 2**16  # until a NIC gives a packet up: MC_IB_RETRY_CNT and MC_IB_TIMEOUT
STALL_S = RETRY_S + 1  # in which nothing moves when a NIC is lost
BACK_S = 5  # from the repair until the NIC carries its part
COUNTERS = "/sys/class/infiniband/rxe{}/ports/1/hw_counters/sent_pkts"
ENV = {"MC_FORCE_TCP": "0", "MC_NO_SHM": "1", "MC_TRANSFER_TIMEOUT": str(DEADLINE_S)}

pytestmark = pytest.mark.skipif(int(os.environ.get("GUEST_NICS", "0")) < 2 * RAILS, reason="no guest with 8 NICs")

Start = Callable[..., Node]


def sent() -> list[int]:
    return [int(Path(COUNTERS.format(i)).read_text()) for i in range(2 * RAILS)]


def wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.01)


def devices(first: int, count: int) -> str:
    return ",".join(f"rxe{first + i}" for i in range(count))


def started(node: Start, first: int, rails: int, protocol: str = "rdma") -> Node:
    one = node("ours", ENV)
    rc, port = one.do("start", "127.0.0.1", "P2PHANDSHAKE", protocol, devices(first, rails))
    assert rc == 0, one.tail()
    one.name = f"127.0.0.1:{port}"
    return one


class Silence(threading.Thread):
    """The longest time in which none of these NICs sent anything, until it is told to end."""

    def __init__(self, nics: range) -> None:
        super().__init__(daemon=True)
        self.nics, self.longest_s, self.samples, self.over = nics, 0.0, 0, threading.Event()
        self.start()

    def run(self) -> None:
        last, since = [], time.monotonic()
        while not self.over.wait(0.05):
            self.samples += 1
            now = [sent()[i] for i in self.nics]
            if now != last:
                last, since = now, time.monotonic()
            self.longest_s = max(self.longest_s, time.monotonic() - since)

    def end(self) -> float:
        self.over.set()
        self.join()
        return self.longest_s


class Ends:
    """An initiator with SIZE bytes of its own, and a target with as many others."""

    def __init__(self, node: Start, rails: int) -> None:
        self.a, self.b = started(node, 0, rails), started(node, RAILS, rails)
        self.here, self.there = self.a.memory(SIZE, 1), self.b.memory(SIZE, 2)

    def write(self, size: int = SIZE) -> int:
        return self.a.call("transfer_sync_write", self.b.name, self.here, self.there, size)

    def read(self, size: int = SIZE) -> int:
        return self.a.call("transfer_sync_read", self.b.name, self.here, self.there, size)

    def check(self) -> None:
        assert self.a.do("crc", self.here, SIZE) == self.b.do("crc", self.there, SIZE)


@pytest.fixture
def nic() -> Iterator[Callable[[int, str], None]]:
    """nic(i, "down"): and all are well again after the test."""
    touched: set[int] = set()

    def change(number: int, how: str) -> None:
        touched.add(number)
        subprocess.run(["guest-nic", str(number), how], check=True)

    yield change
    for number in touched:
        change(number, "up")  # first: an interface that is down takes no other order
        change(number, "pass")


def test_bytes_go_by_rdma_both_ways(node: Start) -> None:
    ends = Ends(node, 1)
    before = sent()
    assert ends.write() == 0, ends.a.tail()
    ends.check()
    ends.b.do("fill", ends.there, SIZE, 3)
    assert ends.read() == 0, ends.a.tail()
    ends.check()
    gone = [b - a for a, b in zip(before, sent())]
    assert gone[0] >= SIZE / PACKET, "the write did not leave by rxe0"
    assert gone[RAILS] >= SIZE / PACKET, "the read did not leave by rxe4"
    assert sum(gone[1:RAILS]) == 0, "a device that was not asked for was used"


@pytest.mark.parametrize("size", [1, 4095, 65537, MIB + 13])
def test_odd_sizes_arrive_whole_and_alone(node: Start, size: int) -> None:
    ends = Ends(node, 1)
    behind = ends.b.do("crc", ends.there + size, 4096)
    assert ends.write(size) == 0, ends.a.tail()
    assert ends.b.do("crc", ends.there, size) == ends.a.do("crc", ends.here, size)
    assert ends.b.do("crc", ends.there + size, 4096) == behind


def test_one_request_uses_all_nics(node: Start) -> None:
    """Emulation on a busy host can freeze a NIC long enough to have it ejected; then the next requests use all again."""
    ends = Ends(node, RAILS)
    assert ends.write() == 0, ends.a.tail()
    seen = []
    for _ in range(5):
        before = sent()
        for _ in range(4):
            assert ends.write() == 0, ends.a.tail()
        ends.check()
        seen.append([(b - a) * PACKET / (4 * SIZE) for a, b in zip(before, sent())][:RAILS])
        if min(seen[-1]) > 0.1:
            return
    pytest.fail(f"shares of the NICs: {seen}")


@pytest.mark.parametrize(("lose", "repair"), [("down", "up"), ("drop", "pass")])
def test_a_nic_is_lost_and_comes_back_and_nobody_sees_an_error(
    node: Start, nic: Callable[[int, str], None], lose: str, repair: str
) -> None:
    ends = Ends(node, RAILS)
    assert ends.write() == 0, ends.a.tail()
    before = sent()[0]
    times = [[one] * 8 for one in (ends.here, ends.there, SIZE)]  # long enough to be in the middle of it
    ends.a.ask("call", "batch_transfer_sync_write", ends.b.name, *times)
    wait_for(lambda: sent()[0] - before > MIB // PACKET, DEADLINE_S)
    nic(0, lose)
    others = Silence(range(1, RAILS))  # the lost one sends again and again what nobody gets
    assert ends.a.take(DEADLINE_S + LATE_S) == 0, ends.a.tail()
    stall_s, samples = others.end(), others.samples
    assert samples > 4, "it was over before the NIC was lost"
    assert stall_s < STALL_S + LATE_S / 4, f"nothing moved for {stall_s:.1f} s"
    ends.check()
    ends.a.do("fill", ends.here, SIZE, 4)
    assert ends.write() == 0, ends.a.tail()
    ends.check()
    nic(0, repair)
    before, start = sent()[0], time.monotonic()
    while (sent()[0] - before) * PACKET < SIZE // 8 and time.monotonic() < start + BACK_S + LATE_S:
        assert ends.write() == 0, ends.a.tail()
    assert (sent()[0] - before) * PACKET >= SIZE // 8, "the repaired NIC is not used again"
    print(f"{lose}: nothing moved for {stall_s:.2f} s; used again {time.monotonic() - start:.2f} s after {repair}")
    ends.check()


def queue_pairs() -> list[str]:
    """The kernel's own count, one a device."""
    lines = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split(" qp ")[1].split()[0] for line in lines]


def test_lanes_that_break_leave_no_queue_pairs(node: Start, nic: Callable[[int, str], None]) -> None:
    ends = Ends(node, RAILS)
    assert ends.write() == 0, ends.a.tail()
    before = queue_pairs()
    for turn in range(3):
        nic(turn, "down")
        assert ends.write() == 0, ends.a.tail()
        assert queue_pairs() != before, "no lane broke"
        nic(turn, "up")
        end = time.monotonic() + BACK_S + LATE_S
        while queue_pairs() != before and time.monotonic() < end:
            assert ends.write(MIB) == 0, ends.a.tail()
        assert queue_pairs() == before
    ends.check()


def test_a_killed_target_is_an_error_by_the_deadline_and_its_successor_is_served(node: Start) -> None:
    ends = Ends(node, 1)
    assert ends.write() == 0, ends.a.tail()
    ends.a.ask("call", "transfer_sync_write", ends.b.name, ends.here, ends.there, SIZE)
    start = time.monotonic()
    ends.b.kill()
    ends.a.take(DEADLINE_S + LATE_S)  # it may have been done already
    assert ends.write() != 0
    assert time.monotonic() - start < 2 * (DEADLINE_S + LATE_S)
    ends.b = started(node, RAILS, 1)
    ends.there = ends.b.memory(SIZE, 5)
    assert ends.write() == 0, ends.a.tail()
    ends.check()


def test_a_peer_without_rdma_is_reached_over_tcp(node: Start) -> None:
    ends = Ends(node, 1)
    plain = started(node, RAILS, 0, "tcp")
    there = plain.memory(SIZE, 6)
    before = sent()
    assert ends.a.call("transfer_sync_write", plain.name, ends.here, there, SIZE) == 0, ends.a.tail()
    assert plain.do("crc", there, SIZE) == ends.a.do("crc", ends.here, SIZE)
    assert sum(b - a for a, b in zip(before, sent())) * PACKET < SIZE / 4
    assert ends.write() == 0, ends.a.tail()
    ends.check()
