"""Whole engines under what containers do to them: namespaces, small or read-only file systems, seccomp, limits.

Each test opens two engines, at least one of them confined (confine.py), moves bytes both ways in memory of the engine
and in memory of its user, and looks at the metrics which transport carried them. What is missing must be said at
MC_LOG_LEVEL=DEBUG, and nothing may be left behind. Needs root; the namespaces are this program's own.
"""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "py"))

from cluster import Node, free_port

SIZE = 256 << 10
OTHER_UID = 12345
MANAGED, USER = "managed", "user"  # memory of the engine, of its user
LINK = {"a": "10.79.0.1", "b": "10.79.0.2"}
CALLS = {
    "io_uring": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    "process_vm": ["process_vm_readv", "process_vm_writev"],
    "ptrace": ["ptrace"],
    "memfd": ["memfd_create"],
    "pidfd": ["pidfd_open", "pidfd_getfd"],
}
ALL_CALLS = [call for calls in CALLS.values() for call in calls]


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts"
    if not (shutil.which("ip") and shutil.which("ss")):
        return "needs the programs ip and ss (iproute2)"
    return why_not_confined("pidns")


@functools.cache
def why_not_confined(kind: str) -> str | None:
    tried = subprocess.run(
        [sys.executable, str(HERE / "confine.py"), json.dumps({kind: True}), "/bin/true"],
        capture_output=True,
        text=True,
    )
    return f"{kind} is not allowed here: {tried.stderr.strip().splitlines()[-1:]}" if tried.returncode else None


