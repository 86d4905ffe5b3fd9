"""Dummy clients: setup_dummy() beside a real node, its death and theirs, and what is sent to its socket by mistake."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool import Pool, Process

from mooncake.store import MooncakeDistributedStore, ReplicateConfig

MIB = 1 << 20
RPC_FAIL = -900
INVALID = -600
NOT_FOUND = -704


class Host:
    """A master and one node that serves dummies."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.pool = Pool(folder, "--default_kv_lease_ttl=200", "--client_ttl=2")
        self.node = self.pool.node("128 MB", "--enable_http_server", "--http_port=0", "--http_host=127.0.0.1", *flags)
        self.address = self.node.address
        self.port = self.address.rpartition(":")[2]

    def metric(self, name: str) -> int:
        port = re.findall(r"HTTP port (\d+)", self.node.log.read_text())[-1]  # of its last life
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait(self, is_so, what: str) -> None:
        self.pool.wait(is_so, what, self.node)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("dummy"))
    yield host
    host.pool.close()


def dummy(host: Host, pool_size: int = 16 * MIB) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    assert store.setup_dummy(pool_size, 16 * MIB, host.address) == 0
    return store


def program(host: Host, body: str) -> subprocess.Popen:
    """A process with a dummy `store`; it says "ready", then does `body`."""
    text = textwrap.dedent(f"""
        import sys, time
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig
        store = MooncakeDistributedStore()
        assert store.setup_dummy({16 * MIB}, 0, "{host.address}") == 0
        print("ready", flush=True)
    """) + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-P", "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait(30)
    process.stdout.close()


def test_every_kind_of_call_works_as_with_another_client(host: Host) -> None:
    store, other = dummy(host), MooncakeDistributedStore()
    assert other.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", host.pool.address) == 0
    try:
        big = os.urandom(5 * MIB + 7)
        assert store.put("small", b"abc") == 0
        assert store.put_batch(["b0", "b1"], [b"0" * 70_000, big]) == 0
        assert (other.get("small"), other.get_batch(["b0", "b1"])) == (b"abc", [b"0" * 70_000, big])
        assert store.batch_is_exist(["small", "none"]) == [1, 0]
        assert store.upsert("small", b"changed") == 0
        assert other.get("small") == b"changed"

        at = store.alloc_from_mem_pool(8 * MIB)
        assert at != 0
        assert store.get_into("b1", at, 8 * MIB) == len(big)
        assert ctypes.string_at(at, len(big)) == big
        assert store.put_from("copy", at, MIB) == 0
        assert other.get("copy") == big[:MIB]
        assert store.alloc_from_mem_pool(16 * MIB) == 0, "the pool is smaller than what is asked for in all"
        room = ctypes.create_string_buffer(100_000)
        where = ctypes.addressof(room)
        assert store.register_buffer(where, len(room)) == 0
        assert store.register_buffer(where, len(room)) == INVALID
        assert store.get_into_ranges([where], [["b1"]], [[[0, 10]]], [[[7, 65_530]]], [[[10, 20]]]) == [[[10, 20]]]
        assert room.raw[:30] == big[7:17] + big[65_530:65_550]
        assert store.unregister_buffer(where) == 0

        assert store.batch_put_session_start(["piecewise"], [200_000]) == [0]
        assert store.batch_put_from_multi_buffer_ranges(["piecewise"], [[at]], [[200_000]], [[0]]) == [200_000]
        assert store.is_exist("piecewise") == 0
        assert store.batch_put_session_end(["piecewise"]) == [0]
        assert other.get("piecewise") == big[:200_000]
        assert store.batch_get_session_start(["piecewise"]) == [0]
        assert store.batch_get_into_multi_buffer_ranges(["piecewise"], [[at + MIB]], [[500]], [[1000]]) == [500]
        assert ctypes.string_at(at + MIB, 500) == big[1000:1500]
        assert store.batch_get_session_end(["piecewise"]) == 0
        assert bytes(store.get_buffer("piecewise")) == big[:200_000]
        assert [d.is_memory_replica() for d in store.get_replica_desc("b1")] == [True]
        assert store.remove("b0", force=True) == 0
        assert store.get("b0") == b""
        assert store.health_check() == 0
        assert store.get_hostname() not in ("", host.pool.segments()[0]), "it is a segment of its own"
        assert len(host.pool.segments()) == 1, "it gives no memory"
    finally:
        assert store.remove_all(force=True) >= 0
        store.close()
        other.close()
    assert store.put("closed", b"x") < 0


def test_the_tenant_is_the_nodes(tmp_path: Path) -> None:
    host = Host(tmp_path, "--tenant_id=team")
    store, same, other = dummy(host), MooncakeDistributedStore(), MooncakeDistributedStore()
    try:
        common = ("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", host.pool.address)
        assert same.setup(*common, tenant_id="team") == 0
        assert other.setup(*common) == 0
        assert store.put("key", b"theirs") == 0
        assert (same.get("key"), other.get("key")) == (b"theirs", b"")
    finally:
        for one in (store, same, other):
            one.close()
        host.pool.close()


