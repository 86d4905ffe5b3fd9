"""fio, the raw limit of a disk: sequential O_DIRECT by io_uring on one file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench.pairs import BenchError
from bench.stats import MIB

MISSING = "fio is not installed: its column is missing."


def has_fio() -> bool:
    return shutil.which("fio") is not None


def create(path: Path, size: int) -> None:
    """Written, not only sized: a hole reads faster than any disk."""
    block = os.urandom(MIB)
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())


def measure(path: Path, size: int, op: str, block: int, depth: int, *more: str) -> dict:
    """One job; `more` are options of fio: how long it goes on, what it syncs."""
    argv = ["fio", "--name=limit", f"--filename={path}", f"--size={size}", f"--bs={block}", "--direct=1"]
    argv += ["--ioengine=io_uring", f"--rw={op}", f"--iodepth={depth}", "--output-format=json", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise BenchError(f"fio: {done.stderr.strip()[-300:]}")
    job = json.loads(done.stdout)["jobs"][0]
    side = job[op]
    gb, wall = side["io_bytes"] / 1e9, side["runtime"] / 1e3
    percentiles = side["clat_ns"]["percentile"]
    return {
        "GBps": gb / wall,
        "p50_us": percentiles["50.000000"] / 1e3,
        "p99_us": percentiles["99.000000"] / 1e3,
        "cpu_s_per_GB": (job["usr_cpu"] + job["sys_cpu"]) / 100 * wall / gb,
        "others": 0.0,
    }
