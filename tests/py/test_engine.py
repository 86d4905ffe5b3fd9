"""mooncake.engine between processes of ours: bytes, batches, messages, threads, errors, fork and exit."""

import ctypes
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node, free_port

from mooncake.engine import Read, TransferEngine, TransferNotify, Write

NodeStarter = Callable[..., Node]
PATHS = {"tcp": {"MC_FORCE_TCP": "1"}, "any": {"MC_FORCE_TCP": "0"}}


@pytest.fixture(params=PATHS, ids=PATHS.keys())
def pair(request: pytest.FixtureRequest, node: NodeStarter) -> tuple[Node, Node]:
    env = PATHS[request.param]
    return node(env=env).start(), node(env=env).start()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TransferEngine:
    """An engine in this process."""
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    one = TransferEngine()
    assert one.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, one.last_error()
    return one


@pytest.fixture
def memory(engine: TransferEngine) -> Iterator[tuple[int, int]]:
    """Two registered buffers of 1 MiB of this process."""
    buffers = [ctypes.create_string_buffer(1 << 20) for _ in range(2)]
    addresses = [ctypes.addressof(buffer) for buffer in buffers]
    assert engine.batch_register_memory(addresses, [1 << 20] * 2) == 0, engine.last_error()
    yield addresses[0], addresses[1]
    assert engine.batch_unregister_memory(addresses) == 0, engine.last_error()


def own_name(engine: TransferEngine) -> str:
    return f"127.0.0.1:{engine.get_rpc_port()}"


def pattern_crc(seed: int, size: int) -> int:
    return zlib.crc32(random.Random(seed).randbytes(size))


# ---- bytes ----


@pytest.mark.parametrize("size", [1, 63, 4096, 65537, 3 << 20])
def test_write_and_read_move_the_bytes(pair: tuple[Node, Node], size: int) -> None:
    a, b = pair
    here, there = a.memory(size, 1), b.memory(size, 2)
    assert a.call("transfer_sync_read", b.name, here, there, size) == 0, a.tail()
    assert a.do("crc", here, size) == pattern_crc(2, size)
    a.do("fill", here, size, 3)
    assert a.call("transfer_sync_write", b.name, here, there, size) == 0, a.tail()
    assert b.do("crc", there, size) == pattern_crc(3, size)


def test_engine_memory_is_written_from_other_processes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    size = 1 << 20
    here, there = a.call("allocate_managed_buffer", size), b.call("allocate_managed_buffer", size)
    assert here and there
    a.do("fill", here, size, 5)
    assert a.call("transfer_sync_write", b.name, here, there, size) == 0, a.tail()
    assert b.do("crc", there, size) == pattern_crc(5, size)
    assert b.call("get_first_buffer_address", b.name) == there
    assert a.call("get_first_buffer_address", b.name) == there
    assert b.call("free_managed_buffer", there, size) == 0
    assert a.call("transfer_sync_write", b.name, here, there, size) == -1, "the memory is gone"


def test_batch_of_odd_pieces_lands_where_it_should(pair: tuple[Node, Node]) -> None:
    a, b = pair
    rng = random.Random(9)
    lengths = [rng.choice([0, 1, 13, 4096, 9999]) for _ in range(500)]
    room = 10240 * len(lengths)
    here, there = a.memory(room, 6), b.memory(room, 7)
    sources = [here + i * 10240 for i in range(len(lengths))]
    targets = [there + i * 10240 + i % 7 for i in range(len(lengths))]
    assert a.call("batch_transfer_sync_write", b.name, sources, targets, lengths) == 0, a.tail()
    expected = bytearray(random.Random(7).randbytes(room))
    source = random.Random(6).randbytes(room)
    for i, length in enumerate(lengths):
        at = i * 10240 + i % 7
        expected[at : at + length] = source[i * 10240 : i * 10240 + length]
    assert b.do("crc", there, room) == zlib.crc32(expected)


