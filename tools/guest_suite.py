"""The suite "guest" of testall.py: guest-run's own tests, then the tree's programs and tests inside guests.

A guest costs 5 to 20 s until it runs anything, and all in it is emulated: one guest for many tests, and only tests
that need one: the kernel's RDMA and NVMe, and what must hold beside them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import suites
from suites import FAILED, ROOT, SKIPPED, Result

RUN = "tests/guest/guest-run"
SMOKE = ["conform self", "conform file", "conform shm-vm", "unit xport-file_test", "unit xport-tcp_test"]
# What several devices or nodes may change: the whole of it, with kills and a thousand lanes, takes minutes here.
RDMA = ["conform rdma --case sweep", "conform rdma --case slices", "conform rdma --case signal"]
RDMA_NUMA = ["conform rdma --case bytes", "conform rdma --case signal"]
FLAP = f"{ROOT}/tests/guest/inside/flap"
PROGRAM_LIMIT_S = 150


def programs(
    name: str, build: str, log_dir: Path, limit_s: float, options: list[str], wanted: list[str], first: str = ""
) -> list[Result]:
    """Test programs of the build ("unit NAME", or "conform TRANSPORT"), in one guest; each of their functions is a test.

    `first` is put before each command.
    """
    out = log_dir / f"guest-{name}.jsonl"
    out.unlink(missing_ok=True)
    commands = []
    for text in wanted:
        folder, program = text.split(" ", 1) if text.startswith("unit ") else ("conform", text)
        commands.append(f"{first}{ROOT / build}/tests/{folder}/{program}")
    argv = [RUN, "--timeout", str(limit_s), "--rw", str(log_dir), *options, "--"]
    argv += [sys.executable, "-B", "tests/guest/inside/programs.py", str(out), str(PROGRAM_LIMIT_S), *commands]
    env = suites.tool_env({"CMOCKA_MESSAGE_OUTPUT": "TAP"})
    code, output = suites.run_logged(argv, log_dir / f"guest-{name}.log", limit_s + 60, env)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    results = []
    for row in rows:
        title = row["name"].removeprefix(f"{first}{ROOT / build}/tests/")
        results += suites.tap_results(f"guest {name} {title}" if first else f"guest {title}", row)
    if len(rows) < len(wanted) or (code != 0 and not any(r.status == FAILED for r in results)):
        results.append(Result(f"guest {name}", FAILED, suites.tail(output)))
    return results


def devices(n: int) -> str:
    return ",".join(f"rxe{i}" for i in range(n))


def inside(name: str, log_dir: Path, limit_s: float, options: list[str]) -> list[Result]:
    """tests/guest/inside/NAME.py by pytest in a guest of its own."""
    wrapper = [RUN, "--timeout", str(limit_s), "--rw", str(log_dir), *options, "--"]
    return suites.pytest_tests(f"tests/guest/inside/{name}.py", log_dir, limit_s + 60, [], wrapper)


def run(build: str, log_dir: Path, limit_s: float) -> list[Result]:
    code, said = suites.run_logged([RUN, "--check"], log_dir / "guest-check.log", 60)
    if code != 0:
        in_ci = os.environ.get("CI") == "true"
        return [Result("guest machine", FAILED if in_ci else SKIPPED, suites.tail(said, 3))]
    end = time.monotonic() + limit_s
    results = suites.pytest_tests("tests/guest/test_guest_run.py", log_dir, limit_s, [])
    for step in (
        lambda left: programs("smoke", build, log_dir, left, ["--nics", "2"], SMOKE),
        # From the first device to the last; the cable of one between them is pulled and plugged meanwhile.
        lambda left: programs(
            "rdma", build, log_dir, left, ["--nics", "4"], RDMA, f"env MC_CONFORM_RDMA={devices(4)} {FLAP} 1 "
        ),
        lambda left: programs(
            "rdma-numa",
            build,
            log_dir,
            left,
            ["--nics", "2", "--numa", "2"],
            RDMA_NUMA,
            f"env MC_CONFORM_RDMA={devices(2)} ",
        ),
        lambda left: inside("test_nvme", log_dir, left, ["--nics", "0", "--nvme"]),
        lambda left: inside("test_rdma", log_dir, left, ["--nics", "8"]),
        lambda left: inside("test_mixed_rdma", log_dir, left, ["--nics", "4"]),
    ):
        results += step(max(60.0, end - time.monotonic()))
    return results
