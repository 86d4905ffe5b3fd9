"""Metadata services: processes that know each other by name find each other through HTTP, etcd and Redis, real servers.

The service is killed and restarted under transfers; peers are restarted under their names; what is wrong is named.
"""

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node, free_port, wait_for_port
from pool import PROGRAMS

SIZE = 1 << 20
REFRESH = {"MC_METADATA_REFRESH": "1"}

NodeStarter = Callable[..., Node]


class Service:
    """One metadata server on loopback; the same port and folder each time it starts."""

    scheme = ""
    forgets = True  # what it held is gone after a restart

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.start()

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder)
        wait_for_port(self.port)

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def segment(self, name: str) -> dict | None:
        """A segment's descriptor as the service holds it."""
        text = self.get(f"mooncake/ram/{name}")
        return None if text is None else json.loads(text)

    def get(self, key: str) -> str | None:
        raise NotImplementedError

    def puts(self, name: str) -> int | None:
        """How often the segment's descriptor has been written; None: the service does not tell."""
        return None


class Http(Service):
    scheme = "http"

    def command(self) -> list[str]:
        return [sys.executable, "-P", "-m", "mooncake.http_metadata_server", "--host", "127.0.0.1", "--port", str(self.port)]

    @property
    def url(self) -> str:
        return f"{super().url}/metadata"

    def get(self, key: str) -> str | None:
        try:
            with urllib.request.urlopen(f"{self.url}?key={urllib.parse.quote(key, safe='')}", timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            return None


class Master(Http):
    """The same, served by a Store's master."""

    def command(self) -> list[str]:
        rpc = self.__dict__.setdefault("rpc_port", free_port(30000, 32000))
        return [
            str(PROGRAMS / "mooncake_master"), "--enable_http_metadata_server", "--http_metadata_server_host=127.0.0.1",
            f"--http_metadata_server_port={self.port}", "--rpc_address=127.0.0.1", f"--rpc_port={rpc}", "--metrics_port=0",
            "--state_dir=-",
        ]  # fmt: skip


class Etcd(Service):
    scheme = "etcd"
    forgets = False

    def command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.__dict__.setdefault('peer_port', free_port(30000, 32000))}"
        client = f"http://127.0.0.1:{self.port}"
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        cluster = ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        return ["etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", *urls, *cluster]

    def start(self) -> None:
        super().start()
        end = time.monotonic() + 30
        while True:  # its port is open before it has a leader
            try:
                self.entry("mooncake/none")
                return
            except urllib.error.URLError:
                assert time.monotonic() < end, "etcd has no leader"
                time.sleep(0.1)

    def entry(self, key: str) -> dict | None:
        body = json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v3/kv/range", body, timeout=10) as answer:
            found = json.load(answer).get("kvs")
        return found[0] if found else None

    def get(self, key: str) -> str | None:
        entry = self.entry(key)
        return base64.b64decode(entry["value"]).decode() if entry else None

    def puts(self, name: str) -> int | None:
        entry = self.entry(f"mooncake/ram/{name}")
        return int(entry["version"]) if entry else 0


class Redis(Service):
    scheme = "redis"

    def command(self) -> list[str]:
        return ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]

    def ask(self, *words: str) -> bytes | None:
        with socket.create_connection(("127.0.0.1", self.port), 10) as sock, sock.makefile("rb") as answer:
            sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            head = answer.readline()
            assert head.startswith(b"$"), head
            return None if head == b"$-1\r\n" else answer.read(int(head[1:]))

    def get(self, key: str) -> str | None:
        value = self.ask("GET", key)
        return None if value is None else value.decode()

    def puts(self, name: str) -> int | None:
        stats = (self.ask("INFO", "commandstats") or b"").decode()
        lines = [line for line in stats.splitlines() if line.startswith("cmdstat_set:")]
        return int(lines[0].split("calls=")[1].split(",")[0]) if lines else 0