def test_own_segment_is_a_peer_like_any_other(engine: TransferEngine, memory: tuple[int, int]) -> None:
    here, there = memory
    engine.write_bytes_to_buffer(here, b"self", 4)
    assert engine.transfer_sync_write(own_name(engine), here, there, 4) == 0, engine.last_error()
    assert engine.read_bytes_from_buffer(there, 4) == b"self"


def test_two_engines_of_one_process_reach_each_other(engine: TransferEngine, memory: tuple[int, int]) -> None:
    other = TransferEngine()
    assert other.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, other.last_error()
    theirs = other.allocate_managed_buffer(4096)
    engine.write_bytes_to_buffer(memory[0], b"neighbour", 9)
    assert engine.transfer_sync_write(own_name(other), memory[0], theirs, 9) == 0, engine.last_error()
    assert other.read_bytes_from_buffer(theirs, 9) == b"neighbour"


# ---- batches ----


def test_batch_id_is_of_the_whole_batch(pair: tuple[Node, Node]) -> None:
    a, b = pair
    size, count = 1 << 20, 16
    here, there = a.memory(size * count, 1), b.memory(size * count, 2)
    sources, targets = ([base + i * size for i in range(count)] for base in (here, there))
    batch = a.call("batch_transfer_async_write", b.name, sources, targets, [size] * count)
    assert 1 <= batch < 1 << 63
    assert a.do("poll", batch, 30) == 1, a.tail()
    assert b.do("crc", there, size * count) == pattern_crc(1, size * count)
    assert a.call("transfer_check_status", batch) == -1, "the id is gone"
    targets[-1] = there + size * count  # the last one is out of range
    batch = a.call("batch_transfer_async_write", b.name, sources, targets, [size] * count)
    assert batch == 0 or a.do("poll", batch, 30) == -1, "refused at once, or by the peer"


def test_waiting_for_batches_frees_them_all(engine: TransferEngine, memory: tuple[int, int]) -> None:
    here, there = memory
    name = own_name(engine)
    good = [engine.batch_transfer_async(name, [here], [there], [100], opcode) for opcode in (Read, Write) * 8]
    assert all(1 <= batch < 1 << 63 for batch in good) and len(set(good)) == len(good)
    assert engine.get_batch_transfer_status(good) == 0
    bad = engine.batch_transfer_async_read(name, [here], [1 << 40], [100])
    assert engine.last_error() or not bad
    rest = [bad, engine.transfer_submit_write(name, here, there, 10), engine.batch_transfer_async_read(name, [], [], [])]
    assert engine.get_batch_transfer_status(rest) == -1
    assert engine.last_error()
    assert [engine.transfer_check_status(batch) for batch in good + rest] == [-1] * (len(good) + 3)
    assert engine.get_batch_transfer_status([]) == 0


@pytest.mark.parametrize("batch", [0, 1, (1 << 63) - 1, (1 << 64) - 1])
def test_unknown_batch_is_an_error(engine: TransferEngine, batch: int) -> None:
    assert engine.transfer_check_status(batch) == -1
    assert engine.get_batch_transfer_status([batch]) == -1


# ---- messages ----


def test_message_comes_once_and_after_the_bytes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    size = 1 << 20
    here, there = a.memory(size, 1), b.memory(size, 2)
    write = {"opcode": "WRITE"}
    for i in range(20):
        a.do("fill", here, 4096, i)
        assert a.call("transfer_sync", b.name, here, there, size, write, {"notify": ["step", str(i)]}) == 0, a.tail()
        assert b.do("notifies", 1, 10) == [["step", str(i)]]
        assert b.do("crc", there, 4096) == pattern_crc(i, 4096)
    assert b.call("get_notifies") == []


