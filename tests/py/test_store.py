"""mooncake.store against a real master and a real node: upstream's observable behaviour, and what it does better."""

import ctypes
import json
import random
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory import Memory
from pool import MIB, Pool, connect

from mooncake.store import MooncakeDistributedStore, ReplicateConfig

NOT_FOUND = -704
INVALID = -600
NO_SPACE = -200
HAS_LEASE = -706


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A master with short leases and one node of 256 MB."""
    pool = Pool(tmp_path_factory.mktemp("pool"), "--default_kv_lease_ttl=200")
    pool.node("256 MB")
    yield pool
    pool.close()


@pytest.fixture
def store(pool: Pool) -> Iterator[MooncakeDistributedStore]:
    store = connect(pool)
    store.remove_all(force=True)
    yield store
    store.remove_all(force=True)
    store.close()


@pytest.mark.parametrize("size", [1, 63, 4096, 65535, 65536, 65537, 262144, 262145, MIB + 13, 16 * MIB])
def test_bytes_come_back_as_they_were_put(store, size: int) -> None:
    value = random.Random(size).randbytes(size)
    assert store.put(f"bytes/{size}", value) == 0
    assert store.get(f"bytes/{size}") == value
    assert store.get_size(f"bytes/{size}") == size
    handle = store.get_buffer(f"bytes/{size}")
    assert (handle.size(), bytes(handle), len(handle)) == (size, value, size)
    assert ctypes.string_at(handle.ptr(), min(size, 64)) == value[:64]


def test_what_is_not_there(store) -> None:
    room = Memory(64)
    assert store.get("nothing") == b""
    assert store.get_buffer("nothing") is None
    assert store.get_size("nothing") == NOT_FOUND
    assert store.is_exist("nothing") == 0
    assert store.get_into("nothing", room.address, 64) == NOT_FOUND
    assert store.remove("nothing") == NOT_FOUND
    assert store.get_replica_desc("nothing") == []
    assert store.batch_get_replica_desc(["nothing"]) == {}
    assert store.batch_is_exist(["nothing"]) == [0]


def test_the_first_write_wins(store) -> None:
    assert store.put("first", b"one") == 0
    assert store.put("first", b"another") == 0, "upstream reports success, too"
    assert store.get("first") == b"one"


def test_upsert_replaces_whatever_the_length(store) -> None:
    for value in (b"one", b"two", b"x" * 300_000, b"y"):
        assert store.upsert("changed", value) == 0
        assert store.get("changed") == value


def test_empty_keys_and_values_are_refused(store) -> None:
    assert store.put("", b"x") == INVALID
    assert store.put("empty", b"") == INVALID
    assert store.put_parts("none") == 0
    assert store.is_exist("none") == 0
    assert store.put_batch(["a", "b"], [b"x"]) == INVALID
    assert store.get_batch([]) == [b""]
    assert store.batch_remove([]) == []
    assert store.put("many", b"x", ReplicateConfig(replica_num=0)) == INVALID
    assert store.put("group", b"x", ReplicateConfig(group_ids=["a", "b"])) == INVALID


def test_a_wrong_type_is_an_exception_that_says_so(store) -> None:
    with pytest.raises(TypeError, match="buffer protocol"):
        store.put("key", 5)
    with pytest.raises(TypeError, match="must be a str"):
        store.put(5, b"x")
    with pytest.raises(TypeError, match="list of str"):
        store.batch_is_exist("key")


def test_parts_are_one_object(store) -> None:
    assert store.put_parts("parts", b"ab", memoryview(b"cde"), bytearray(b"f")) == 0
    assert store.get("parts") == b"abcdef"
    head, body = Memory(10, 1), Memory(1000, 2)
    assert store.put_from_with_metadata("meta", body.address, head.address, 1000, 10) == 0
    assert store.get("meta") == head.raw + body.raw


def test_memory_goes_in_and_out(store) -> None:
    size = 3 * MIB + 5
    source, target = Memory(size, 3), Memory(size + 100)
    assert store.register_buffer(source.address, size) == 0
    assert store.register_buffer(source.address, size) == INVALID
    assert store.put_from("memory", source.address, size) == 0
    assert store.get_into("memory", target.address, size - 1) == INVALID, "too small"
    assert target.raw == bytes(size + 100)
    assert store.get_into("memory", target.address, size + 100) == size
    assert target.raw == source.raw + bytes(100)
    assert store.unregister_buffer(source.address) == 0
    assert store.unregister_buffer(source.address) == INVALID
    assert store.unregister_buffer(target.address) == INVALID


def test_batches_of_many_sizes(store) -> None:
    sizes = [1, 100, 4096, 70_000, 262_144, 300_000, MIB, 3 * MIB]
    sources = [Memory(size, size) for size in sizes]
    targets = [Memory(size) for size in sizes]
    keys = [f"batch/{size}" for size in sizes]
    assert store.batch_put_from(keys, [m.address for m in sources], sizes) == [0] * len(keys)
    assert store.batch_put_from(keys[:2], [m.address for m in targets[:2]], sizes[:2]) == [0, 0], "there already"
    got = store.batch_get_into([*keys, "batch/none"], [*(m.address for m in targets), targets[0].address], [*sizes, 1])
    assert got == [*sizes, NOT_FOUND]
    assert [m.raw for m in targets] == [m.raw for m in sources]
    assert store.batch_is_exist([*keys, "batch/none"]) == [1] * len(keys) + [0]
    assert store.get_batch(keys) == [m.raw for m in sources]
    assert store.get_batch([keys[0], keys[0]]) == [sources[0].raw] * 2, "a key twice"
    handles = store.batch_get_buffer([keys[3], "batch/none"])
    assert bytes(handles[0]) == sources[3].raw
    assert handles[1] is None


def test_objects_are_gathered_from_and_scattered_to_many_buffers(store) -> None:
    """As engines do it: one object of many layers' pieces."""
    pieces = [[Memory(49_152 + i, 100 * k + i) for i in range(60)] for k in range(3)]
    into = [[Memory(len(m.raw)) for m in one] for one in pieces]
    keys = [f"layers/{k}" for k in range(3)]
    address, size = lambda ms: [[m.address for m in one] for one in ms], lambda ms: [[len(m.raw) for m in one] for one in ms]
    assert store.batch_put_from_multi_buffers(keys, address(pieces), size(pieces), ReplicateConfig()) == [0, 0, 0]
    total = sum(len(m.raw) for m in pieces[0])
    assert store.batch_get_into_multi_buffers(keys, address(into), size(into)) == [total] * 3
    assert [[m.raw for m in one] for one in into] == [[m.raw for m in one] for one in pieces]