SERVICES = {"http": (Http, None), "master": (Master, None), "etcd": (Etcd, "etcd"), "redis": (Redis, "redis-server")}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    kind, program = SERVICES[request.param]
    if program and not shutil.which(program):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs the program {program!r}")
    made = kind(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def http(tmp_path: Path) -> Iterator[Service]:
    made = Http(tmp_path)
    yield made
    made.kill()


def pattern_crc(seed: int) -> int:
    return zlib.crc32(random.Random(seed).randbytes(SIZE))


def check_transfers(a: Node, b: Node, seed: int = 1) -> None:
    """`a` writes to `b` and reads from it."""
    here, there = a.memory(SIZE, seed), b.memory(SIZE, 0)
    assert a.call("transfer_sync_write", b.name, here, there, SIZE) == 0, a.tail()
    assert b.do("crc", there, SIZE) == pattern_crc(seed)
    b.do("fill", there, SIZE, seed + 1)
    assert a.call("transfer_sync_read", b.name, here, there, SIZE) == 0, a.tail()
    assert a.do("crc", here, SIZE) == pattern_crc(seed + 1)


def eventually(check: Callable[[], bool], timeout_s: float = 20) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.1)
    return False


def test_processes_find_each_other_by_names_without_ports(node: NodeStarter, service: Service) -> None:
    a, b = node().start("prefill-0", service.url), node().start("decode-0", service.url)
    check_transfers(a, b)
    check_transfers(b, a, 5)
    assert a.call("send_probe", "decode-0") == 0, a.tail()
    b.close()
    assert service.segment("decode-0") is None, "a process that ends takes its entry along"
    assert service.segment("prefill-0") is not None


def test_batch_of_registrations_is_one_publish(node: NodeStarter, service: Service) -> None:
    a = node().start("prefill-0", service.url)
    base = a.do("buffer", 100 * 4096)
    buffers = [base + i * 4096 for i in range(100)]
    before = service.puts("prefill-0")
    assert a.call("batch_register_memory", buffers, [4096] * 100) == 0, a.tail()
    assert sorted(b["addr"] for b in service.segment("prefill-0")["buffers"]) == buffers
    if before is not None:
        assert service.puts("prefill-0") == before + 1
    assert a.call("batch_unregister_memory", buffers) == 0
    assert service.segment("prefill-0")["buffers"] == []


def test_transfers_go_on_while_the_service_is_down(node: NodeStarter, service: Service) -> None:
    a, b, c = (node(env=REFRESH).start(name, service.url) for name in ("node-a", "node-b", "node-c"))
    here, there = a.memory(SIZE, 3), b.memory(SIZE, 0)
    assert a.call("transfer_sync_write", "node-b", here, there, SIZE) == 0, a.tail()
    elsewhere = c.memory(SIZE, 0)
    a.do("loop", "transfer_sync_write", "node-b", here, there, SIZE)
    service.kill()
    # Whom it does not know yet it cannot find: an error that names the service, and soon.
    begin = time.monotonic()
    assert a.call("transfer_sync_write", "node-c", here, elsewhere, SIZE) != 0
    assert time.monotonic() - begin < 10
    error = a.call("last_error")
    assert "node-c" in error and f"127.0.0.1:{service.port}" in error, error
    assert a.do("loop_end", 1) is None, f"the transfers ended: {a.tail()}"
    assert b.do("crc", there, SIZE) == pattern_crc(3)
    service.start()
    # What it forgot it is told again, by those who own it.
    assert eventually(lambda: service.segment("node-c") is not None), c.tail()
    assert eventually(lambda: a.call("transfer_sync_write", "node-c", here, elsewhere, SIZE) == 0), a.call("last_error")
    assert c.do("crc", elsewhere, SIZE) == pattern_crc(3)
    check_transfers(node().start("node-d", service.url), b)
    assert a.do("loop_end", 0) is None, a.tail()


def start_at(node: NodeStarter, name: str, url: str, env: dict[str, str]) -> Node:
    """A process under this name. Without a metadata service the port is the system's choice of two: try again."""
    for _ in range(30):
        one = node(env=env).start(name.rpartition(":")[0] or name, url)
        if one.name == name:
            return one
        one.kill()
    raise TimeoutError(f"no process at {name}")


