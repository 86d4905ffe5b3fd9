"""Hundreds of peers at once, and clients that stall: everybody else is served."""

import json
import os
import random
import select
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster import Node

NodeStarter = Callable[..., Node]
CROWDS, PEERS = 4, 50  # processes, engines in each
SIZE = 64 << 10
SERVED_S = 20  # everybody, on a slow machine
STALLED = 42  # clients of each port


def listening_ports(pid: int) -> list[int]:
    """TCP ports on which the process listens."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


class Crowd:
    """One process of crowd.py."""

    def __init__(self, log: Path, job: dict) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MC_")}
        command = [sys.executable, "-P", str(Path(__file__).with_name("crowd.py"))]
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=env | {"MC_FORCE_TCP": "1", "MC_NUM_TCP_IO_THREADS": "1", "MC_TRANSFER_TIMEOUT": "30"},
            )
        self.say(json.dumps(job))

    def say(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def hear(self, timeout_s: float) -> str:
        ready = select.select([self.process.stdout], [], [], timeout_s)[0]
        assert ready, f"no answer; its log ends:\n{self.log.read_text()[-2000:]}"
        line = self.process.stdout.readline()
        assert line, f"it ended; its log ends:\n{self.log.read_text()[-2000:]}"
        return line.strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self.process.stdin.close()
        self.process.stdout.close()


def stalled_clients(ports: list[int], stack: ExitStack) -> None:
    """Clients that connect and say nothing, half a frame, or a length whose bytes never come."""
    assert len(ports) >= 2, "a control port and a data port"
    ours, theirs = b"MCRPC\x01\xff\xff", (1 << 20).to_bytes(8, "little")
    starts = [b"", ours[:2], ours, ours + bytes(20), theirs, theirs + b"\x01{", b"MCTCP"]
    for port in ports:
        for i in range(STALLED):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            sock.sendall(starts[i % len(starts)])


@pytest.fixture
def crowds(tmp_path: Path) -> Iterator[Callable[[dict], Crowd]]:
    made: list[Crowd] = []

    def start(job: dict) -> Crowd:
        made.append(Crowd(tmp_path / f"crowd-{len(made)}.log", job))
        return made[-1]

    yield start
    for crowd in made:
        crowd.close()


@pytest.mark.parametrize("is_stalled", [False, True], ids=["alone", "beside-stalled-clients"])
def test_two_hundred_peers_connect_at_once(node: NodeStarter, crowds: Callable[[dict], Crowd], is_stalled: bool) -> None:
    target = node(env={"MC_TRANSFER_TIMEOUT": "30"}).start()
    base = target.memory(CROWDS * PEERS * SIZE, 0)
    with ExitStack() as stack:
        if is_stalled:
            stalled_clients(listening_ports(target.process.pid), stack)
        jobs = [
            {"count": PEERS, "size": SIZE, "target": target.name, "remote": base + k * PEERS * SIZE, "seed": 1000 * k}
            for k in range(CROWDS)
        ]
        running = [crowds(job) for job in jobs]
        assert [crowd.hear(60) for crowd in running] == ["ready"] * CROWDS
        begin = time.monotonic()
        for crowd in running:
            crowd.say("go")
        results = [result for crowd in running for result in json.loads(crowd.hear(60))]
        took_s = time.monotonic() - begin
    assert [rc for rc, _ in results] == [0] * (CROWDS * PEERS), target.tail()
    wanted = [zlib.crc32(random.Random(1000 * k + i).randbytes(SIZE)) for k in range(CROWDS) for i in range(PEERS)]
    assert target.do("crcs", [base + i * SIZE for i in range(CROWDS * PEERS)], SIZE) == wanted
    assert took_s < SERVED_S, sorted(s for _, s in results)[-5:]


def test_stalled_clients_delay_nobody(node: NodeStarter) -> None:
    target, a = node().start(), node().start()
    here, there = a.memory(SIZE, 1), target.memory(SIZE, 0)
    with ExitStack() as stack:
        stalled_clients(listening_ports(target.process.pid), stack)
        for _ in range(50):
            begin = time.monotonic()
            assert a.call("transfer_sync_write", target.name, here, there, SIZE) == 0, a.tail()
            assert time.monotonic() - begin < 2
        begin = time.monotonic()
        assert a.call("send_probe", target.name) == 0
        # A peer that comes new, too.
        late = node().start()
        assert late.call("transfer_sync_read", target.name, late.memory(SIZE), there, SIZE) == 0, late.tail()
        assert time.monotonic() - begin < 10
    assert target.do("crc", there, SIZE) == a.do("crc", here, SIZE)