def test_message_alone_and_with_any_characters(engine: TransferEngine, memory: tuple[int, int]) -> None:
    sent = [TransferNotify("", ""), TransferNotify("zero\0inside", "\u00e9\u4e2d\U0001f43c"), TransferNotify("n" * 200, "m" * 60000)]
    for notify in sent:
        assert engine.transfer_sync(own_name(engine), memory[0], memory[1], 0, Write, notify) == 0, engine.last_error()
    got: list[TransferNotify] = []
    end = time.monotonic() + 10
    while len(got) < len(sent) and time.monotonic() < end:
        got += engine.get_notifies()
    assert got == sent


def test_failed_transfer_sends_no_message(engine: TransferEngine, memory: tuple[int, int]) -> None:
    assert engine.transfer_sync(own_name(engine), memory[0], 1 << 40, 8, Write, TransferNotify("never", "")) == -1
    assert engine.transfer_sync(own_name(engine), memory[0], memory[1], 0, Write, TransferNotify("then", "")) == 0
    end = time.monotonic() + 10
    got: list[TransferNotify] = []
    while not got and time.monotonic() < end:
        got = engine.get_notifies()
    assert [notify.name for notify in got] == ["then"]


# ---- peers ----


def test_probe_and_transfer_see_a_death(pair: tuple[Node, Node]) -> None:
    a, b = pair
    here, there = a.memory(4096, 1), b.memory(4096, 2)
    assert a.call("transfer_sync_write", b.name, here, there, 4096) == 0, a.tail()
    assert a.call("send_probe", b.name) == 0, a.tail()
    b.kill()
    assert a.call("send_probe", b.name) != 0
    assert a.call("transfer_sync_write", b.name, here, there, 4096) == -1
    assert b.name in a.call("last_error")


def start_at(node: NodeStarter, name: str, low: int) -> Node:
    """A process with this name: it takes one of two ports by lot, so a few may come and go first."""
    for _ in range(40):
        one = node(env={"MC_MIN_RPC_PORT": str(low), "MC_MAX_RPC_PORT": str(low + 1)}).start()
        if name in ("", one.name):
            return one
        one.kill()
    raise AssertionError(f"nobody got {name}")


def test_peer_restarted_on_its_address_is_served(node: NodeStarter) -> None:
    low = free_port(15100, 16900)
    a = node().start()
    here = a.memory(1 << 20, 1)
    name = ""
    for i in range(4):
        b = start_at(node, name, low)
        name = b.name
        there = b.memory(1 << 20, 2)
        a.do("fill", here, 1 << 20, 10 + i)
        assert a.call("transfer_sync_write", name, here, there, 1 << 20) == 0, a.tail()
        assert b.do("crc", there, 1 << 20) == pattern_crc(10 + i, 1 << 20)
        b.kill()


def test_many_threads_share_an_engine(pair: tuple[Node, Node]) -> None:
    a, b = pair
    threads, size = 16, 65536
    here, there = a.memory(size * threads, 1), b.memory(size * threads, 2)
    jobs = [[b.name, here + i * size, there + i * size, size] for i in range(threads)]
    assert a.do("hammer", "transfer_sync_write", threads, 40, jobs) == [], a.tail()
    assert b.do("crc", there, size * threads) == pattern_crc(1, size * threads)
    batches = [[b.name, [job[1]] * 4, [job[2]] * 4, [size] * 4] for job in jobs]
    assert a.do("hammer", "batch_transfer_sync_read", threads, 10, batches) == [], a.tail()


def test_waiting_leaves_python_running(engine: TransferEngine, memory: tuple[int, int], node: NodeStarter) -> None:
    """A transfer to a stopped process waits; other threads of Python go on meanwhile."""
    b = node(env={"MC_FORCE_TCP": "0"}).start()
    there = b.memory(4096, 1)
    assert engine.transfer_sync_write(b.name, memory[0], there, 4096) == 0, engine.last_error()
    b.stop()
    try:
        waiting = threading.Thread(target=engine.send_probe, args=(b.name,))
        waiting.start()
        turns = 0
        while waiting.is_alive() and turns < 1000:
            turns += 1
        assert turns == 1000
    finally:
        b.resume()
    waiting.join(60)
    assert not waiting.is_alive()


