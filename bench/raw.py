"""Builds the C programs of the benchmarks, and runs the tests of limits.c."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.pairs import HERE, BenchError

SOURCES = ("limits.c", "limits_tcp.c")
FIRST_PORT = 17100
FLAGS = ("-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-pthread")


def cache_dir() -> Path:
    return Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache" / "mooncake-c")


def program(name: str) -> Path:
    """One of bench/meson.build, optimized, in the cache; quick when nothing has changed. A build knows its sources by
    their path, so each checkout has one of its own."""
    checkout = hashlib.sha256(str(HERE.parent).encode()).hexdigest()[:16]
    folder, tools = cache_dir() / "bench" / f"programs-{checkout}", Path(sys.executable).parent
    steps = [[str(tools / "ninja"), "-C", str(folder), f"bench/{name}"]]
    if not (folder / "build.ninja").exists():
        setup = [str(tools / "meson"), "setup", "--buildtype=release", str(folder), str(HERE.parent)]
        steps.insert(0, setup)
    for argv in steps:
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchError(f"cannot build {name}: {(done.stderr or done.stdout).strip()[-400:]}")
    return folder / "bench" / name


def build() -> Path:
    """The program, from the cache when these sources were built before."""
    compiler = os.environ.get("CC", "cc")
    texts = [(HERE / name).read_bytes() for name in (*SOURCES, "limits.h")]
    key = hashlib.sha256(b"\0".join([compiler.encode(), " ".join(FLAGS).encode(), *texts])).hexdigest()[:16]
    program = cache_dir() / "bench" / f"limits-{key}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    argv = [compiler, *FLAGS, *(str(HERE / s) for s in SOURCES), "-o", str(partial)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"cannot build the raw programs: {done.stderr.strip()[-400:]}")
    partial.replace(program)
    return program


class Limits:
    def __init__(self, pool: int) -> None:
        self.program = build()
        self.pool = pool
        self.runs = 0

    def run(self, test: str, secs: float, *arguments: object) -> dict[str, Any]:
        """One test, e.g. run("tcp", 0.4, "-w", "-s", 4096). Raises BenchError."""
        self.runs += 1
        port = FIRST_PORT + self.runs * 7 % 700
        argv = [str(self.program), test, "-d", secs, "-P", self.pool, "-p", port, *arguments]
        try:
            done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=60 + 4 * secs)
        except subprocess.TimeoutExpired:
            raise BenchError(f"limits {test}: no answer") from None
        if done.returncode != 0:
            raise BenchError(done.stderr.strip() or f"limits {test}: code {done.returncode}")
        return json.loads(done.stdout)
