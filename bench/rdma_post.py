"""bench rdma_post: instructions, locks and verbs calls of a slice over RDMA, counted by callgrind over a fake fabric."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.context import Context
from bench.pairs import BenchError
from bench.raw import program
from bench.report import Report, Table
from bench.targets import Bound, Verdict, limit_of

# How many rounds are counted: the difference of two runs, so that opening, and what ends a run, does not count.
CASES = {
    "lane-64k": (100, 300),
    "lane-4k": (100, 300),
    "lane-gather": (20, 60),
    "sync-4k": (200, 600),
    "sync-1m": (50, 150),
    "sync-4m": (20, 60),
    "sync-4m-8rails": (20, 60),
    "sync-blocks": (50, 150),
    "submit-1m": (50, 150),
}
QUICK = ("lane-64k", "sync-1m")
WHERE = (("tests/fake/", "fabric"), ("src/xport/", "transport"), ("src/engine/", "engine"), ("src/", "engine"))
LINE = re.compile(r"^(fl|fi|fe|fn|cfn|cfi|cfl|calls)=(.*)$")
LOCK = "pthread_mutex_lock"


class Profile:
    """Self cost of each part of the program, and what its calls into the C library cost it."""

    def __init__(self, text: str) -> None:
        self.cost: Counter[str] = Counter()
        self.locks = 0
        self.names: dict[tuple[str, str], str] = {}
        self.files: dict[str, str] = {}  # of functions
        self.edges: list[tuple[str, str, int, int]] = []
        self.selves: list[tuple[str, int]] = []
        self.read(text)
        self.add_up()

    def name(self, kind: str, text: str) -> str:
        """Names are given once as "(7) name" and then as "(7)"."""
        number, _, full = text.partition(" ")
        if full:
            self.names[kind, number] = full
        return self.names.get((kind, number), number)

    def read(self, text: str) -> None:
        file = function = callee = ""
        calls = 0
        for line in text.splitlines():
            found = LINE.match(line)
            if found:
                key, value = found.groups()
                if key in ("fl", "cfl", "cfi"):
                    name = self.name("file", value)
                    file = name if key == "fl" else file
                elif key in ("fi", "fe"):
                    self.name("file", value)
                elif key == "fn":
                    function = self.name("fn", value)
                    self.files[function] = file
                elif key == "cfn":
                    callee = self.name("fn", value)
                else:
                    calls = int(value.split()[0])
            elif line and (line[0].isdigit() or line[0] in "+-*"):
                cost = int(line.split()[1])
                if calls:
                    self.edges.append((function, callee, calls, cost))
                    calls = 0
                else:
                    self.selves.append((function, cost))

    def part(self, function: str) -> str:
        file = self.files.get(function, "")
        for folder, part in WHERE:
            if folder in file:
                return part
        return "program" if "bench/" in file else "libc"

    def add_up(self) -> None:
        for function, cost in self.selves:
            part = self.part(function)
            if part != "libc":
                self.cost[part] += cost
        for caller, callee, calls, cost in self.edges:
            part = self.part(caller)
            if part not in ("libc", "fabric") and self.part(callee) == "libc":
                self.cost[part] += cost
                self.locks += calls if LOCK in callee else 0


def profile(tool: Path, name: str, rounds: int) -> tuple[Profile, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(tool), name, str(rounds)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise BenchError(done.stderr.strip()[-400:] or f"rdma_post_bench: code {done.returncode}")
        counted: dict[str, Any] = json.loads(done.stdout)
        return Profile(out.read_text()), counted


def measure(tool: Path, name: str) -> dict[str, Any]:
    few, many = CASES[name]
    low, _ = profile(tool, name, few)
    high, found = profile(tool, name, many)
    slices = found["slices"] * (many - few) / many
    for part in ("transport", "engine"):
        found[part] = (high.cost[part] - low.cost[part]) / slices
    found["locks"] = (high.locks - low.locks) / slices
    return found


def run(ctx: Context) -> Report:
    report = Report("rdma_post", "Instructions of a slice over RDMA")
    if not shutil.which("valgrind"):
        raise BenchError("valgrind is not installed (package valgrind)")
    tool = program("rdma_post_bench")
    names = QUICK if ctx.is_quick else tuple(CASES)
    ctx.progress.phase("rdma_post: counting", len(names))
    header = ["case", "transport", "engine", "doorbells", "requests", "signalled", "polls", "locks", "allocations"]
    table = Table("Of one slice: instructions, verbs calls, locks, allocations", header, [])
    for name in names:
        ctx.progress.step(name)
        found = measure(tool, name)
        report.raw.append(found)
        n = found["slices"]
        row = [f"{found['transport']:.0f}", f"{found['engine']:.0f}"]
        row += [f"{found[key] / n:.3f}" for key in ("posts", "requests", "signalled", "polls")]
        table.rows.append([name, *row, f"{found['locks']:.3f}", f"{found['allocations'] / n:.3f}"])
        report.verdicts += verdicts(found)
    ctx.progress.clear()
    report.tables.append(table)
    report.notes.append("Counted, not timed: the fabric's own instructions, which a driver's would replace, are left out.")
    return report


def verdicts(found: dict[str, Any]) -> list[Verdict]:
    name, n = found["case"], found["slices"]
    out: list[Verdict] = []
    if name.startswith("lane") and name != "lane-gather":
        none, lock = Bound(name, "allocations a slice", "<="), Bound(name, "locks a slice", "<=")
        sign = Bound(name, "signalled a slice", "<=", offset=1 / 16)
        out.append(Verdict(name, none, found["allocations"] / n, limit_of(none, [])))
        out.append(Verdict(name, lock, found["locks"], limit_of(lock, [])))
        out.append(Verdict(name, sign, found["signalled"] / n, limit_of(sign, [])))
    return out
