"""NVMe over TCP as a segment ("file:///dev/nvme0n1") through mooncake.engine: bytes, O_DIRECT, loss and return."""

import ctypes
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mooncake.engine import TransferEngine

MIB = 1 << 20
DEVICE = Path(os.environ.get("GUEST_NVME") or "/nonexistent")
SEGMENT = f"file://{DEVICE}"
SIZE = 32 * MIB
SECTOR = 512
DEADLINE_S = 5
LATE_S = 3  # what a busy emulator may add

pytestmark = pytest.mark.skipif("GUEST_NVME" not in os.environ, reason="no NVMe namespace of a guest")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TransferEngine:
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", str(DEADLINE_S))
    one = TransferEngine()
    assert one.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, one.last_error()
    return one


@pytest.fixture
def memory(engine: TransferEngine) -> int:
    address = engine.allocate_managed_buffer(SIZE)
    assert address
    return address


@pytest.fixture
def target() -> Iterator[Callable[[str], None]]:
    """target("down") takes the NVMe target away, target("up") brings it back; it is back after the test."""
    state = "up"

    def change(wanted: str) -> None:
        nonlocal state
        if wanted != state:
            subprocess.run(["guest-nvme", wanted], check=True)
            state = wanted

    yield change
    change("up")


def on_device(offset: int, length: int) -> bytes:
    with open(DEVICE, "rb") as f:
        f.seek(offset)
        return f.read(length)


def sectors_read() -> int:
    """Of the paths to the namespace ("nvme0c0n1"): with multipath the namespace itself counts nothing."""
    return sum(int(path.read_text().split()[2]) for path in Path("/sys/block").glob("nvme*/stat"))


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (4096, 65536), (1, 1), (4095, 70001), (SIZE - 5, 5)])
def test_bytes_go_to_the_namespace_and_come_back(
    engine: TransferEngine, memory: int, offset: int, length: int
) -> None:
    data = random.Random(offset).randbytes(length)
    around = on_device(max(offset - 512, 0), min(offset, 512)), on_device(offset + length, 512)
    ctypes.memmove(memory, data, length)
    assert engine.transfer_sync_write(SEGMENT, memory, offset, length) == 0, engine.last_error()
    assert on_device(offset, length) == data
    ctypes.memset(memory, 0, length)
    assert engine.transfer_sync_read(SEGMENT, memory, offset, length) == 0, engine.last_error()
    assert ctypes.string_at(memory, length) == data
    assert (on_device(max(offset - 512, 0), min(offset, 512)), on_device(offset + length, 512)) == around


def test_aligned_reads_bypass_the_page_cache(engine: TransferEngine, memory: int) -> None:
    for _ in range(2):
        before = sectors_read()
        assert engine.transfer_sync_read(SEGMENT, memory, 0, MIB) == 0, engine.last_error()
        assert sectors_read() - before >= MIB // SECTOR


def test_the_end_of_the_namespace_is_an_error_that_names_it(engine: TransferEngine, memory: int) -> None:
    with open(DEVICE, "rb") as f:
        end = f.seek(0, os.SEEK_END)
    for call in (engine.transfer_sync_write, engine.transfer_sync_read):
        assert call(SEGMENT, memory, end - 4096, 8192) < 0
        assert str(DEVICE) in engine.last_error()
        assert call(SEGMENT, memory, end - 8192, 8192) == 0, engine.last_error()


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_target_lost_in_mid_transfer_ends_it_by_the_deadline_and_serves_again(
    engine: TransferEngine, memory: int, target: Callable[[str], None], way: str
) -> None:
    data = random.Random(7).randbytes(SIZE)
    ctypes.memmove(memory, data, SIZE)
    assert engine.transfer_sync_write(SEGMENT, memory, 0, SIZE) == 0, engine.last_error()
    call = engine.transfer_sync_read if way == "read" else engine.transfer_sync_write
    pull = threading.Timer(0.3, target, ["down"])
    pull.start()
    start = time.monotonic()
    while (rc := call(SEGMENT, memory, 0, SIZE)) == 0 and time.monotonic() < start + 30:
        start = time.monotonic()
    took = time.monotonic() - start
    pull.join()
    said = engine.last_error()
    assert rc < 0
    assert str(DEVICE) in said, said
    assert took < DEADLINE_S + LATE_S, (took, said)
    target("up")
    end = time.monotonic() + 30
    while (rc := engine.transfer_sync_write(SEGMENT, memory, 0, SIZE)) != 0 and time.monotonic() < end:
        time.sleep(0.2)
    assert rc == 0, engine.last_error()
    if way == "write":
        assert on_device(0, SIZE) == data
    ctypes.memset(memory, 0, SIZE)
    assert engine.transfer_sync_read(SEGMENT, memory, 0, SIZE) == 0, engine.last_error()
    assert ctypes.string_at(memory, SIZE) == on_device(0, SIZE)
