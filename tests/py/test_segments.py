"""Segments that are mounted and unmounted at run time: seen at once, never read wrongly, gone with their objects."""

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool import MIB, Pool, connect

from mooncake.store import MooncakeDistributedStore, ReplicateConfig


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A master, and no memory at first."""
    pool = Pool(tmp_path, "--default_kv_lease_ttl=200", "--client_ttl=2")
    yield pool
    pool.close()


@pytest.fixture
def file() -> Iterator[Path]:
    path = Path(f"/dev/shm/mooncake-test-{os.getpid()}")
    with path.open("wb") as empty:
        empty.truncate(48 * MIB)
    yield path
    path.unlink()


def details(pool: Pool) -> list[tuple[str, int]]:
    return sorted((one["state"], one["capacity"]) for one in pool.json("/get_segments_detail"))


def value(number: int, size: int = 300_000) -> bytes:
    return random.Random(number).randbytes(size)


def test_memory_comes_and_goes(pool: Pool) -> None:
    store, other = connect(pool), connect(pool)
    try:
        assert store.put("early", b"x") < 0, "nobody has memory yet"
        first = store.allocate_and_mount_segment(16 * MIB)
        assert (first["ret"], first["allocated_size"], len(first["segment_ids"])) == (0, 16 * MIB, 1)
        assert pool.segments() == [store.get_hostname()]
        for n in range(20):
            assert other.put(f"k{n}", value(n)) == 0
        second = store.allocate_and_mount_segment(16 * MIB + 1)
        assert second["allocated_size"] == 32 * MIB
        assert details(pool) == [("ok", 16 * MIB), ("ok", 32 * MIB)]
        assert pool.segments() == [store.get_hostname()] * 2, "segments of one process share its name"
        time.sleep(1.2)  # a client's view of the owners is a second old at most
        assert other.put("both", value(99), ReplicateConfig(replica_num=2)) == 0
        assert len(other.get_replica_desc("both")) == 2

        assert store.unmount_and_free_segment(first["segment_ids"]) == 0
        assert details(pool) == [("ok", 32 * MIB)]
        for reader in (store, other):
            assert reader.get_batch([f"k{n}" for n in range(20)]) == [b""] * 20
            assert reader.get("both") == value(99), "its other replica is there"
        assert other.put("k0", value(1000)) == 0, "the key is free"
        assert other.get("k0") == value(1000)
        assert store.unmount_and_free_segment(second["segment_ids"]) == 0
        assert pool.segments() == []
    finally:
        store.close()
        other.close()


def test_a_file_is_mapped_in_parts(pool: Pool, file: Path) -> None:
    store, other = connect(pool), connect(pool)
    file.write_bytes(b"\xa5" * 48 * MIB)
    try:
        one = store.mount_segment(str(file), 16 * MIB)
        two = store.mount_segment(str(file), 16 * MIB, 16 * MIB)
        assert (one["ret"], two["ret"]) == (0, 0)
        assert file.read_bytes()[32 * MIB :] == b"\xa5" * 16 * MIB, "only the range is taken"
        for n in range(40):
            assert other.put(f"f{n}", value(n)) == 0
        for n in range(40):
            assert other.get(f"f{n}") == value(n)
            assert store.get(f"f{n}") == value(n)
        bytes_of = file.read_bytes()
        assert value(3)[:4096] in bytes_of, "they lie in the file"
        assert store.unmount_segment(one["segment_ids"] + two["segment_ids"]) == 0
        assert [other.get(f"f{n}") for n in range(40)] == [b""] * 40
        again = store.mount_segment(str(file), 32 * MIB)
        assert [other.get(f"f{n}") for n in range(40)] == [b""] * 40, "nothing comes back from what lay there"
        assert store.unmount_segment(again["segment_ids"]) == 0
    finally:
        store.close()
        other.close()


def test_what_cannot_be_mounted_is_named(pool: Pool, file: Path, caplog) -> None:
    none = {"ret": -1, "segment_ids": []}
    unset = MooncakeDistributedStore()
    assert unset.allocate_and_mount_segment(MIB) == none | {"allocated_size": 0}
    assert unset.mount_segment(str(file), MIB) == none
    assert unset.unmount_segment(["1-2"]) == -1
    store = connect(pool)
    try:
        for said, arguments in [
            ("/dev/shm/mooncake-none", ("/dev/shm/mooncake-none", MIB)), ("not in this file", (str(file), 64 * MIB)),
            ("multiple of a page", (str(file), MIB, 4097)), ("not in this file", (str(file), MIB, 48 * MIB)),
            ("not in this file", ("/dev/zero", MIB)), ("1048576 at least", (str(file), 4096)), ("not negative", (str(file), -1)),
            ("not negative", (str(file), MIB, -4096)),
        ]:  # fmt: skip
            caplog.clear()
            assert store.mount_segment(*arguments) == none
            assert said in caplog.text, arguments
        assert store.mount_segment(str(file), 0) == {"ret": 0, "segment_ids": []}
        assert store.allocate_and_mount_segment(0) == none | {"allocated_size": 0}
        caplog.clear()
        assert store.allocate_and_mount_segment(MIB, "tcp", "cuda:0")["ret"] == -600
        assert "not supported: location 'cuda:0'" in caplog.text
        mine = store.allocate_and_mount_segment(MIB)["segment_ids"]
        caplog.clear()
        for wrong in (mine, ["7-8"], ["zz"], ["1-" + "9" * 20]):
            assert store.unmount_segment(wrong) == -1, "allocated ones have their own call"
            assert repr(wrong[0]) in caplog.text
        with pytest.raises(TypeError, match="list of str"):
            store.unmount_segment("7-8")
        assert store.unmount_segment([]) == 0
        assert store.unmount_and_free_segment(mine, -1) == -1
        assert store.unmount_and_free_segment(mine) == 0
        assert store.unmount_and_free_segment(mine) == -1, "once only"
        assert store.unmount_local_disk_segment(5) == 0
        assert store.get_offload_rpc_read_count() == 0
        assert pool.segments() == []
    finally:
        store.close()


def test_the_grace_period_reads_and_takes_nothing_new(pool: Pool) -> None:
    store, other = connect(pool), connect(pool)
    try:
        ids = store.allocate_and_mount_segment(16 * MIB)["segment_ids"]
        assert other.put("old", value(1)) == 0
        begin = time.monotonic()
        assert store.unmount_and_free_segment(ids, 3) == 0
        assert time.monotonic() - begin < 1, "it does not wait"
        assert store.unmount_and_free_segment(ids, 3) == -1, "it is leaving already"
        pool.wait(lambda: details(pool) == [("unmounting", 16 * MIB)], "the master does not know of it")
        assert other.get("old") == value(1)
        assert other.put("new", value(2)) < 0, "there is no other memory"
        more = store.allocate_and_mount_segment(16 * MIB)["segment_ids"]
        for n in range(8):
            assert other.put(f"new{n}", value(n)) == 0
        pool.wait(lambda: details(pool) == [("ok", 16 * MIB)], "it does not leave")
        assert 2.5 < time.monotonic() - begin < 20
        assert other.get("old") == b""
        assert [other.get(f"new{n}") for n in range(8)] == [value(n) for n in range(8)]
        assert store.unmount_and_free_segment(more, 3600) == 0
    finally:
        begin = time.monotonic()
        store.close()
        other.close()
    assert time.monotonic() - begin < 5, "close() does not wait for a grace period"
    assert pool.segments() == []


def test_no_read_is_wrong_while_segments_come_and_go(pool: Pool, file: Path) -> None:
    """Readers and writers beside a process that mounts and unmounts all the time; each value says what it is."""
    store, wrong, over = connect(pool, 16 * MIB), [], threading.Event()
    counts = {"read": 0, "missed": 0, "put": 0, "refused": 0}

    def filled(key: str, turn: int) -> bytes:
        return f"{key}:{turn}:".encode().ljust(64, b".") * 3000

    def write(number: int) -> None:
        client, turn = connect(pool), 0
        while not over.is_set():
            turn += 1
            key = f"key{number}-{turn % 10}"
            code = client.upsert(key, filled(key, turn))
            counts["put" if code == 0 else "refused"] += 1
        client.close()

    def read(number: int) -> None:
        client, rand = connect(pool), random.Random(number)
        while not over.is_set():
            key = f"key{rand.randrange(2)}-{rand.randrange(10)}"
            got = client.get(key)
            if got and (not got.startswith(f"{key}:".encode()) or got != got[:64] * 3000):
                wrong.append((key, got[:64]))
            counts["read" if got else "missed"] += 1
        client.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2) for work in (write, read)]
    for one in threads:
        one.start()
    try:
        for turn in range(12):
            if turn % 2:
                ids = store.allocate_and_mount_segment(16 * MIB)["segment_ids"]
                time.sleep(0.3)
                assert store.unmount_and_free_segment(ids, turn % 3) == 0
            else:
                ids = store.mount_segment(str(file), 32 * MIB)["segment_ids"]
                assert ids
                time.sleep(0.3)
                assert store.unmount_segment(ids) == 0
    finally:
        over.set()
        for one in threads:
            one.join(60)
        store.close()
    assert not wrong
    assert counts["read"] > 50 and counts["put"] > 20, counts


def test_a_killed_process_takes_its_segments_along(pool: Pool, file: Path) -> None:
    pool.node("16 MB")
    program = textwrap.dedent(f"""
        import time
        from mooncake.store import MooncakeDistributedStore
        store = MooncakeDistributedStore()
        assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", "{pool.address}") == 0
        assert store.mount_segment("{file}", 32 << 20)["ret"] == 0
        assert store.allocate_and_mount_segment(64 << 20)["ret"] == 0
        print("ready", flush=True)
        time.sleep(100)
    """)
    other = connect(pool)
    process = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        assert len(pool.segments()) == 3
        for n in range(60):
            assert other.put(f"k{n}", value(n)) == 0
        process.kill()
        process.wait(30)
        got = [other.get(f"k{n}") for n in range(60)]
        assert all(one in (b"", value(n)) for n, one in enumerate(got))
        assert b"" in got
        pool.wait(lambda: len(pool.segments()) == 1, "segments of a dead process stay")
        assert other.put("after", value(7)) == 0 and other.get("after") == value(7)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
        other.close()