def test_ranges_of_objects(store) -> None:
    value = random.Random(7).randbytes(MIB)
    assert store.put("ranged", value) == 0
    room = Memory(5000)
    got = store.get_into_ranges(
        [room.address], [["ranged", "missing"]], [[[0, 1000, 4000], [0]]], [[[0, 65_530, MIB - 10], [0]]], [[[7, 100, 10], [4]]]
    )
    assert got == [[[7, 100, 10], [NOT_FOUND]]]
    assert room.raw[:7] == value[:7]
    assert room.raw[1000:1100] == value[65_530:65_630]
    assert room.raw[4000:4010] == value[-10:]
    assert store.get_into_ranges([room.address], [["ranged"]], [[[0]]], [[[MIB - 1]]], [[[2]]]) == [[[INVALID]]], "past its end"


def test_sessions_move_an_object_layer_by_layer(store) -> None:
    layers = [Memory(10_000, i) for i in range(8)]
    keys = ["session/a", "session/b"]
    assert store.batch_put_session_start(keys, [80_000, 80_000]) == [0, 0]
    assert store.batch_is_exist(keys) == [0, 0], "not visible before its end"
    for i, layer in enumerate(layers):
        moved = store.batch_put_from_multi_buffer_ranges(keys, [[layer.address]] * 2, [[10_000]] * 2, [[i * 10_000]] * 2)
        assert moved == [10_000, 10_000]
    assert store.batch_put_session_end(keys[:1]) == [0]
    assert store.batch_put_session_revoke(keys[1:]) == [0]
    assert store.batch_is_exist(keys) == [1, 0]
    assert store.get("session/a") == b"".join(m.raw for m in layers)
    assert store.batch_get_session_start(keys) == [0, NOT_FOUND]
    room = Memory(20_000)
    got = store.batch_get_into_multi_buffer_ranges(
        keys[:1], [[room.address, room.address + 10_000]], [[10_000, 10_000]], [[30_000, 0]]
    )
    assert got == [20_000]
    assert room.raw == layers[3].raw + layers[0].raw
    assert store.batch_get_session_end(keys[:1]) == 0