def test_stopped_peer_costs_the_deadline_and_no_more(pair: tuple[Node, Node]) -> None:
    a, b = pair
    here, there = a.memory(1 << 20, 1), b.memory(1 << 20, 2)
    assert a.call("transfer_sync_write", b.name, here, there, 4096) == 0, a.tail()
    b.stop()
    try:
        started = time.monotonic()
        batch = a.call("batch_transfer_async_read", b.name, [here], [there], [1 << 20])
        rc = a.call("transfer_sync_write", b.name, here, there, 1 << 20)
        took = time.monotonic() - started
        ended = a.do("poll", batch, 30) if batch else -1
    finally:
        b.resume()
    # One host's memory can be read and written while its owner stands still; a socket cannot.
    assert rc == 0 or (rc == -1 and b.name in a.call("last_error"))
    assert ended in (1, -1, -2) and took < 15, "MC_TRANSFER_TIMEOUT is 5 s"
    end = time.monotonic() + 20
    while (rc := a.call("transfer_sync_write", b.name, here, there + 65536, 4096)) != 0 and time.monotonic() < end:
        time.sleep(0.1)
    assert rc == 0, a.tail()


# ---- registration ----


def test_registering_twice_counts(engine: TransferEngine) -> None:
    buffer = ctypes.create_string_buffer(8192)
    address = ctypes.addressof(buffer)
    assert engine.register_memory(address, 8192) == 0
    assert engine.register_memory(address, 8192) == 0
    assert engine.register_memory(address + 100, 200, "cpu:0") == 0, "overlaps are fine"
    assert [engine.unregister_memory(at) for at in (address, address, address + 100)] == [0, 0, 0]
    assert engine.unregister_memory(address) < 0
    assert f"{address:#x}" in engine.last_error()


def test_batch_of_registrations_is_all_or_none(engine: TransferEngine) -> None:
    buffers = [ctypes.create_string_buffer(64) for _ in range(50)]
    addresses = [ctypes.addressof(buffer) for buffer in buffers]
    assert engine.batch_register_memory(addresses, [64] * 49 + [0]) < 0
    assert engine.unregister_memory(addresses[0]) < 0, "none of them stayed"
    assert engine.batch_register_memory(buffer_addresses=addresses, capacities=[64] * 50, location="cpu:0") == 0
    assert engine.batch_unregister_memory(addresses) == 0
    assert engine.batch_register_memory(addresses, [64] * 49) == -1, "of different lengths"


# ---- arguments ----