def need(why: str | None) -> None:
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    need(why_not())


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, because a socket's path may have 107 bytes only."""
    path = Path(tempfile.mkdtemp(prefix="mc-box-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Boxes:
    """Confined engines. All have `place` as /tmp and /dev/shm of 64 KiB, unless their mounts say otherwise."""

    def __init__(self, place: Path) -> None:
        self.place, self.nodes = place, []

    def tmp(self, name: str = "tmp") -> Path:
        """A directory that becomes some engine's /tmp."""
        path = self.place / name
        path.mkdir(exist_ok=True)
        path.chmod(0o1777)
        return path

    def command(self, settings: dict[str, Any]) -> list[str]:
        asked = settings.get("mounts", {})
        # /tmp comes last: it hides the directories that the others are made of.
        mounts = {"/dev/shm": "tmpfs:size=64k", **{k: v for k, v in asked.items() if k != "/tmp"}}
        mounts["/tmp"] = asked.get("/tmp", str(self.tmp()))
        if "uid" in settings:
            settings = settings | {"visible": sorted({sys.base_prefix, sys.prefix, str(HERE.parent)})}
        confined = [sys.executable, str(HERE / "confine.py"), json.dumps(settings | {"mounts": mounts})]
        return [*confined, sys.executable, "-P"]

    def node(self, env: dict[str, str] | None = None, **settings: Any) -> Node:
        if settings.get("userns"):  # not in a chroot, and where a kernel's setting forbids it
            need(why_not_confined("userns"))
        fixed = {"MC_LOG_LEVEL": "DEBUG", "MC_FORCE_TCP": "0", "MC_TCP_BIND_ADDRESS": "", "XDG_RUNTIME_DIR": ""}
        log = self.place / f"{len(self.nodes)}.log"
        self.nodes.append(Node(self.command(settings), log, fixed | (env or {})))
        return self.nodes[-1]

    def close(self) -> list[int]:
        for node in self.nodes:
            node.close()
        return [node.process.returncode for node in self.nodes]


@pytest.fixture
def boxes(place: Path) -> Iterator[Boxes]:
    """Ends with every engine having ended by itself, and no socket left in any /tmp."""
    made = Boxes(place)
    yield made
    assert made.close() == [0] * len(made.nodes), [node.tail() for node in made.nodes]
    assert list(place.rglob("*te-*.sock")) == []


def memory(node: Node, kind: str, seed: int) -> int:
    if kind == USER:
        return node.memory(SIZE, seed)
    address = node.call("allocate_managed_buffer", SIZE)
    assert address, node.tail()
    node.do("fill", address, SIZE, seed)
    return address


def carried(node: Node) -> dict[str, int]:
    """Bytes by transport, so far."""
    sums: dict[str, int] = {}
    for transport, count in re.findall(
        r'^mc_transfer_bytes_total\{.*?transport="([^"]+)".*?\} (\d+)', node.call("metrics_text"), re.MULTILINE
    ):
        sums[transport] = sums.get(transport, 0) + int(count)
    return {transport: count for transport, count in sums.items() if count}


def move(one: Node, other: Node, kind: str) -> str:
    """Write and read back, from `one`; the transport that carried everything."""
    here, there = memory(one, kind, 1), memory(other, kind, 2)
    before = carried(one)
    want = one.do("crc", here, SIZE)
    assert one.call("transfer_sync_write", other.name, here, there, SIZE) == 0, one.tail()
    assert other.do("crc", there, SIZE) == want
    other.do("fill", there, SIZE, 3)
    assert one.call("transfer_sync_read", other.name, here, there, SIZE) == 0, one.tail()
    assert one.do("crc", here, SIZE) == other.do("crc", there, SIZE) != want
    after = carried(one)
    used = {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}
    assert sum(used.values()) == 2 * SIZE and len(used) == 1, used
    return next(iter(used))


def routes(one: Node, other: Node) -> tuple[str, str]:
    """Transports of engine memory and of user memory."""
    return move(one, other, MANAGED), move(one, other, USER)


def said(node: Node, *words: str) -> None:
    log = node.log.read_text(errors="replace")
    assert any(all(word in line for word in words) for line in log.splitlines()), (words, node.tail(40))


def doctor(boxes: Boxes, env: dict[str, str] | None = None, **settings: Any) -> dict[str, dict[str, str]]:
    """What `mooncake doctor --json` finds in such a box, by name. Whatever is not ok names a fix."""
    done = subprocess.run(
        [*boxes.command(settings), "-c", "from mooncake.cli import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"XDG_RUNTIME_DIR": ""} | (env or {}),
    )
    findings = {one["name"]: one for one in json.loads(done.stdout or "{}")}
    assert findings, done.stderr
    assert all(one["fix"] for one in findings.values() if one["status"] != "ok"), findings
    assert findings["engine"]["status"] == "ok", findings["engine"]
    return findings


def test_nothing_confined_but_the_directories(boxes: Boxes) -> None:
    one, other = boxes.node().start(), boxes.node().start()
    assert routes(one, other) == ("shm", "shm")
    found = doctor(boxes)["shared memory"]
    assert found["status"] == "warn" and "64.0 KiB" in found["found"] and "--shm-size" in found["fix"]


def test_read_only_dev_shm(boxes: Boxes) -> None:
    box = {"mounts": {"/dev/shm": "tmpfs:ro,size=1m"}}
    one, other = boxes.node(**box).start(), boxes.node(**box).start()
    assert routes(one, other) == ("shm", "shm")


def test_private_tmp(boxes: Boxes) -> None:
    one, other = (boxes.node(mounts={"/tmp": str(boxes.tmp(name))}).start() for name in ("x", "y"))
    assert routes(one, other) == ("tcp", "tcp")
    said(one, "no shared memory", "peer=", "/tmp/mooncake-0/te-")


def test_one_directory_of_both_makes_up_for_private_tmp(boxes: Boxes) -> None:
    boxes.tmp("run").chmod(0o700)
    mounts = [{"/tmp": str(boxes.tmp(name)), "/mnt": str(boxes.place / "run")} for name in ("x", "y")]
    one, other = (boxes.node({"XDG_RUNTIME_DIR": "/mnt"}, mounts=both).start() for both in mounts)
    assert routes(one, other) == ("shm", "shm")


@pytest.mark.parametrize("where", ["tmp", "run-time"])
def test_read_only_place_for_the_socket(boxes: Boxes, where: str) -> None:
    boxes.tmp("run").chmod(0o700)
    mounts = {"/tmp": "tmpfs:ro,size=64k", "/mnt": str(boxes.place / "run")}
    env = {"XDG_RUNTIME_DIR": "/mnt" if where == "run-time" else ""}
    one, other = boxes.node(env, mounts=mounts).start(), boxes.node(env, mounts=mounts).start()
    found = doctor(boxes, env, mounts=mounts)["socket directory"]
    if where == "run-time":
        assert routes(one, other) == ("shm", "shm")
        assert found["status"] == "ok" and "/mnt/mooncake" in found["found"]
        return
    assert found["status"] == "warn" and "/tmp is not writable" in found["found"] and "XDG_RUNTIME_DIR" in found["fix"]
    assert routes(one, other) == ("tcp", "tcp")
    said(one, "shared memory is not available", "mkdir /tmp/mooncake-0", "Read-only file system")


@pytest.mark.parametrize("path", ["/mnt/" + "long" * 30, "relative", "/mnt/none/there"])
def test_useless_run_time_directory(boxes: Boxes, path: str) -> None:
    env = {"XDG_RUNTIME_DIR": path}
    one, other = boxes.node(env).start(), boxes.node(env).start()
    assert routes(one, other) == ("shm", "shm")
    if path.startswith("/"):
        said(one, "no socket in the run-time directory", path[:60], "cause=")


def test_other_pid_namespace(boxes: Boxes) -> None:
    inside, outside = boxes.node(pidns=True).start(), boxes.node().start()
    assert routes(inside, outside) == ("shm", "tcp")
    said(inside, "foreign memory of a peer is out of reach", "not visible in this pid namespace")
    assert routes(outside, inside) == ("shm", "shm")  # from outside it has a number
    twin = boxes.node(pidns=True).start()
    assert routes(inside, twin) == ("shm", "tcp")


def test_no_proc(boxes: Boxes) -> None:
    box = {"mounts": {"/proc": "gone"}}
    without, other = boxes.node(**box).start(), boxes.node().start()
    assert routes(without, other) == ("shm", "shm")
    said(without, "no boot id", "/proc/sys/kernel/random/boot_id")
    assert routes(other, without) == ("shm", "shm")
    assert doctor(boxes, **box)


@pytest.mark.parametrize("side", ["initiator", "target"])
def test_other_user(boxes: Boxes, side: str) -> None:
    pair = [boxes.node(uid=OTHER_UID).start(), boxes.node().start()]
    one, other = pair if side == "initiator" else pair[::-1]
    assert routes(one, other) == ("tcp", "tcp")
    said(one, "no shared memory", "cause=")


def test_user_namespace_of_the_same_user(boxes: Boxes) -> None:
    inside, outside = boxes.node(userns=True).start(), boxes.node().start()
    assert routes(inside, outside) == ("shm", "tcp")
    said(inside, "foreign memory of a peer is out of reach", "no ptrace permission")
    assert routes(outside, inside) == ("shm", "shm")


def test_user_namespace_of_another_user_with_the_same_number(boxes: Boxes) -> None:
    outside = boxes.node().start()
    inside = boxes.node(uid=OTHER_UID, userns=True).start()
    assert routes(inside, outside) == ("tcp", "tcp")
    said(inside, "shared memory is not available", "/tmp/mooncake-0", "not a directory of uid 0")
    assert routes(outside, inside) == ("tcp", "tcp")


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    "what, expected, words, finding",
    [
        ("io_uring", ("shm", "shm"), [], "io_uring"),
        ("process_vm", ("shm", "tcp"), ["foreign memory of a peer is out of reach", "cause="], "process memory"),
        ("ptrace", ("shm", "shm"), [], None),
        ("memfd", ("tcp", "tcp"), ["shared memory is not available", "memfd_create"], "shared memory"),
        ("pidfd", ("shm", "shm"), [], None),
        ("all", ("tcp", "tcp"), ["shared memory is not available", "memfd_create"], "shared memory"),
    ],
)
def test_seccomp(
    boxes: Boxes, what: str, expected: tuple[str, str], words: list[str], finding: str | None, answer: str
) -> None:
    box = {"refuse": [CALLS.get(what, ALL_CALLS), answer]}
    one, other = boxes.node(**box).start(), boxes.node(**box).start()
    assert routes(one, other) == expected
    if words:
        said(one, *words)
    if finding:
        found = doctor(boxes, **box)[finding]
        assert found["status"] == "warn" and os.strerror(getattr(errno, answer)) in found["found"]
        assert "seccomp" in found["fix"]


@pytest.mark.parametrize("box", [{"pidns": True}, {"refuse": [CALLS["pidfd"], "EPERM"]}], ids=["pidns", "no-pidfd"])
def test_death_of_a_confined_peer_is_seen(boxes: Boxes, box: dict[str, Any]) -> None:
    one, other = boxes.node(**box).start(), boxes.node(**box).start()
    here, there = memory(one, MANAGED, 1), memory(other, MANAGED, 2)
    call = ["transfer_sync_write", other.name, here, there, SIZE]
    assert one.call(*call) == 0 and set(carried(one)) == {"shm"}
    boxes.nodes.remove(other)
    other.kill()
    assert other.process.stdout.read() == b""  # its end comes when the last of it is gone
    other.close()
    begin = time.monotonic()
    assert one.call(*call) != 0
    assert time.monotonic() - begin < 4  # before any deadline
    assert len(list(boxes.tmp().rglob("te-*.sock"))) == 2
    boxes.node(**box).start()
    assert len(list(boxes.tmp().rglob("te-*.sock"))) == 2, "the dead one's socket is removed by whoever comes next"


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS"])
def test_file_without_io_uring(boxes: Boxes, answer: str) -> None:
    node = boxes.node(refuse=[CALLS["io_uring"], answer]).start()
    file = boxes.tmp() / "file"
    file.write_bytes(bytes(SIZE))
    here = memory(node, USER, 1)
    assert node.call("transfer_sync_write", "file:///tmp/file", here, 0, SIZE) == 0, node.tail()
    assert zlib.crc32(file.read_bytes()) == node.do("crc", here, SIZE)
    assert carried(node) == {"file": SIZE}
    said(node, "io_uring", os.strerror(getattr(errno, answer)))


def test_few_open_files(boxes: Boxes) -> None:
    box = {"limits": {"NOFILE": [64, 64]}}
    one, other = boxes.node(**box).start(), boxes.node(**box).start()
    assert routes(one, other) == ("shm", "shm")
    here, there = memory(one, USER, 1), memory(other, USER, 2)
    one.do("hammer", "transfer_sync_write", 32, 3, [[other.name, here, there, SIZE]])  # some may be refused
    assert move(one, other, MANAGED)
    found = doctor(boxes, **box)["open files"]
    assert found["status"] == "warn" and "64" in found["found"] and "nofile" in found["fix"]


def test_no_locked_memory(boxes: Boxes) -> None:
    box = {"limits": {"MEMLOCK": [0, 0]}, "uid": OTHER_UID}
    one, other = boxes.node(**box).start(), boxes.node(**box).start()
    assert routes(one, other) == ("shm", "shm")


@pytest.mark.parametrize("limit", [{"NOFILE": [12, 12]}, {"NPROC": [2, 2]}, {"AS": [28 << 20, 28 << 20]}], ids=str)
def test_too_little_to_open_names_the_limits(boxes: Boxes, limit: dict[str, list[int]]) -> None:
    """NPROC counts threads of a user, so nobody else may have this one."""
    node = boxes.node(limits=limit, uid=OTHER_UID + os.getpid())
    assert node.do("start")[0] == -1
    name, (soft, _) = next(iter(limit.items()))
    said(node, "open engine", {"NOFILE": "-n", "NPROC": "-u", "AS": "-v"}[name] + f": {soft} ")


@pytest.mark.parametrize("mib", [44, 52, 76, 100, 140, 200, 300, 600])
def test_little_address_space(boxes: Boxes, mib: int) -> None:
    """It opens and works over whatever fits, or says what does not. The worker itself may be what does not fit."""
    other = boxes.node().start()
    small = boxes.node(limits={"AS": [mib << 20, mib << 20]})
    rc, port = small.do("start")
    if rc != 0:
        said(small, "open engine", f"-v: {mib << 20} bytes")
        return
    small.name = f"127.0.0.1:{port}"
    for one, to in ((small, other), (other, small)):
        for kind in (MANAGED, USER):
            try:
                assert move(one, to, kind) in ("shm", "tcp")
            except (AssertionError, RuntimeError) as why:
                assert mib < 600 and re.search("memory|limit", str(why), re.IGNORECASE), why


@pytest.fixture(scope="module")
def network(allowed: None) -> Iterator[Callable[[str], str]]:
    """Two namespaces joined by a veth pair; a function from "a" or "b" to the namespace's name."""
    names = {end: f"mcbox{end}{os.getpid()}" for end in LINK}

    def ip(*argv: str) -> None:
        subprocess.run(["ip", *argv], check=True, capture_output=True)

    try:
        for ns in names.values():
            ip("netns", "add", ns)
            ip("-n", ns, "link", "set", "lo", "up")
        a, b = names.values()
        ip("link", "add", "box0", "netns", a, "type", "veth", "peer", "name", "box0", "netns", b)
        for end, ns in names.items():
            ip("-n", ns, "addr", "add", f"{LINK[end]}/24", "dev", "box0")
            ip("-n", ns, "link", "set", "box0", "up")
        yield names.__getitem__
    finally:
        for ns in names.values():
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared-tmp", "private-tmp"])
def test_other_network_namespace(boxes: Boxes, network: Callable[[str], str], is_shared: bool) -> None:
    one, other = (
        boxes.node(netns=network(end), mounts={"/tmp": str(boxes.tmp("tmp" if is_shared else end))}).start(LINK[end])
        for end in LINK
    )
    assert routes(one, other) == (("shm", "shm") if is_shared else ("tcp", "tcp"))
    if not is_shared:
        said(one, "no shared memory", "/tmp/mooncake-0/te-")


def test_a_whole_container(boxes: Boxes, network: Callable[[str], str]) -> None:
    """Everything at once, on both sides."""
    one, other = (
        boxes.node(
            netns=network(end),
            mounts={"/tmp": str(boxes.tmp(end)), "/dev/shm": "tmpfs:ro,size=64k"},
            pidns=True,
            limits={"NOFILE": [64, 64], "MEMLOCK": [0, 0]},
            uid=OTHER_UID,
            userns=True,
            refuse=[ALL_CALLS, "EPERM"],
        ).start(LINK[end])
        for end in LINK
    )
    assert routes(one, other) == ("tcp", "tcp")
    assert routes(other, one) == ("tcp", "tcp")


def listening(ns: str) -> set[str]:
    """Addresses with a TCP listener in a namespace, as somebody outside of the process sees them."""
    command = ["ip", "netns", "exec", ns, "ss", "-ltnH"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines}


@pytest.mark.parametrize("host", ["127.0.0.1", LINK["a"], "localhost"])
def test_listens_where_it_was_told_only(boxes: Boxes, network: Callable[[str], str], host: str) -> None:
    ns = network("a")
    assert listening(ns) == set()
    boxes.node(netns=ns).start(host)
    assert listening(ns) == {"127.0.0.1" if host == "localhost" else host}


def test_further_rails_and_metrics_listen_where_they_were_told(boxes: Boxes, network: Callable[[str], str]) -> None:
    ns = network("a")
    boxes.node(netns=ns).do("start", "127.0.0.5", "P2PHANDSHAKE", "tcp", LINK["a"])
    assert listening(ns) == {"127.0.0.5", LINK["a"]}
    boxes.node({"MC_METRICS_PORT": str(free_port())}, netns=network("b")).start(LINK["b"])
    assert listening(network("b")) == {"127.0.0.1", LINK["b"]}


@pytest.mark.parametrize("host", ["192.0.2.7", "no.such.host.invalid"])
def test_name_of_another_machine_is_refused(boxes: Boxes, network: Callable[[str], str], host: str) -> None:
    ns = network("a")
    node = boxes.node(netns=ns)
    assert node.do("start", host)[0] == -1
    said(node, host, "MC_TCP_BIND_ADDRESS")
    assert listening(ns) == set()


def test_name_that_resolves_to_loopback_listens_there(boxes: Boxes, network: Callable[[str], str]) -> None:
    """As Debian's installer writes it for the machine's own name."""
    hosts = boxes.place / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 box\n")
    ns = network("a")
    node = boxes.node(netns=ns, mounts={"/etc/hosts": str(hosts)}).start("box")
    assert listening(ns) == {"127.0.1.1"}
    said(node, "level=warn", "name resolves to loopback", "host=box", "MC_TCP_BIND_ADDRESS")


def test_name_of_another_machine_with_a_place_to_listen(boxes: Boxes, network: Callable[[str], str]) -> None:
    ns = network("a")
    boxes.node({"MC_TCP_BIND_ADDRESS": LINK["a"]}, netns=ns).start("192.0.2.7")
    assert listening(ns) == {LINK["a"]}


def test_all_addresses_on_request(boxes: Boxes, network: Callable[[str], str]) -> None:
    ns = network("a")
    boxes.node({"MC_TCP_BIND_ADDRESS": "0.0.0.0"}, netns=ns).start("192.0.2.7")
    assert listening(ns) == {"0.0.0.0"}