def test_removing(store) -> None:
    for name in ("rm/a", "rm/b", "rm/c", "other"):
        assert store.put(name, b"value") == 0
    assert store.is_exist("rm/a") == 1  # and has a lease now
    assert store.remove("rm/a") == HAS_LEASE
    assert store.remove("rm/a", force=True) == 0
    assert store.is_exist("rm/a") == 0
    assert store.put("rm/a", b"again") == 0
    assert store.get("rm/a") == b"again"
    time.sleep(0.3)  # leases of 200 ms
    assert store.remove_by_regex("^rm/[bc]$") == 2
    assert store.remove_by_regex("(") == INVALID
    assert store.batch_remove(["rm/a", "rm/b"], force=True) == [0, NOT_FOUND]
    assert store.remove_all(force=True) == 1
    assert store.get("other") == b""


def test_a_full_pool_makes_room_and_says_when_it_cannot(pool: Pool, tmp_path: Path) -> None:
    small = Pool(tmp_path, "--default_kv_lease_ttl=50")
    try:
        small.node("32 MB")
        store = connect(small)
        value = random.Random(1).randbytes(MIB)
        assert [store.put(f"fill/{i}", value) for i in range(100)] == [0] * 100, "evicted inline"
        there = store.batch_is_exist([f"fill/{i}" for i in range(100)])
        assert 20 <= sum(there) <= 32
        assert there[99] == 1
        assert store.put("too big", bytes(64 * MIB)) == NO_SPACE
        time.sleep(0.1)
        pinned = ReplicateConfig(with_hard_pin=True)
        codes = [store.put(f"pin/{i}", value, pinned) for i in range(40)]
        assert set(codes) == {0, NO_SPACE}
        assert all(store.get(f"pin/{i}") == value for i in range(40) if codes[i] == 0)
        store.close()
    finally:
        small.close()


def test_a_process_that_gives_memory_serves_it(pool: Pool, store) -> None:
    owner = connect(pool, 32 * MIB)
    only_there = ReplicateConfig(preferred_segment=owner.get_hostname())
    value = random.Random(9).randbytes(MIB)
    assert store.put("theirs", value, only_there) == 0
    (where,) = store.get_replica_desc("theirs")
    assert where.is_memory_replica()
    assert where.get_memory_descriptor().buffer_descriptor.transport_endpoint == owner.get_hostname()
    assert owner.get("theirs") == store.get("theirs") == value
    assert store.put("twice", value, ReplicateConfig(replica_num=2)) == 0
    assert len(store.get_replica_desc("twice")) == 2
    owner.close()
    assert store.get("theirs") == b"", "it left with its memory"
    assert store.get("twice") == value, "the other replica"


def test_tenants_do_not_meet(pool: Pool, store) -> None:
    other = connect(pool, tenant_id="other")
    assert store.put("shared name", b"mine") == 0
    assert other.is_exist("shared name") == 0
    assert other.put("shared name", b"theirs") == 0
    assert (store.get("shared name"), other.get("shared name")) == (b"mine", b"theirs")
    assert other.remove_all(force=True) == 1
    assert store.get("shared name") == b"mine"
    other.close()


