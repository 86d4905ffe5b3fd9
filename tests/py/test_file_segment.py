"""A local file as a segment ("file:///path") through mooncake.engine, and the benchmark that measures it."""

import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake.engine import TransferEngine

TREE = Path(__file__).resolve().parents[2]
SIZE = 1 << 20
DISK = "/var/tmp"  # /tmp may be memory, where files know no O_DIRECT


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TransferEngine:
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    one = TransferEngine()
    assert one.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, one.last_error()
    return one


@pytest.fixture(params=["managed", "own"])
def memory(request: pytest.FixtureRequest, engine: TransferEngine) -> Iterator[int]:
    """SIZE bytes: of the engine, or of this program and unknown to the engine."""
    if request.param == "own":
        buffer = ctypes.create_string_buffer(SIZE)
        yield ctypes.addressof(buffer)
        return
    address = engine.allocate_managed_buffer(SIZE)
    assert address
    yield address
    assert engine.free_managed_buffer(address, SIZE) == 0


@pytest.fixture
def file() -> Iterator[Path]:
    """A file of SIZE random bytes on a disk."""
    with tempfile.NamedTemporaryFile(dir=DISK, prefix="mc-file-") as f:
        f.write(random.Random(1).randbytes(SIZE))
        f.flush()
        yield Path(f.name)


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (4096, 65536), (1, 1), (4095, 70001), (SIZE - 5, 5)])
def test_reads_and_writes_go_to_offsets(
    engine: TransferEngine, memory: int, file: Path, offset: int, length: int
) -> None:
    segment = f"file://{file}"
    before = file.read_bytes()
    assert engine.transfer_sync_read(segment, memory, offset, length) == 0, engine.last_error()
    assert ctypes.string_at(memory, length) == before[offset : offset + length]
    data = random.Random(2).randbytes(length)
    ctypes.memmove(memory, data, length)
    assert engine.transfer_sync_write(segment, memory, offset, length) == 0, engine.last_error()
    assert file.read_bytes() == before[:offset] + data + before[offset + length :]


def test_batches_go_to_files(engine: TransferEngine, memory: int, file: Path) -> None:
    segment = f"file://{file}"
    rng = random.Random(3)
    offsets = [i * 16384 + rng.randrange(8192) for i in range(60)]
    lengths = [rng.choice([0, 1, 511, 4096, 8000]) for _ in offsets]
    here = [memory + i * 8192 for i in range(len(offsets))]
    expected = file.read_bytes()
    assert engine.batch_transfer_sync_read(segment, here, offsets, lengths) == 0, engine.last_error()
    for address, offset, length in zip(here, offsets, lengths, strict=True):
        assert ctypes.string_at(address, length) == expected[offset : offset + length]
    assert engine.batch_transfer_sync_write(segment, here, offsets[::-1], lengths) == 0, engine.last_error()
    now = file.read_bytes()
    for address, offset, length in zip(here, offsets[::-1], lengths, strict=True):
        assert now[offset : offset + length] == ctypes.string_at(address, length)


def test_writes_past_the_end_make_the_file_longer_and_reads_fail(
    engine: TransferEngine, memory: int, file: Path
) -> None:
    segment = f"file://{file}"
    assert engine.transfer_sync_read(segment, memory, SIZE - 1, 2) < 0
    assert str(file) in engine.last_error()
    assert engine.transfer_sync_write(segment, memory, SIZE, 100) == 0, engine.last_error()
    assert file.stat().st_size == SIZE + 100
    assert engine.transfer_sync_read(segment, memory, SIZE - 1, 2) == 0, engine.last_error()


def test_a_missing_file_is_named(engine: TransferEngine, memory: int) -> None:
    assert engine.transfer_sync_read("file:///no/such/file", memory, 0, 1) < 0
    assert "/no/such/file" in engine.last_error()
    assert not Path("/no/such/file").exists()


def test_the_benchmark_of_files_runs(tmp_path: Path) -> None:
    """Whether it works, not how fast: one short repetition of ours alone."""
    answer = tmp_path / "file.json"
    command = [TREE / "bench/bench.py", "file", "--quick", "--secs", "0.02", "--no-peers", "--json", answer]
    command += ["--ours", sys.executable]
    env = os.environ | {"MC_TRANSFER_TIMEOUT": "10"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout, done.stdout
    rows = json.loads(answer.read_text())
    assert rows