@pytest.mark.parametrize("metadata", ["p2p", "http"])
def test_peer_that_restarts_under_its_name_is_served(node: NodeStarter, http: Service, metadata: str) -> None:
    if metadata == "http":
        url, name, env = http.url, "decode-0", {}
    else:
        port = free_port(18000, 19000)
        url, name, env = "P2PHANDSHAKE", f"127.0.0.1:{port}", {"MC_MIN_RPC_PORT": str(port), "MC_MAX_RPC_PORT": str(port + 1)}
    a = node().start("127.0.0.1", url)
    here = a.memory(SIZE, 9)
    for turn in range(3):
        b = start_at(node, name, url, env)
        there = b.memory(SIZE, turn)
        a.do("fill", here, SIZE, 20 + turn)
        assert a.call("transfer_sync_write", name, here, there, SIZE) == 0, (turn, a.call("last_error"), a.tail())
        assert b.do("crc", there, SIZE) == pattern_crc(20 + turn)
        b.kill()
        if turn == 0:  # once with a try in between, so that the loss is known before the restart
            assert a.call("transfer_sync_write", name, here, there, SIZE) != 0


@pytest.mark.parametrize("scheme", ["http", "etcd", "redis"])
def test_service_that_is_not_there_is_named(node: NodeStarter, scheme: str) -> None:
    port = free_port()
    url = f"{scheme}://127.0.0.1:{port}" + ("/metadata" if scheme == "http" else "")
    a = node()
    begin = time.monotonic()
    rc, _ = a.do("start", "prefill-0", url)
    assert rc != 0 and time.monotonic() - begin < 15
    assert f"127.0.0.1:{port}" in a.tail(), a.tail()


@pytest.mark.parametrize(
    ("url", "named"),
    [("ftp://127.0.0.1:1/metadata", "ftp://127.0.0.1:1/metadata"), ("http://", "http://"), ("redis://127.0.0.1:x", "x")],
)
def test_wrong_url_is_named_with_what_is_accepted(node: NodeStarter, url: str, named: str) -> None:
    a = node()
    rc, _ = a.do("start", "prefill-0", url)
    assert rc != 0
    assert named in a.tail(), a.tail()


def test_page_that_is_no_metadata_service_is_an_error(node: NodeStarter, http: Service) -> None:
    a = node()
    rc, _ = a.do("start", "prefill-0", http.url.replace("/metadata", "/elsewhere"))
    assert rc != 0
    assert "/elsewhere" in a.tail(), a.tail()


@pytest.mark.parametrize(("initiator", "target"), [("ours", "upstream"), ("upstream", "ours")])
def test_upstream_and_ours_share_our_http_service(node: NodeStarter, http: Service, initiator: str, target: str) -> None:
    names = [f"127.0.0.1:{free_port(12000 + i * 1000, 13000 + i * 1000)}" for i in range(2)]
    a, b = (node(kind).start(name, http.url) for kind, name in zip((initiator, target), names))
    check_transfers(a, b)
    check_transfers(b, a, 5)


def test_service_that_is_killed_again_and_again_under_load(node: NodeStarter, http: Service) -> None:
    """Between two kills a random pause; transfers between those who know each other never end, newcomers wait for the service.

    MC_KILLS is how often, 6 by default.
    """
    kills, dice = int(os.environ.get("MC_KILLS", "6")), random.Random(7)
    a, b, c = (node(env=REFRESH).start(name, http.url) for name in ("node-a", "node-b", "node-c"))
    here, there = a.memory(SIZE, 3), b.memory(SIZE, 0)
    spot, elsewhere = c.memory(SIZE, 4), a.memory(SIZE, 0)
    a.do("loop", "transfer_sync_write", "node-b", here, there, SIZE)
    before, found = [one.do("usage") for one in (a, b, c)], 0
    for kill in range(kills):
        time.sleep(dice.uniform(0, 0.1))
        http.kill()
        # c publishes and looks up while nobody, or somebody new, answers.
        extra = c.do("buffer", 4096)
        rc = c.call("batch_register_memory", [extra], [4096])
        assert rc == 0 or "metadata service" in c.call("last_error"), (rc, c.call("last_error"))
        if rc == 0:
            c.call("batch_unregister_memory", [extra])
        http.start()
        if kill % 4 == 0:
            assert eventually(lambda: c.call("transfer_sync_write", "node-a", spot, elsewhere, SIZE) == 0), c.call("last_error")
            assert a.do("crc", elsewhere, SIZE) == pattern_crc(4)
            found += 1
    assert a.do("loop_end", 0) is None, a.tail()
    assert b.do("crc", there, SIZE) == pattern_crc(3)
    assert eventually(lambda: all(http.segment(name) is not None for name in ("node-a", "node-b", "node-c")))
    after = [one.do("usage") for one in (a, b, c)]
    print(f"{kills} kills, {found} transfers looked up anew, usage {before} to {after}")
