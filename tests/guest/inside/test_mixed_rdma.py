"""RDMA between an engine of ours and upstream's wheel, over real verbs: each as initiator, READ and WRITE, P2P and HTTP metadata."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "py"))
from cluster import Node, free_port, wait_for_port  # noqa: E402

CACHE = Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache/mooncake-c")
UPSTREAM = Path(os.environ.get("MC_UPSTREAM_PYTHON") or CACHE / "peers/upstream/bin/python")
MIB = 1 << 20
PACKET = 4096
# Upstream's choice of a GID takes the link-local one here, which its peers cannot route to. Emulated, everything is slow.
ENV = {"MC_GID_INDEX": "1", "MC_TRANSFER_TIMEOUT": "60", "MC_IB_TIMEOUT": "16"}

pytestmark = pytest.mark.skipif(int(os.environ.get("GUEST_NICS", "0")) < 2, reason="no guest with 2 NICs")

Start = Callable[..., Node]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Start]:
    """peer("ours" | "upstream", devices, **settings): a started engine of protocol rdma. With http_metadata its name
    says who it is, else its address."""
    nodes: list[Node] = []

    def start(kind: str, devices: str = "rxe0", protocol: str = "rdma", http_metadata: str = "", **settings: str) -> Node:
        if kind == "upstream" and not UPSTREAM.exists():
            pytest.skip(f"upstream's wheel is not installed: no {UPSTREAM}")
        python = [str(UPSTREAM), "-I"] if kind == "upstream" else [sys.executable, "-P"]
        one = Node(["env", "-u", "MC_FORCE_TCP", *python], tmp_path / f"{len(nodes)}-{kind}.log", ENV | settings)
        nodes.append(one)
        one.name = f"node-{len(nodes)}"
        rc, port = one.do("start", *((one.name, http_metadata) if http_metadata else ("127.0.0.1", "P2PHANDSHAKE")), protocol, devices)
        assert rc == 0, one.tail()
        one.name = one.name if http_metadata else f"127.0.0.1:{port}"
        return one

    yield start
    for one in nodes:
        one.close()


@pytest.fixture
def http_metadata(tmp_path: Path) -> Iterator[str]:
    """Its address; ours serves it."""
    port = free_port()
    with (tmp_path / "http.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "mooncake.http_metadata_server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}/metadata"
    finally:
        server.kill()
        server.wait()


def crc(seed: int, size: int) -> int:
    return zlib.crc32(random.Random(seed).randbytes(size))


def sent() -> int:
    """Packets that left by RDMA, of all devices."""
    return sum(int(path.read_text()) for path in Path("/sys/class/infiniband").glob("rxe*/ports/1/hw_counters/sent_pkts"))


def move(initiator: Node, target: Node, op: str, here: int, there: int, size: int) -> int:
    return initiator.call(f"transfer_sync_{op}", target.name, here, there, size)


def exchange(initiator: Node, target: Node, size: int) -> None:
    here, there = initiator.memory(size, seed=1), target.memory(size, seed=2)
    assert move(initiator, target, "write", here, there, size) == 0, initiator.tail()
    assert target.do("crc", there, size) == crc(1, size)
    target.do("fill", there, size, 3)
    assert move(initiator, target, "read", here, there, size) == 0, initiator.tail()
    assert initiator.do("crc", here, size) == crc(3, size)


@pytest.mark.parametrize("kinds", [("ours", "upstream"), ("upstream", "ours")], ids=lambda kinds: "-to-".join(kinds))
def test_bytes_are_written_and_read_over_rdma(peer: Start, kinds: tuple[str, str]) -> None:
    initiator, target = peer(kinds[0]), peer(kinds[1], "rxe1")
    for size in (4096, 4 * MIB):
        exchange(initiator, target, size)
    ours = initiator if kinds[0] == "ours" else target
    assert "no RDMA" not in ours.log.read_text(), "it went over TCP"


@pytest.mark.parametrize("kinds", [("ours", "upstream"), ("upstream", "ours")], ids=lambda kinds: "-to-".join(kinds))
def test_bytes_move_over_rdma_under_http_metadata(peer: Start, http_metadata: str, kinds: tuple[str, str]) -> None:
    initiator, target = peer(kinds[0], http_metadata=http_metadata), peer(kinds[1], "rxe1", http_metadata=http_metadata)
    before = sent()
    exchange(initiator, target, 4 * MIB)
    assert sent() - before >= 2 * 4 * MIB / PACKET, "it went over TCP"


def test_both_initiate_at_the_same_time(peer: Start) -> None:
    """Each side's connections are its own: none ends the other's."""
    ours, upstream = peer("ours"), peer("upstream", "rxe1")
    mine, theirs = ours.memory(MIB, seed=1), upstream.memory(MIB, seed=2)
    mine_in, theirs_in = ours.memory(MIB), upstream.memory(MIB)
    for turn in range(5):
        ours.do("fill", mine, MIB, 10 + turn)
        upstream.do("fill", theirs, MIB, 20 + turn)
        ours.ask("call", "transfer_sync_write", upstream.name, mine, theirs_in, MIB)
        upstream.ask("call", "transfer_sync_write", ours.name, theirs, mine_in, MIB)
        assert (ours.take(), upstream.take()) == (0, 0), ours.tail() + upstream.tail()
        assert upstream.do("crc", theirs_in, MIB) == crc(10 + turn, MIB)
        assert ours.do("crc", mine_in, MIB) == crc(20 + turn, MIB)


def test_several_devices_on_both_sides(peer: Start) -> None:
    if int(os.environ.get("GUEST_NICS", "2")) < 4:
        pytest.skip("needs four NICs")
    for kinds in (("ours", "upstream"), ("upstream", "ours")):
        exchange(peer(kinds[0], "rxe0,rxe1"), peer(kinds[1], "rxe2,rxe3"), 8 * MIB)


def test_memory_that_upstream_registers_anew_is_found(peer: Start) -> None:
    ours, upstream = peer("ours"), peer("upstream", "rxe1")
    here, there = ours.memory(MIB, seed=1), upstream.memory(MIB, seed=2)
    assert move(ours, upstream, "write", here, there, MIB) == 0, ours.tail()
    assert upstream.call("unregister_memory", there) == 0
    assert upstream.call("register_memory", there, MIB) == 0
    ours.do("fill", here, MIB, 5)
    assert move(ours, upstream, "write", here, there, MIB) == 0, ours.tail()
    assert upstream.do("crc", there, MIB) == crc(5, MIB)


@pytest.mark.parametrize("kinds", [("ours", "upstream"), ("upstream", "ours")], ids=lambda kinds: "-to-".join(kinds))
def test_a_target_that_is_killed_ends_the_transfer_and_a_new_one_is_served(peer: Start, kinds: tuple[str, str]) -> None:
    initiator, target = peer(kinds[0]), peer(kinds[1], "rxe1")
    here, there = initiator.memory(MIB, seed=1), target.memory(MIB, seed=2)
    assert move(initiator, target, "write", here, there, MIB) == 0, initiator.tail()
    target.kill()
    begin = time.monotonic()
    initiator.ask("call", "transfer_sync_write", target.name, here, there, MIB)
    if kinds[0] == "ours":  # upstream's own waiting is not ours to judge
        assert initiator.take(180) != 0
        assert time.monotonic() - begin < 120
        exchange(initiator, peer(kinds[1], "rxe1"), MIB)


def test_an_initiator_that_is_killed_leaves_the_target_serving(peer: Start) -> None:
    ours = peer("ours", "rxe1")
    upstream = peer("upstream")
    exchange(upstream, ours, MIB)
    upstream.kill()
    exchange(peer("upstream"), ours, MIB)


def test_peers_of_protocol_tcp_still_find_an_engine_with_rdma(peer: Start) -> None:
    ours, upstream = peer("ours"), peer("upstream", "", "tcp", MC_TCP_BIND_ADDRESS="127.0.0.1")
    exchange(upstream, ours, MIB)
    exchange(ours, upstream, MIB)


def test_the_doctor_finds_nothing_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mooncake.cli", "doctor", "--device-name", "rxe0"], capture_output=True, text=True, timeout=120, check=False
    )
    lines = {line.split(":")[0].split(None, 1)[1]: line for line in done.stdout.splitlines()}
    for name in ("RDMA devices", "libibverbs", "RDMA rights", "RDMA ports", "RDMA addresses", "RDMA packet size"):
        assert lines[name].startswith("ok"), done.stdout