def test_many_threads_and_processes_read_only_what_was_written(pool: Pool) -> None:
    """Values carry their key and a checksum; 8 threads of 4 clients write, replace, remove and read the same keys."""
    clients = [connect(pool) for _ in range(4)]
    wrong: list[str] = []
    done = [0] * 8

    def value_of(key: str, rng: random.Random) -> bytes:
        body = key.encode() + rng.randbytes(rng.choice([10, 5_000, 70_000, 400_000]))
        return zlib.crc32(body).to_bytes(4, "little") + body

    def work(number: int) -> None:
        store, rng = clients[number % 4], random.Random(number)
        for _ in range(150):
            key = f"race/{rng.randrange(12)}"
            what = rng.random()
            if what < 0.3:
                code = store.put(key, value_of(key, rng))
            elif what < 0.5:
                code = store.upsert(key, value_of(key, rng))
            elif what < 0.6:
                code = store.remove(key, force=True)
            else:
                got, code = store.get(key), 0
                if got and (zlib.crc32(got[4:]) != int.from_bytes(got[:4], "little") or not got[4:].startswith(key.encode())):
                    wrong.append(f"{key}: {len(got)} bytes")
            if code not in (0, NOT_FOUND):
                wrong.append(f"{key}: code {code}")
            done[number] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert done == [150] * 8
    assert not wrong
    for one in clients:
        one.remove_all(force=True)
        one.close()


def test_closing_and_what_comes_after(pool: Pool) -> None:
    store = connect(pool)
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", pool.address) == 0, "again is no error"
    assert store.health_check() == 0
    assert store.close() == 0
    assert store.close() == 0
    assert store.health_check() == 1
    assert store.put("key", b"x") == -1
    assert store.get("key") == b""
    assert store.batch_is_exist(["a", "b"]) == [-1, -1]
    assert store.get_replica_desc("a") == []
    assert store.remove_all() == -1


def test_setup_without_a_master_fails_soon_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    start = time.monotonic()
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", "127.0.0.1:9") != 0
    assert time.monotonic() - start < 15, "upstream takes 90 s"
    assert "127.0.0.1:9" in caplog.text


def test_setup_with_a_dict_in_either_spelling(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    for spelling in ("master_server_addr", "master_server_address"):
        store = MooncakeDistributedStore()
        config = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": "16MB",
                  "local_buffer_size": "1 mb", "protocol": "tcp", "device_name": "", spelling: pool.address}  # fmt: skip
        assert store.setup(config) == 0
        assert store.put("dict", b"x") == 0
        store.close()
    assert MooncakeDistributedStore().setup({"local_hostname": "127.0.0.1"}) == INVALID
    assert MooncakeDistributedStore().setup(config | {"global_segment_size": "50%"}) == INVALID
    assert "metadata_server" in caplog.text


def test_the_masters_pages_know_the_objects(pool: Pool, store) -> None:
    assert store.put("page/one", b"x" * 1000) == 0
    assert "page/one" in pool.get("/get_all_keys").split()
    found = json.loads(pool.get("/query_key?key=page/one"))
    assert found["success"] is True
    assert pool.get("/query_key?key=none") is None, "404"
    assert "master_key_count 1" in pool.get("/metrics")


def test_a_master_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    try:
        pool.node("64 MB")
        store = connect(pool)
        values = {f"kept/{i}": random.Random(i).randbytes(1000 * (i + 1)) for i in range(50)}
        for key, value in values.items():
            assert store.put(key, value) == 0
        assert store.remove("kept/0", force=True) == 0
        del values["kept/0"]
        pool.master.kill()
        pool.master.start()
        assert {key: store.get(key) for key in values} == values, pool.master.tail()
        assert store.get("kept/0") == b"", "what was removed does not come back"
        assert store.put("after", b"x") == 0
        assert store.get("after") == b"x"
        store.close()
    finally:
        pool.close()


def test_a_node_that_is_killed_costs_its_objects_and_no_more(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "--client_ttl=2")
    try:
        first, second = pool.node("64 MB"), pool.node("64 MB")
        store = connect(pool)
        values = {f"two/{i}": random.Random(i).randbytes(100_000) for i in range(40)}
        for key, value in values.items():
            assert store.put(key, value) == 0
        first.kill()
        read = {key: store.get(key) for key in values}
        assert all(got in (b"", values[key]) for key, got in read.items())
        assert 0 < sum(bool(got) for got in read.values()) < 40, "both nodes had some"
        assert [store.put(f"later/{i}", b"x" * 50_000) for i in range(20)] == [0] * 20, "puts go elsewhere"
        assert second.process.poll() is None
        store.close()
    finally:
        pool.close()