def test_an_embedded_client_serves_dummies(host: Host, caplog) -> None:
    """ipc_socket_path: by a port as a node's, or by its name; one process has it at a time."""
    config = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": "32 MB", "tenant_id": "embedded",
              "master_server_addr": host.pool.address, "ipc_socket_path": "@mooncake_client_19.sock"}  # fmt: skip
    named = f"dummies of {os.getpid()}"
    server, second, store = (MooncakeDistributedStore() for _ in range(3))
    try:
        assert server.setup(config) == 0
        assert second.setup(config) == INVALID
        assert "ipc_socket_path" in caplog.text and "@mooncake_client_19.sock" in caplog.text
        assert second.setup(config | {"ipc_socket_path": named, "global_segment_size": "0"}) == 0
        for address in ("127.0.0.1:19", f"@{named}"):
            assert store.setup_dummy(MIB, 0, address) == 0
            assert store.put(address, b"by a dummy") == 0
            assert server.get(address) == b"by a dummy", "the tenant is the server's"
            store.close()
        assert store.setup_dummy(MIB, 0, "127.0.0.1:19") == 0
        server.close()
        host.pool.wait(lambda: store.health_check() == 2, "a dummy does not see that its server is gone", host.node)
    finally:
        for one in (server, second, store):
            one.close()
    assert store.setup_dummy(MIB, 0, "@" + "x" * 120) == INVALID


def test_no_node_is_said_within_seconds(caplog) -> None:
    store = MooncakeDistributedStore()
    begin = time.monotonic()
    assert store.setup_dummy(MIB, 0, "127.0.0.1:9") == RPC_FAIL
    assert time.monotonic() - begin < 6
    assert "127.0.0.1:9" in caplog.text and "@mooncake_client_9.sock" in caplog.text and "mooncake_client run" in caplog.text
    assert store.setup_dummy(-1, 0, "127.0.0.1:9") == INVALID
    assert store.setup_dummy(MIB, 0, "192.0.2.1:9") == INVALID
    assert "not of this host" in caplog.text
    assert store.setup_dummy(MIB, 0, "host:port:9") == INVALID
    assert store.put("key", b"x") == -1
    assert store.health_check() == 1


def test_a_killed_dummy_leaves_nothing_at_the_node(host: Host) -> None:
    """Grants that it had open are given back, and the node holds no descriptor and no mapping of it."""
    fds = Path(f"/proc/{host.node.process.pid}/fd")
    maps = Path(f"/proc/{host.node.process.pid}/maps")

    def shared() -> int:
        return sum("memfd" in line for line in maps.read_text().splitlines())

    def held() -> tuple[int, int]:
        return len(list(fds.iterdir())), shared()

    host.wait(lambda: host.metric("mc_node_dummies") == 0, "dummies of another test are still there")
    end(program(host, "store.put('first', b'x' * 100000); time.sleep(60)"))
    host.wait(lambda: host.metric("mc_node_dummies") == 0, "the first one is still there")
    time.sleep(1)
    before, used = held(), host.metric("mc_owner_used_bytes")
    for turn in range(3):
        process = program(host, f"""
            at = store.alloc_from_mem_pool(8 << 20)
            assert store.put("watched", b"x" * 300_000) == 0
            assert store.batch_put_session_start([f"open{{i}}" for i in range(8)], [1 << 20] * 8) == [0] * 8
            print("granted", flush=True)
            while True:
                store.put_from("busy{turn}", at, 8 << 20)
                store.remove("busy{turn}", force=True)
        """)  # fmt: skip
        assert process.stdout.readline() == "granted\n"
        assert host.metric("mc_node_dummies") == 1
        assert host.metric("mc_owner_grants") >= 8
        time.sleep(0.05 * turn)
        end(process)
        host.wait(lambda: host.metric("mc_node_dummies") == 0, "a killed dummy is still counted")
        host.wait(lambda: host.metric("mc_owner_grants") == 0, "grants of a killed dummy stay")
    store = dummy(host)
    try:
        store.batch_remove(["busy0", "busy1", "busy2", "watched"], force=True)
        assert store.batch_is_exist([f"open{i}" for i in range(8)]) == [0] * 8
    finally:
        store.close()
    until = time.monotonic() + 60  # what was sealed and never committed is found after 30 s
    while (left := host.metric("mc_owner_used_bytes")) > used:
        assert time.monotonic() < until, f"{left} bytes instead of {used}: memory of a killed dummy's writes stays"
        time.sleep(0.1)
    host.wait(lambda: held()[0] <= before[0] and held()[1] <= before[1], f"descriptors or mappings stay: {before}")