BAD_CALLS = [
    (TypeError, "buffer", lambda e: e.transfer_sync_write("x", "1", 2, 3)),
    (TypeError, "length", lambda e: e.transfer_sync_read("x", 1, 2, 3.0)),
    (OverflowError, "buffer", lambda e: e.transfer_sync_write("x", -1, 2, 3)),
    (OverflowError, "peer_buffer_address", lambda e: e.transfer_sync_write("x", 1, 1 << 64, 3)),
    (TypeError, "target_hostname", lambda e: e.transfer_sync_write(b"x", 1, 2, 3)),
    (ValueError, "target_hostname", lambda e: e.transfer_sync_write("x\0y", 1, 2, 3)),
    (TypeError, "length", lambda e: e.transfer_sync_write("x", 1, 2)),
    (TypeError, "lenght", lambda e: e.transfer_sync_write("x", 1, 2, lenght=3)),
    (TypeError, "buffer", lambda e: e.transfer_sync_write("x", 1, 2, 3, buffer=4)),
    (TypeError, "transport_hint", lambda e: e.transfer_sync_write("x", 1, 2, 3, 4)),
    (TypeError, "at most", lambda e: e.transfer_sync_write("x", 1, 2, 3, "", 5)),
    (TypeError, r"'buffers'\[1\]", lambda e: e.batch_transfer_sync_write("x", [1, None], [1, 2], [3, 4])),
    (OverflowError, r"'lengths'\[0\]", lambda e: e.batch_transfer_sync_read("x", [1], [1], [-3])),
    (TypeError, "buffers", lambda e: e.batch_transfer_sync_write("x", "12", [1, 2], [3, 4])),
    (TypeError, "buffers", lambda e: e.batch_transfer_sync_write("x", b"12", [1, 2], [3, 4])),
    (TypeError, "peer_buffer_addresses", lambda e: e.batch_transfer_async_read("x", [1], 1, [3])),
    (TypeError, "opcode", lambda e: e.transfer_sync("x", 1, 2, 3, "Read")),
    (ValueError, "opcode", lambda e: e.transfer_sync("x", 1, 2, 3, 2)),
    (TypeError, "notify", lambda e: e.transfer_sync("x", 1, 2, 3, Read, "hello")),
    (TypeError, "notify.msg", lambda e: e.transfer_sync("x", 1, 2, 3, Read, TransferNotify("a", 1))),
    (ValueError, "notify", lambda e: e.transfer_sync("x", 1, 2, 3, Read, TransferNotify("a", "b" * 70000))),
    (TypeError, "capacity", lambda e: e.register_memory(1, "2")),
    (TypeError, "location", lambda e: e.register_memory(1, 2, 3)),
    (TypeError, "batch_id", lambda e: e.transfer_check_status("1")),
    (TypeError, r"'batch_ids'\[0\]", lambda e: e.get_batch_transfer_status(["1"])),
    (ValueError, "src_address", lambda e: e.read_bytes_from_buffer(4096, 8)),
    (ValueError, "dest_address", lambda e: e.write_bytes_to_buffer(4096, b"12345678", 8)),
    (ValueError, "length", lambda e: e.write_bytes_to_buffer(4096, b"1234", 8)),
    (TypeError, "peer_server_name", lambda e: e.send_probe(None)),
    (TypeError, "protocol", lambda e: TransferEngine().initialize("x", "P2PHANDSHAKE", 7, "")),
]


@pytest.mark.parametrize(("kind", "names", "call"), BAD_CALLS)
def test_wrong_argument_is_named(engine: TransferEngine, kind: type[Exception], names: str, call: Callable) -> None:
    with pytest.raises(kind, match=names):
        call(engine)


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_any_sequence_of_whole_numbers_is_taken(engine: TransferEngine, memory: tuple[int, int]) -> None:
    import array

    here, there = memory
    name = own_name(engine)
    for sources in (
        [here, here + 1],
        (here, Number(here + 1)),
        range(here, here + 2),
        array.array("Q", [here, here + 1]),
        memoryview(array.array("q", [here, here + 1])),
    ):
        engine.write_bytes_to_buffer(there, b"\0" * 2, 2)
        engine.write_bytes_to_buffer(here, b"ok", 2)
        assert engine.batch_transfer_sync_write(name, sources, [there, there + 1], array.array("l", [1, 1])) == 0
        assert engine.read_bytes_from_buffer(there, 2) == b"ok"
    assert engine.transfer_sync_write(name, Number(here), there, True) == 0
    assert engine.batch_transfer_sync_write(name, [], [], []) == 0


def test_numbers_of_numpy_are_taken(engine: TransferEngine, memory: tuple[int, int]) -> None:
    numpy = pytest.importorskip("numpy")
    here, there = (numpy.uint64(address) for address in memory)
    name = own_name(engine)
    assert engine.transfer_sync_write(name, here, there, numpy.int32(16)) == 0
    assert engine.batch_transfer_sync_write(name, numpy.array([here]), [there], numpy.array([16], dtype=numpy.int32)) == 0


