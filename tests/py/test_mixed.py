"""Mixed clusters: a process of upstream's wheel and one of ours read and write each other's memory over TCP."""

import os
import random
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node, free_port, wait_for_port

PAIRS = [("ours", "upstream"), ("upstream", "ours")]
KILLS = int(os.environ.get("MC_TEST_KILLS", "10"))  # of each victim in each pair
SIZES = [1, 7, 4096, 65536, 65539, 4 << 20]

NodeStarter = Callable[..., Node]
both_ways = pytest.mark.parametrize(("initiator", "target"), PAIRS, ids=["ours-to-upstream", "upstream-to-ours"])


def pattern_crc(seed: int, size: int) -> int:
    return zlib.crc32(random.Random(seed).randbytes(size))


@pytest.fixture
def http_metadata(upstream_python: str, tmp_path: Path) -> Iterator[str]:
    """Upstream's metadata server; its URL."""
    port = free_port()
    with (tmp_path / "metadata.log").open("wb") as log:
        server = subprocess.Popen(
            [upstream_python, "-I", "-m", "mooncake.http_metadata_server", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}/metadata"
    finally:
        server.kill()
        server.wait(30)


def check_transfers(a: Node, b: Node) -> None:
    """Single and batch transfers of all sizes, each way, bytes compared at both ends."""
    room = max(SIZES)
    here, there = a.memory(room, 1), b.memory(room, 2)
    for i, size in enumerate(SIZES):
        a.do("fill", here, size, 100 + i)
        assert a.call("transfer_sync_write", b.name, here, there, size) == 0, a.tail()
        assert b.do("crc", there, size) == pattern_crc(100 + i, size)
        b.do("fill", there, size, 200 + i)
        assert a.call("transfer_sync_read", b.name, here, there, size) == 0, a.tail()
        assert a.do("crc", here, size) == pattern_crc(200 + i, size)
    block, count = 4096, 128
    a.do("fill", here, room, 7)
    order = random.Random(3).sample(range(room // block), count)
    sources = [here + i * block for i in range(count)]
    targets = [there + i * block for i in order]
    assert a.call("batch_transfer_sync_write", b.name, sources, targets, [block] * count) == 0, a.tail()
    assert b.do("crcs", targets, block) == a.do("crcs", sources, block)
    b.do("fill", there, room, 8)
    assert a.call("batch_transfer_sync_read", b.name, sources, targets, [block] * count) == 0, a.tail()
    assert b.do("crcs", targets, block) == a.do("crcs", sources, block)


@both_ways
def test_bytes_move_under_p2p_metadata(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    check_transfers(a, b)


@both_ways
def test_bytes_move_under_http_metadata(node: NodeStarter, http_metadata: str, initiator: str, target: str) -> None:
    names = [f"127.0.0.1:{free_port(12000 + i * 1000, 13000 + i * 1000)}" for i in range(2)]
    a, b = (node(kind).start(name, http_metadata) for kind, name in zip((initiator, target), names))
    check_transfers(a, b)
    check_transfers(b, a)


@both_ways
def test_asynchronous_batches_end(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    size, count = 65536, 32
    here, there = a.memory(size * count, 4), b.memory(size * count, 5)
    sources, targets = ([base + i * size for i in range(count)] for base in (here, there))
    batch = a.call("batch_transfer_async_write", b.name, sources, targets, [size] * count)
    assert batch != 0, a.tail()
    assert a.call("get_batch_transfer_status", [batch]) == 0, a.tail()
    assert b.do("crc", there, size * count) == pattern_crc(4, size * count)


@both_ways
def test_message_comes_after_the_bytes(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    size = 1 << 20
    here, there = a.memory(size, 11), b.memory(size, 12)
    write, note = {"opcode": "Write"}, {"notify": ["request-1", "block \u00e9 7"]}
    assert a.call("transfer_sync", b.name, here, there, size, write, note) == 0, a.tail()
    assert b.do("notifies", 1, 20) == [["request-1", "block \u00e9 7"]], b.tail()
    assert b.do("crc", there, size) == pattern_crc(11, size)
    note = {"notify": ["request-2", "all"]}
    half = size // 2
    assert a.call("batch_transfer_sync", b.name, [here, here + half], [there + half, there], [half] * 2, write, note) == 0
    assert b.do("notifies", 1, 20) == [["request-2", "all"]], b.tail()


@both_ways
def test_probe_tells_the_living_from_the_dead(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    assert a.call("send_probe", b.name) == 0, a.tail()
    assert b.call("send_probe", a.name) == 0, b.tail()
    b.kill()
    assert a.call("send_probe", b.name) != 0


@both_ways
def test_memory_that_is_not_registered_is_refused(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    size = 65536
    here = a.memory(size, 1)
    guarded = b.do("buffer", 3 * size, 2)
    before = b.do("crc", guarded, 3 * size)
    assert b.call("register_memory", guarded + size, size) == 0
    for wrong in (guarded, guarded + size - 1, guarded + size + 1, guarded + 2 * size):
        assert a.call("transfer_sync_write", b.name, here, wrong, size) < 0
    assert b.do("crc", guarded, 3 * size) == before
    # After refusals upstream's client fails every call for a while, towards its own kind too.
    end = time.monotonic() + (0 if initiator == "ours" else 15)
    while (rc := a.call("transfer_sync_write", b.name, here, guarded + size, size)) != 0 and time.monotonic() < end:
        time.sleep(0.2)
    assert rc == 0, a.tail()
    assert b.do("crc", guarded + size, size) == pattern_crc(1, size)


@both_ways
def test_memory_registered_later_is_found(node: NodeStarter, initiator: str, target: str) -> None:
    a, b = node(initiator).start(), node(target).start()
    size = 4096
    here, first = a.memory(size, 1), b.memory(size, 2)
    assert a.call("transfer_sync_write", b.name, here, first, size) == 0, a.tail()
    late = b.memory(size, 3)
    assert a.call("transfer_sync_write", b.name, here, late, size) == 0, a.tail()
    assert b.do("crc", late, size) == pattern_crc(1, size)


@both_ways
def test_ten_thousand_buffers(node: NodeStarter, initiator: str, target: str) -> None:
    """Upstream carries a description of at most 1 MiB."""
    a, b = node(initiator).start(), node(target).start()
    count, size = 10000, 2048
    whole = b.do("buffer", count * size * 2, 21)  # every other one is registered, so that none are neighbours
    buffers = [whole + i * size * 2 for i in range(count)]
    assert b.call("batch_register_memory", buffers, [size] * count) == 0, b.tail()
    chosen = [0, count - 1, *random.Random(5).sample(range(count), 126)]
    here = a.memory(len(chosen) * size, 22)
    mine, theirs = [here + i * size for i in range(len(chosen))], [buffers[i] for i in chosen]
    assert a.call("batch_transfer_sync_read", b.name, mine, theirs, [size] * len(chosen)) == 0, a.tail()
    assert a.do("crcs", mine, size) == b.do("crcs", theirs, size)
    assert b.call("batch_unregister_memory", buffers) == 0, b.tail()


@both_ways
def test_target_dies_again_and_again(node: NodeStarter, initiator: str, target: str) -> None:
    """Each time the call under way ends with an error, and the next target gets its bytes."""
    rng = random.Random(31)
    block, count = 65536, 64
    a = node(initiator).start()
    here = a.memory(block * count, 41)
    sources = [here + i * block for i in range(count)]
    for _ in range(KILLS):
        b = node(target).start()
        there = b.memory(block * count, 42)
        targets = [there + i * block for i in range(count)]
        assert a.call("batch_transfer_sync_write", b.name, sources, targets, [block] * count) == 0, a.tail()
        assert b.do("crc", there, block * count) == pattern_crc(41, block * count)
        a.do("loop", "batch_transfer_sync_write", b.name, sources, targets, [block] * count)
        time.sleep(rng.uniform(0, 0.05))
        b.kill()
        assert a.do("loop_end", 60) is not None, f"the call hangs; {a.tail()}"
        assert a.do("crc", here, block * count) == pattern_crc(41, block * count)


@both_ways
def test_initiator_dies_again_and_again(node: NodeStarter, initiator: str, target: str) -> None:
    """The target's bytes are the old or the new ones, nothing beside them changes, and the next one is served."""
    rng = random.Random(32)
    block, count = 65536, 64
    size = block * count
    b = node(target).start()
    whole = b.do("buffer", 3 * size, 51)
    there = whole + size
    assert b.call("register_memory", there, size) == 0
    guards = [b.do("crc", whole, size), b.do("crc", there + size, size)]
    targets = [there + i * block for i in range(count)]
    for i in range(KILLS):
        b.do("fill", there, size, 60 + i)
        a = node(initiator).start()
        here = a.memory(size, 80 + i)
        sources = [here + i * block for i in range(count)]
        a.do("loop", "batch_transfer_sync_write", b.name, sources, targets, [block] * count)
        time.sleep(rng.uniform(0, 0.05))
        a.kill()
        fresh = node(initiator).start()
        here = fresh.memory(size)
        assert fresh.call("transfer_sync_read", b.name, here, there, size) == 0, fresh.tail()
        assert b.do("is_mix", there, size, 60 + i, 80 + i)
        fresh.do("fill", here, size, 200 + i)
        assert fresh.call("transfer_sync_write", b.name, here, there, size) == 0, fresh.tail()
        assert b.do("crc", there, size) == pattern_crc(200 + i, size)
        assert guards == [b.do("crc", whole, size), b.do("crc", there + size, size)]
        fresh.close()
    assert b.call("send_probe", b.name) == 0
