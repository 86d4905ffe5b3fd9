"""A disk behind the memory that a client's own process gives to the pool."""

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pool import Pool
from test_store import MIB, connect

from mooncake.store import MooncakeDistributedStore

COUNT, SIZE = 100, 400_000
# Gives 16 MB and the disk to the pool, puts objects if it is told so, says "ready", and stays until its stdin ends.
OWNER = textwrap.dedent("""
    import logging, random, sys
    from mooncake.store import MooncakeDistributedStore
    logging.basicConfig()
    master, path, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    store = MooncakeDistributedStore()
    code = store.setup("127.0.0.1", "P2PHANDSHAKE", 16 << 20, 16 << 20, "tcp", "", master, enable_ssd_offload=True, ssd_offload_path=path)
    if code:
        sys.exit(f"setup: {code}")
    for i in range(count):
        code = store.put(f"k{i}", random.Random(f"k{i}").randbytes(size))
        assert code == 0, (i, code)
    print("ready", flush=True)
    sys.stdin.read()
    store.close()
""")


def start(pool: Pool, path: Path | str, count: int = 0, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", OWNER, pool.address, str(path), str(count), str(SIZE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env,
    )  # fmt: skip


def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout.readline() == "ready\n", process.communicate(timeout=30)[1]
    return process


def on_disk(pool: Pool) -> int:
    lines = (pool.get("/metrics") or "").splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("file_cache_nums_ "))))


def check_all(store: MooncakeDistributedStore) -> None:
    for i in range(COUNT):
        assert store.get(f"k{i}") == random.Random(f"k{i}").randbytes(SIZE), i


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    one = Pool(tmp_path, "--default_kv_lease_ttl=100", "--client_ttl=1500ms")
    yield one
    one.close()


def test_more_than_its_memory_is_served_and_comes_back(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with start(pool, path, COUNT) as first, closing(connect(pool)) as reader:
        ready(first)
        check_all(reader)
        pool.wait(lambda: on_disk(pool) == COUNT, "not all is on the disk")
        first.kill()
        first.wait(30)
        with start(pool, path) as second:
            ready(second)
            check_all(reader)
            assert second.communicate(timeout=60)[1] == "" and second.returncode == 0
        end = time.monotonic() + 10
        while any(reader.is_exist(f"k{i}") == 1 for i in range(COUNT)):
            assert time.monotonic() < end
        with start(pool, "", MOONCAKE_OFFLOAD_FILE_STORAGE_PATH=str(path)) as third:
            ready(third)
            check_all(reader)
            third.communicate(timeout=60)


def test_a_closed_client_leaves_what_it_just_had_on_its_disk(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with start(pool, path, 10) as first:
        ready(first).communicate(timeout=60)
    with start(pool, path) as second, closing(connect(pool)) as reader:
        ready(second)
        for i in range(10):
            assert reader.get(f"k{i}") == random.Random(f"k{i}").randbytes(SIZE), i
        second.communicate(timeout=60)


def test_the_process_reads_its_own_disk(pool: Pool, tmp_path: Path) -> None:
    one = MooncakeDistributedStore()
    assert one.setup(
        "127.0.0.1", "P2PHANDSHAKE", 16 * MIB, 16 * MIB, "tcp", "", pool.address, enable_ssd_offload=True, ssd_offload_path=str(tmp_path / "disk")
    ) == 0  # fmt: skip
    with closing(one):
        for i in range(COUNT):
            assert one.put(f"k{i}", random.Random(f"k{i}").randbytes(SIZE)) == 0
        check_all(one)
        assert one.get_offload_rpc_read_count() > COUNT / 4


def test_one_process_has_a_directory_at_a_time(pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk"
    good = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": "16MB", "local_buffer_size": "1MB",
            "master_server_addr": pool.address, "enable_ssd_offload": "true", "ssd_offload_path": str(path)}  # fmt: skip
    with start(pool, path) as first:
        ready(first)
        store = MooncakeDistributedStore()
        assert store.setup(good) == -600
        assert f"{path} is in use by pid {first.pid}" in caplog.text
        first.communicate(timeout=60)
    caplog.clear()
    assert store.setup(good | {"global_segment_size": 0}) == -600
    assert "global_segment_size" in caplog.text
    caplog.clear()
    assert store.setup(good | {"ssd_offload_path": "/proc/none"}) == -600
    assert "/proc/none" in caplog.text
    assert store.setup(good) == 0
    store.close()