def test_calls_end_while_the_node_is_away_and_work_when_it_is_back(tmp_path: Path) -> None:
    host = Host(tmp_path)
    store = dummy(host)
    try:
        assert store.put("before", b"x" * 200_000) == 0
        host.node.kill()
        begin = time.monotonic()
        codes = store.put("while", b"y" * 200_000), store.is_exist("before"), store.health_check()
        assert time.monotonic() - begin < 35
        assert codes[0] < 0 and codes[2] == 2
        assert store.get("before") == b"", "what the node had in memory is gone, and nothing else is read instead"
        host.node.start()
        host.wait(lambda: store.health_check() == 0, "the dummy does not find the node again")
        host.wait(lambda: store.put("after", b"z" * 200_000) == 0, "puts do not work again")
        assert store.get("after") == b"z" * 200_000
        host.wait(lambda: host.metric("mc_node_dummies") == 1, "the node does not know its dummy again")
    finally:
        store.close()
        host.pool.close()


def test_a_node_with_another_master_takes_its_dummies_along(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    host, other = Host(tmp_path / "one"), Pool(tmp_path / "two")
    store = dummy(host)
    moved = None
    try:
        assert store.put("key", b"old") == 0
        host.node.stop()
        host.pool.master.kill()
        flags = [flag for flag in host.node.flags if not flag.startswith("--master_server_address")]
        moved = Process(tmp_path / "moved.log", "mooncake_client", *flags, f"--master_server_address={other.address}")
        other.wait(lambda: len(other.segments()) == 1, "the node does not join the other master", moved)
        other.wait(lambda: store.health_check() == 0, "the dummy does not follow", moved)
        assert store.get("key") == b""
        assert store.put("key", b"new") == 0
        assert store.get("key") == b"new"
    finally:
        store.close()
        if moved:
            moved.close()
        other.close()
        host.pool.close()


def test_what_is_no_dummy_is_refused_by_name(host: Host) -> None:
    def talk(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(f"\0mooncake_client_{host.port}.sock")
            sock.sendall(data)
            got = b""
            try:
                while part := sock.recv(4096):
                    got += part
            except (ConnectionResetError, TimeoutError):
                pass
            return got

    for data in (b"GET / HTTP/1.1\r\n\r\n" * 4, os.urandom(4096), b"\xff" * 100_000):
        talk(data)
    store = dummy(host)
    assert store.put("still", b"here") == 0
    assert store.remove("still", force=True) == 0
    store.close()


def test_two_nodes_of_one_number(host: Host, tmp_path: Path) -> None:
    """The second one serves memory, and says that it serves no dummies."""
    flags = [f"--port={host.port}", "--host=127.0.0.1", "--global_segment_size=16MB"]
    two = Process(tmp_path / "two.log", "mooncake_client", *flags, f"--master_server_address={host.pool.address}")
    try:
        host.pool.wait(lambda: len(host.pool.segments()) == 2, "the second node does not join", two)
        assert "serves dummy clients under this number" in two.log.read_text() and host.port in two.log.read_text()
        store = dummy(host)
        assert host.metric("mc_node_dummies") >= 1
        store.close()
    finally:
        two.close()
    host.pool.wait(lambda: len(host.pool.segments()) == 1, "the second node stays")


def test_many_dummies_at_once(host: Host) -> None:
    stores: list[MooncakeDistributedStore] = []
    wrong: list[str] = []

    def work(number: int) -> None:
        store = dummy(host, MIB)
        stores.append(store)
        for turn in range(20):
            value = bytes([number, turn]) * 40_000
            if store.put(f"many/{number}/{turn}", value, ReplicateConfig()) != 0 or store.get(f"many/{number}/{turn}") != value:
                wrong.append(f"{number} {turn}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert not wrong and len(stores) == 6
    assert host.metric("mc_node_dummies") == 6
    for store in stores:
        store.close()
    host.wait(lambda: host.metric("mc_node_dummies") == 0, "closed dummies are still counted")


def test_a_stopped_node_is_not_waited_for_longer_than_the_limit(host: Host) -> None:
    tasks = Path(f"/proc/{host.node.process.pid}/task")
    os.kill(host.node.process.pid, signal.SIGSTOP)
    host.wait(lambda: all("\nState:\tT" in (t / "status").read_text() for t in tasks.iterdir()), "the node does not stop")
    try:
        begin = time.monotonic()
        assert MooncakeDistributedStore().setup_dummy(MIB, 0, host.address) == RPC_FAIL
        assert time.monotonic() - begin < 8
    finally:
        os.kill(host.node.process.pid, signal.SIGCONT)
    host.wait(lambda: MooncakeDistributedStore().setup_dummy(MIB, 0, host.address) == 0, "the node does not serve again")
