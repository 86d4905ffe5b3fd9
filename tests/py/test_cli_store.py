"""The `mooncake` command's part about the Store, against a real master and node."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool import Pool

COMMAND = Path(sys.executable).parent / "mooncake"
NOBODY = "127.0.0.1:1"  # no master there
MIB = 1 << 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A master and one node of 64 MiB that every test of this file shares; each has keys of its own."""
    one = Pool(tmp_path_factory.mktemp("pool"))
    try:
        one.node("64 MB")
        yield one
    finally:
        one.close()


def run(pool: Pool, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = words[0]
    at = ["--admin", f"127.0.0.1:{pool.http}"] if command in ("ls", "status", "segments") else ["--master", pool.address]
    return subprocess.run(
        [COMMAND, *words, *at], capture_output=True, input=data, timeout=60, check=False,
        env=os.environ | {"MC_TCP_BIND_ADDRESS": "127.0.0.1", "COLUMNS": "200"},
    )  # fmt: skip


def done(pool: Pool, *words: str, data: bytes | None = None) -> bytes:
    it = run(pool, *words, data=data)
    assert it.returncode == 0, it.stderr.decode()
    return it.stdout


def test_ls_names_the_keys_in_order(pool: Pool) -> None:
    assert done(pool, "ls", "nothing-has-this") == b""
    assert json.loads(done(pool, "ls", "nothing-has-this", "--json")) == []
    for key in ("ls/b", "ls/a", "ls/a 1", "other"):
        done(pool, "put", key, "-", data=b"x")
    assert done(pool, "ls", "ls/").decode() == "ls/a\nls/a 1\nls/b\n"
    assert json.loads(done(pool, "ls", "ls/", "--json")) == ["ls/a", "ls/a 1", "ls/b"]


def test_status_counts_what_is_there(pool: Pool) -> None:
    before = json.loads(done(pool, "status", "--json"))
    assert before["status"] == "ok" and before["segments"] == 1
    assert before["capacity_bytes"] == 64 * MIB
    done(pool, "put", "status/1", "-", data=bytes(3 * MIB))

    def is_told() -> bool:  # an owner says what it has in use a little later
        after = json.loads(done(pool, "status", "--json"))
        return after["keys"] == before["keys"] + 1 and after["used_bytes"] >= before["used_bytes"] + 3 * MIB

    pool.wait(is_told, "the object is not counted")
    text = done(pool, "status").decode()
    assert f"master at 127.0.0.1:{pool.http}: ok," in text and "of 64.0 MiB" in text and "in 1 segments" in text


def test_segments_shows_who_gives_memory(pool: Pool) -> None:
    (name,) = pool.segments()
    (one,) = json.loads(done(pool, "segments", "--json"))
    assert one["name"] == name and one["state"] == "ok" and one["capacity"] == 64 * MIB
    text = done(pool, "segments").decode()
    assert name in text and str(64 * MIB) in text


def test_segments_without_a_node_says_how_to_get_one(tmp_path: Path) -> None:
    empty = Pool(tmp_path)
    try:
        assert b"mooncake serve node" in done(empty, "segments")
        assert json.loads(done(empty, "segments", "--json")) == []
        assert json.loads(done(empty, "status", "--json"))["segments"] == 0
    finally:
        empty.close()


def test_put_get_stat_rm_are_one_objects_life(pool: Pool, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "in").write_bytes(data)
    done(pool, "put", "life", str(tmp_path / "in"))
    assert done(pool, "get", "life") == data
    done(pool, "get", "life", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    told = json.loads(done(pool, "stat", "life", "--json"))
    assert told["bytes"] == len(data)
    assert told["replicas"] == [{"kind": "memory", "segment": pool.segments()[0]}]
    twice = run(pool, "put", "life", "-", data=b"new")
    assert twice.returncode == 1 and b"--replace" in twice.stderr
    done(pool, "put", "life", "-", "--replace", data=b"new")
    assert done(pool, "get", "life") == b"new"
    held = run(pool, "rm", "life")
    assert held.returncode == 1 and b"--force" in held.stderr
    done(pool, "rm", "life", "--force")
    for words in (["get", "life"], ["stat", "life"], ["rm", "life"]):
        gone = run(pool, *words)
        assert gone.returncode == 1 and b"no such object" in gone.stderr, words


def test_a_master_that_is_not_there_is_named(pool: Pool) -> None:
    for words in (["ls"], ["status"], ["segments"], ["top", "--once"]):
        it = subprocess.run([COMMAND, *words, "--admin", NOBODY], capture_output=True, timeout=60, check=False)
        assert it.returncode == 3 and NOBODY.encode() in it.stderr, words


def test_stat_says_why_an_object_is_not_there(pool: Pool) -> None:
    done(pool, "put", "why", "-", data=b"x")
    done(pool, "rm", "why", "--force")
    at = ["--admin", f"127.0.0.1:{pool.http}"]
    gone = run(pool, "stat", "why", *at)
    assert gone.returncode == 1 and b"why: no such object: removed" in gone.stderr and b"s ago" in gone.stderr
    told = run(pool, "stat", "why-never", "--json", *at)
    assert told.returncode == 1
    assert json.loads(told.stdout)["why"]["state"] == "never_seen"
    assert b"never put, or gone for more than" in told.stderr
    silent = run(pool, "stat", "why", "--admin", NOBODY)
    assert silent.returncode == 1 and b"no such object: the master does not say why" in silent.stderr


def bench(pool: Pool, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [COMMAND, "bench", "store", "--master", pool.address, *words]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=os.environ | {"MC_TCP_BIND_ADDRESS": "127.0.0.1", "COLUMNS": "200"})


def test_bench_store_counts_what_it_did(pool: Pool) -> None:
    it = bench(pool, "--size", "8KB", "--keys", "40", "--batch", "16", "--seconds", "0.3", "--rounds", "2", "--json")
    assert it.returncode == 0, it.stderr.decode()
    told = json.loads(it.stdout)
    put, get, exist, remove = told["phases"]
    assert told["bytes"] == 8192 and put["objects"] == remove["objects"] == 80 and put["calls"] == 6
    assert get["objects"] >= 16 and exist["objects"] >= 16
    for one in told["phases"]:
        assert one["misses"] == one["errors"] == 0 and 0 < one["p50_seconds"] <= one["p99_seconds"]
    assert get["bytes_per_second"] > 0
    assert done(pool, "ls", "bench/") == b""  # it leaves nothing
    text = bench(pool, "--size", "4096", "--keys", "4", "--seconds", "0.1").stdout.decode()
    assert all(word in text for word in ("put", "get", "exist", "remove", "objects/s"))


def test_bench_store_says_what_is_wrong(pool: Pool) -> None:
    wrong = bench(pool, "--size", "many")
    assert wrong.returncode == 2 and b"'many' is no size" in wrong.stderr
    big = bench(pool, "--size", "100MB", "--keys", "1", "--batch", "1", "--seconds", "0.1")
    assert big.returncode == 1 and b"some calls failed" in big.stderr  # the pool has 64 MiB


def test_top_shows_rates_between_two_looks(pool: Pool) -> None:
    at, state = ["--admin", f"127.0.0.1:{pool.http}"], {}
    with subprocess.Popen(
        [COMMAND, "bench", "store", "--master", pool.address, "--size", "4KB", "--keys", "32", "--seconds", "0.1", "--rounds", "10000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"MC_TCP_BIND_ADDRESS": "127.0.0.1"},
    ) as load:  # fmt: skip
        try:

            def is_busy() -> bool:
                state.update(json.loads(done_at("top", "--once", "--json", "--every", "0.5", *at)))
                return state["per_second"]["puts"] > 0 and "commit" in state["rpcs"]

            pool.wait(is_busy, "nothing is put")
            text = done_at("top", "--once", "--every", "0.5", *at).decode()
        finally:
            load.terminate()
    assert state["rpcs"]["commit"]["p50_seconds"] > 0 and state["capacity_bytes"] == 64 * MIB and state["nodes"][0]["state"] == "ok"
    (segment,) = pool.segments()
    assert segment in text and "looked up/s" in text and "epoch" in text


def done_at(*words: str) -> bytes:
    it = subprocess.run([COMMAND, *words], capture_output=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "200"})
    assert it.returncode == 0, it.stderr.decode()
    return it.stdout


def test_help_of_every_store_command_says_its_exit_status() -> None:
    for words in (["status"], ["segments"], ["ls"], ["stat"], ["get"], ["put"], ["rm"], ["top"], ["bench", "store"]):
        text = done_at(*words, "--help").decode()
        assert "Exit status: 0 done, 1 not done" in text, words


def test_top_goes_on_until_it_is_interrupted(pool: Pool) -> None:
    """On a terminal, as people see it."""
    master, slave = pty.openpty()
    command = [COMMAND, "top", "--every", "0.2", "--admin", f"127.0.0.1:{pool.http}"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "200"}) as it:
        os.close(slave)
        seen, end = b"", time.monotonic() + 30
        while seen.count(b"looked up/s") < 3 and time.monotonic() < end:
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 1 << 16)
        it.send_signal(signal.SIGINT)
        threading.Thread(target=_drain, args=(master,), daemon=True).start()  # it writes its last lines
        assert it.wait(30) == 0
    assert seen.count(b"looked up/s") >= 3 and pool.segments()[0].encode() in seen


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # EIO: nobody writes any more
        while os.read(terminal, 1 << 16):
            pass
    os.close(terminal)
