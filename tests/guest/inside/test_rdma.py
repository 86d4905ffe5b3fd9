"""Engines of two processes over RDMA, with the API of mooncake.engine: NICs 0 to 3 are one's, 4 to 7 the other's.

That bytes went by RDMA is seen in the devices' own counters. Shared memory is switched off: both are on one host.
"""

import os
import subprocess
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
COUNTERS = "/sys/class/infiniband/rxe{}/ports/1/hw_counters/sent_pkts"
ENV = {"MC_FORCE_TCP": "0", "MC_NO_SHM": "1", "MC_TRANSFER_TIMEOUT": str(DEADLINE_S)}

pytestmark = pytest.mark.skipif(int(os.environ.get("GUEST_NICS", "0")) < 2 * RAILS, reason="no guest with 8 NICs")

Start = Callable[..., Node]


def sent() -> list[int]:
    return [int(Path(COUNTERS.format(i)).read_text()) for i in range(2 * RAILS)]


def devices(first: int, count: int) -> str:
    return ",".join(f"rxe{first + i}" for i in range(count))


def started(node: Start, first: int, rails: int) -> Node:
    one = node("ours", ENV)
    rc, port = one.do("start", "127.0.0.1", "P2PHANDSHAKE", "rdma", devices(first, rails))
    assert rc == 0, one.tail()
    one.name = f"127.0.0.1:{port}"
    return one


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
        subprocess.run(["guest-nic", str(number), how], check=True)
        touched.add(number)

    yield change
    for number in list(touched):
        change(number, "up")


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
    ends = Ends(node, RAILS)
    assert ends.write() == 0, ends.a.tail()
    before = sent()
    for _ in range(4):
        assert ends.write() == 0, ends.a.tail()
    ends.check()
    shares = [(b - a) * PACKET / (4 * SIZE) for a, b in zip(before, sent())][:RAILS]
    assert min(shares) > 0.1, shares


def test_a_nic_is_unplugged_and_plugged_and_nobody_sees_an_error(
    node: Start, nic: Callable[[int, str], None]
) -> None:
    ends = Ends(node, RAILS)
    assert ends.write() == 0, ends.a.tail()
    ends.a.ask("call", "transfer_sync_write", ends.b.name, ends.here, ends.there, SIZE)
    nic(0, "down")
    assert ends.a.take(DEADLINE_S + LATE_S) == 0, ends.a.tail()
    ends.check()
    ends.a.do("fill", ends.here, SIZE, 4)
    assert ends.write() == 0, ends.a.tail()
    ends.check()
    nic(0, "up")
    before, end = sent()[0], time.monotonic() + 20
    while (sent()[0] - before) * PACKET < SIZE // 8 and time.monotonic() < end:
        assert ends.write() == 0, ends.a.tail()
    assert (sent()[0] - before) * PACKET >= SIZE // 8, "the repaired NIC is not used again"
    ends.check()