def test_list_that_shrinks_while_it_is_read_is_an_error(engine: TransferEngine) -> None:
    buffers: list = []

    class Shrinks:
        def __index__(self) -> int:
            buffers.clear()
            return 1

    buffers += [Shrinks(), 2, 3]
    with pytest.raises(IndexError):
        engine.batch_transfer_sync_write("x", buffers, [1, 2, 3], [1, 2, 3])


def test_batches_of_different_lengths_fail(engine: TransferEngine) -> None:
    name = own_name(engine)
    assert engine.batch_transfer_sync_write(name, [1, 2], [1], [1]) == -1
    assert "lengths" in engine.last_error()
    assert engine.batch_transfer_async_read(name, [1], [1], [1, 2]) == 0


@pytest.mark.parametrize(
    ("target", "says"),
    [("no-such-host.invalid:15001", "no-such-host.invalid"), ("127.0.0.1:1", "127.0.0.1:1"), ("", ""), ("[::1", "::1")],
)
def test_peer_that_is_not_there_is_named(engine: TransferEngine, memory: tuple[int, int], target: str, says: str) -> None:
    assert engine.transfer_sync_write(target, *memory, 8) == -1
    assert says in engine.last_error()
    assert engine.batch_transfer_async_write(target, [memory[0]], [memory[1]], [8]) == 0
    assert engine.send_probe(target) != 0
    assert engine.get_first_buffer_address(target) == 0


def test_address_outside_of_the_peers_memory_is_refused(engine: TransferEngine, memory: tuple[int, int]) -> None:
    here, there = memory
    for wrong in (there - 1, there + (1 << 20) - 7, 0, (1 << 64) - 8, (1 << 64) - 1):
        assert engine.transfer_sync_write(own_name(engine), here, wrong, 8) == -1
        assert own_name(engine) in engine.last_error() or "wrap around" in engine.last_error()


# ---- life ----


def test_calls_before_initialize_fail_and_say_so() -> None:
    engine = TransferEngine()
    assert engine.transfer_sync_write("127.0.0.1:1", 1, 2, 3) == -1
    assert "initialize()" in engine.last_error()
    assert engine.batch_transfer_async_write("127.0.0.1:1", [1], [2], [3]) == 0
    assert engine.register_memory(1, 2) == -1
    assert engine.send_probe("127.0.0.1:1") != 0
    assert engine.allocate_managed_buffer(10) == 0
    assert engine.get_notifies() == [] and engine.get_engine() is None
    assert engine.get_engine_ptr() == engine.get_rpc_port() == 0
    assert isinstance(engine.get_local_topology(), str)


def test_engine_is_initialized_once(engine: TransferEngine) -> None:
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
    assert "initialized already" in engine.last_error()


BAD_SETTINGS = [
    ("127.0.0.1", "http://127.0.0.1:1/metadata", "tcp", "", "127.0.0.1:1"),
    ("127.0.0.1", "gopher://127.0.0.1:1", "tcp", "", "gopher"),
    ("127.0.0.1", "P2PHANDSHAKE", "xgmi", "", "xgmi"),
    ("127.0.0.1:99999", "P2PHANDSHAKE", "tcp", "", "99999"),
]


def usage() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def comes_back_to(before: tuple[int, int]) -> bool:
    """Nothing is more. A thread that was joined is in /proc until the kernel has taken it out, perhaps in `before`, too."""
    end = time.monotonic() + 5
    while (is_more := any(now > was for now, was in zip(usage(), before))) and time.monotonic() < end:
        time.sleep(0.001)
    return not is_more


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=lambda s: s[4])
def test_initialize_that_fails_names_why_and_leaves_nothing(settings: tuple[str, ...]) -> None:
    for _ in range(3):
        engine = TransferEngine()
        gc.collect()
        before = usage()
        assert engine.initialize(*settings[:4]) == -1
        assert settings[4] in engine.last_error()
        assert comes_back_to(before)
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "the object is still good"


