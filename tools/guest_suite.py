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
# With one device, with two and faults, and what several devices or nodes may change: the whole of it, with kills and a
# thousand lanes, takes minutes a time: --long.
RDMA_ONE = ["conform rdma --case bytes"]
RDMA_TWO = ["conform rdma-fault --case bytes"]
FILES = ["api_stage_test rdma"]
RDMA = ["conform rdma --case sweep", "conform rdma --case slices", "conform rdma --case signal"]
RDMA_NUMA = ["conform rdma --case bytes", "conform rdma --case signal"]
FLAP = f"{ROOT}/tests/guest/inside/flap"
PROGRAM_LIMIT_S, LONG_LIMIT_S = 150, 900


def programs(name: str, build: str, log_dir: Path, limit_s: float, options: list[str], wanted: list[str]) -> list[Result]:
    """Test programs of the build ("unit NAME", "conform TRANSPORT" or another of tests/conform), in one guest; each of
    their functions is a test. What stands before a "|" is put before the command.
    """
    out = log_dir / f"guest-{name}.jsonl"
    out.unlink(missing_ok=True)
    titles: dict[str, str] = {}
    for text in wanted:
        first, _, rest = text.rpartition("|")
        folder, program = rest.split(" ", 1) if rest.startswith("unit ") else ("conform", rest)
        titles[f"{first}{ROOT / build}/tests/{folder}/{program}"] = f"{folder}/{program}"
    argv = [RUN, "--timeout", str(limit_s), "--rw", str(log_dir), *options, "--"]
    each_s = LONG_LIMIT_S if name.startswith("long-") else PROGRAM_LIMIT_S
    argv += [sys.executable, "-B", "tests/guest/inside/programs.py", str(out), str(each_s), *titles]
    env = suites.tool_env({"CMOCKA_MESSAGE_OUTPUT": "TAP"})
    code, output = suites.run_logged(argv, log_dir / f"guest-{name}.log", limit_s + 60, env)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    results = []
    for row in rows:
        results += suites.tap_results(f"guest {name} {titles[row['name']]}", row)
    if len(rows) < len(wanted) or (code != 0 and not any(r.status == FAILED for r in results)):
        results.append(Result(f"guest {name}", FAILED, suites.tail(output)))
    return results


def on(devices: int, wanted: list[str], is_flapping: bool = False) -> list[str]:
    """From the first of so many devices to the last; the cable of one between them is pulled and plugged meanwhile."""
    names = ",".join(f"rxe{i}" for i in range(devices))
    flap = f"{FLAP} 1 " if is_flapping else ""
    return [f"env MC_CONFORM_RDMA={names} API_DEVICES={names} {flap}|{text}" for text in wanted]


def whole(build: str, log_dir: Path) -> list[Result]:
    """The conformance suite over RDMA with 1, 2 and 4 devices, a cable that comes and goes, faults, and two nodes."""
    results = []
    for name, options, wanted in (
        ("1", ["--nics", "1"], on(1, ["conform rdma"])),
        ("2", ["--nics", "2"], on(2, ["conform rdma", "conform rdma-fault"])),
        ("4", ["--nics", "4"], on(4, ["conform rdma", "conform rdma-fault"], is_flapping=True)),
        ("numa", ["--nics", "2", "--numa", "2"], on(2, ["conform rdma"])),
    ):
        results += programs(f"long-{name}", build, log_dir, LONG_LIMIT_S * len(wanted), options, wanted)
    return results


def inside(name: str, log_dir: Path, limit_s: float, options: list[str]) -> list[Result]:
    """tests/guest/inside/NAME.py by pytest in a guest of its own."""
    wrapper = [RUN, "--timeout", str(limit_s), "--rw", str(log_dir), *options, "--"]
    return suites.pytest_tests(f"tests/guest/inside/{name}.py", log_dir, limit_s + 60, [], wrapper)


def run(build: str, log_dir: Path, limit_s: float, wants_whole: bool = False) -> list[Result]:
    code, said = suites.run_logged([RUN, "--check"], log_dir / "guest-check.log", 60)
    if code != 0:
        in_ci = os.environ.get("CI") == "true"
        return [Result("guest machine", FAILED if in_ci else SKIPPED, suites.tail(said, 3))]
    end = time.monotonic() + limit_s
    results = suites.pytest_tests("tests/guest/test_guest_run.py", log_dir, limit_s, [])
    for step in (
        lambda left: programs(
            "smoke",
            build,
            log_dir,
            left,
            ["--nics", "2"],
            [*SMOKE, *on(1, RDMA_ONE), *on(2, RDMA_TWO), *on(2, FILES)],
        ),
        lambda left: programs("rdma", build, log_dir, left, ["--nics", "4"], on(4, RDMA, is_flapping=True)),
        lambda left: programs("rdma-numa", build, log_dir, left, ["--nics", "2", "--numa", "2"], on(2, RDMA_NUMA)),
        lambda left: inside("test_nvme", log_dir, left, ["--nics", "0", "--nvme"]),
        lambda left: inside("test_rdma", log_dir, left, ["--nics", "8"]),
        lambda left: inside("test_mixed_rdma", log_dir, left, ["--nics", "4"]),
    ):
        results += step(max(60.0, end - time.monotonic()))
    return results + (whole(build, log_dir) if wants_whole else [])
