"""BufferPool against a real store: upstream's names, results and errors, memory that is used again, and nothing that leaks."""

import ctypes
import gc
import inspect
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool import MIB, Pool, connect
from test_dropin_names import documented_arguments

from mooncake.buffer_pool import BufferPool
from mooncake.store import BufferLeaseView, MooncakeDistributedStore, RegisteredBufferPool


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeDistributedStore]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    pool.node("64 MB")
    store = connect(pool)
    yield store
    store.close()
    pool.close()


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_arguments_are_upstreams(upstream_python: str) -> None:
    program = """
import json, mooncake.store as m
print(json.dumps({n: getattr(m.BufferPool, n).__doc__ for n in ("__init__", "acquire", "buffer", "prewarm", "close")}))"""
    out = subprocess.run([upstream_python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    for name, doc in json.loads(out.splitlines()[-1]).items():
        theirs = [argument for argument in documented_arguments(doc) if argument[0] != "self"]
        mine = [p for p in inspect.signature(getattr(BufferPool, name)).parameters.values() if p.name != "self"]
        assert [(p.name, None if p.default is p.empty else repr(p.default)) for p in mine] == theirs, name
    assert RegisteredBufferPool is BufferPool


def test_a_lease_is_registered_memory(store) -> None:
    pool = BufferPool(store)
    assert store.put("leased", b"x" * 100_000) == 0
    with pool.buffer(100_000) as lease:
        assert (lease.size, lease.ptr % (8 * MIB)) == (100_000, 0)
        assert store.register_buffer(lease.ptr, 100_000) == -600, "it is registered"
        assert store.get_into("leased", lease.ptr, lease.size) == 100_000
        view = lease.buffer
        assert (type(view), view.nbytes, view.format, view.readonly) == (memoryview, 100_000, "B", False)
        assert bytes(view) == b"x" * 100_000
        view[:3] = b"abc"
        assert ctypes.string_at(lease.ptr, 4) == b"abcx"
        assert isinstance(view.obj, BufferLeaseView)
        del view
        assert store.put_from("again", lease.ptr, 10) == 0
    assert store.get("again") == b"abcxxxxxxx"
    assert pool.acquire(0).size == 0
    gc.collect()
    pool.close()


def test_released_memory_is_used_again(store) -> None:
    pool = BufferPool(store, alignment=4096, max_bytes=4 * MIB)
    seen = set()
    for _ in range(50):
        with pool.acquire(300_000) as lease:
            seen.add(lease.ptr)
    assert len(seen) == 1
    small = [pool.acquire(65536) for _ in range(48)]
    for one in small:
        one.release()
    with pool.acquire(3 * MIB) as large:
        assert large.size == 3 * MIB, "idle ones of another size made room"
    pool.close()


def test_what_does_not_fit_is_said_as_upstream_says_it(store) -> None:
    pool = BufferPool(store, max_bytes=16 * MIB, block_on_exhaustion=False, alignment=4096)
    leases = [pool.acquire(4 * MIB) for _ in range(4)]
    for arguments, said in [
        ({"size": 64 * MIB}, "exceeds pool capacity"), ({"size": 10}, "is exhausted"),
        ({"size": 10, "block": True, "timeout": 0.1}, "timed out waiting"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=said):
            pool.acquire(**arguments)
    with pytest.raises(RuntimeError, match="active leases"):
        pool.close()
    leases.pop().release()
    assert pool.acquire(10).size == 10
    for one in leases:
        one.release()
    gc.collect()
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="pool is closed"):
        pool.acquire(1)
    single = BufferPool(store, max_regions=1, block_on_exhaustion=False)
    held = single.acquire(10)
    with pytest.raises(RuntimeError, match="is exhausted"):
        single.acquire(10)
    held.release()
    assert single.acquire(9 * MIB).size == 9 * MIB


def test_views_keep_a_lease(store) -> None:
    pool = BufferPool(store)
    lease = pool.acquire(1000)
    view = lease.buffer
    with pytest.raises(RuntimeError, match="exported views"):
        lease.release()
    view.release()
    lease.release()
    lease.release()
    assert lease.size == 1000
    with pytest.raises(RuntimeError, match="lease is closed"):
        _ = lease.ptr
    with pytest.raises(BufferError):
        _ = lease.buffer
    with pytest.raises(RuntimeError, match="exported views"), pool.acquire(10) as other:
        kept = other.buffer
    kept[0] = 7  # still memory
    with pytest.raises(RuntimeError, match="active leases"):
        pool.close()
    del kept, other
    gc.collect()
    pool.close()


def test_forgotten_leases_come_back(store) -> None:
    pool = BufferPool(store, max_bytes=65536, block_on_exhaustion=False)
    for _ in range(20):
        pool.acquire(100)
    view = pool.acquire(100).buffer
    view[:] = b"v" * 100
    with pytest.raises(RuntimeError, match="is exhausted"):
        pool.acquire(100)
    assert bytes(view) == b"v" * 100
    del view
    pool.acquire(100).release()
    pool.close()


def test_wrong_arguments_are_refused(store) -> None:
    for options, said in [
        ({"min_size_class": 0}, "must be positive"), ({"alignment": 0}, "must be positive"), ({"alignment": 3}, "power of two"),
        ({"alignment": 4}, "power of two"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=said):
            BufferPool(store, **options)
    with pytest.raises(TypeError, match="max_bytes"):
        BufferPool(store, max_bytes=-1)
    with pytest.raises(TypeError, match="size"):
        BufferPool(store).acquire(-1)
    for unset in (None, MooncakeDistributedStore()):
        with pytest.raises(RuntimeError, match="not initialized"):
            BufferPool(unset)


def test_a_waiting_thread_gets_what_another_releases(store) -> None:
    pool = BufferPool(store, max_bytes=65536)
    first, got = pool.acquire(10), []
    thread = threading.Thread(target=lambda: got.append(pool.acquire(20)))
    thread.start()
    time.sleep(0.2)
    assert not got
    first.release()
    thread.join(10)
    assert got[0].size == 20
    got.pop().release()
    pool.close()


def test_many_threads_share_a_bounded_pool(store) -> None:
    pool, wrong = BufferPool(store, max_bytes=8 * 65536, alignment=4096), []

    def work(number: int) -> None:
        for turn in range(200):
            with pool.acquire(1000 + turn) as lease:
                lease.buffer[:4] = number.to_bytes(4, "little")
                time.sleep(0)
                if ctypes.string_at(lease.ptr, 4) != number.to_bytes(4, "little"):
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
    pool.close()


def test_nothing_is_left_of_pools(store) -> None:
    def round_trip() -> None:
        pool = BufferPool(store, prewarm_size=200_000, prewarm_count=3, alignment=4096)
        with pool.acquire(200_000), pool.acquire(5_000_000):
            pass
        pool.prewarm(70_000, 2)

    round_trip()
    gc.collect()
    before = mappings()
    for _ in range(20):
        round_trip()
    gc.collect()
    assert mappings() <= before + 3