def test_bind_address_of_another_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_TCP_BIND_ADDRESS", "203.0.113.1")
    for name in ("", "127.0.0.1"):
        engine = TransferEngine()
        if engine.initialize(name, "P2PHANDSHAKE", "tcp", "") == 0:
            assert name, "the variable decides where no name was given"
        else:
            assert "203.0.113.1" in engine.last_error()


def test_without_a_name_an_address_of_this_host_is_taken() -> None:
    engine = TransferEngine()
    assert engine.initialize("", "P2PHANDSHAKE", "tcp", "") == 0, engine.last_error()
    assert engine.get_rpc_port() > 0


def test_engines_come_and_go() -> None:
    def once() -> None:
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, engine.last_error()
        address = engine.allocate_managed_buffer(65536)
        assert engine.transfer_sync_write(own_name(engine), address, address + 4096, 4096) == 0

    for _ in range(3):
        once()
    gc.collect()
    before = usage()
    for _ in range(20):
        once()
    gc.collect()
    assert comes_back_to(before)


def test_engine_lives_as_long_as_somebody_holds_it(engine: TransferEngine) -> None:
    other = TransferEngine()
    assert other.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    assert other.get_engine_ptr() != 0
    inner, name = other.get_engine(), own_name(other)
    capsule = inner._capsule()
    del other
    gc.collect()
    assert engine.send_probe(name) == 0
    del inner
    assert engine.send_probe(name) == 0
    del capsule
    gc.collect()
    assert engine.send_probe(name) != 0


def run_script(text: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


OPEN = """
import ctypes, os, sys, threading, time
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, engine.last_error()
name = f"127.0.0.1:{engine.get_rpc_port()}"
here = engine.allocate_managed_buffer(1 << 20)
"""


def test_child_of_a_fork_gets_errors_and_the_parent_goes_on() -> None:
    done = run_script(
        OPEN
        + textwrap.dedent("""
        batch = engine.transfer_submit_write(name, here, here + 4096, 64)
        pid = os.fork()
        if pid == 0:
            results = [engine.transfer_sync_write(name, here, here + 4096, 64), engine.transfer_check_status(batch),
                       engine.register_memory(id(engine), 8), engine.send_probe(name)]
            fresh = TransferEngine()
            ok = fresh.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
            os._exit(0 if ok and all(rc < 0 for rc in results) and "fork" in engine.last_error() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert engine.transfer_sync_write(name, here, here + 4096, 64) == 0, engine.last_error()
        """)
    )
    assert done.returncode == 0, done.stderr


def test_exit_with_threads_under_way_is_quiet() -> None:
    done = run_script(
        OPEN
        + textwrap.dedent("""
        def move():
            while True:
                engine.batch_transfer_sync_write(name, [here] * 64, [here + 65536] * 64, [4096] * 64)
        for _ in range(4):
            threading.Thread(target=move, daemon=True).start()
        time.sleep(0.3)
        """)
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_library_that_does_not_load_is_an_import_error(tmp_path: Path) -> None:
    import shutil

    import mooncake

    shutil.copytree(Path(mooncake.__file__).parent, tmp_path / "mooncake")
    (tmp_path / "mooncake/lib/libmooncake.so").write_bytes(b"not a library")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\ntry:\n import mooncake.engine\nexcept ImportError as e:\n print(e)"
    done = run_script(code)
    assert done.returncode == 0 and "libmooncake.so" in done.stdout, done.stderr


def test_failure_is_logged_once(engine: TransferEngine, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        assert engine.transfer_sync_write("127.0.0.1:1", 1, 2, 3) == -1
    assert [record.levelname for record in caplog.records if "127.0.0.1:1" in record.message] == ["WARNING"]


def test_metrics_count_bytes(engine: TransferEngine, memory: tuple[int, int]) -> None:
    assert engine.transfer_sync_write(own_name(engine), *memory, 4096) == 0
    assert "4096" in engine.metrics_text()
