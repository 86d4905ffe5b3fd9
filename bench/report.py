"""What a bench program hands back, and how it reaches the terminal, a JSON file, a picture and docs/performance.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.targets import VERDICT_HEADER, Verdict


@dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Report:
    """The outcome of one program. `raw` keeps every repetition."""

    what: str
    title: str
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    svg: str | None = None

    @property
    def all_tables(self) -> list[Table]:
        if not self.verdicts:
            return self.tables
        counts = {o: sum(v.outcome == o for v in self.verdicts) for o in ("pass", "miss", "FAIL", "not measured")}
        title = "Targets: " + ", ".join(f"{n} {o}" for o, n in counts.items() if n)
        return [*self.tables, Table(title, VERDICT_HEADER, [v.row for v in self.verdicts])]


@dataclass(frozen=True)
class Machine:
    """Where and of what a run was made."""

    date: str
    commit: str
    cpu: str
    cores: int
    kernel: str
    load: float
    command: str

    @staticmethod
    def here(root: Path, argv: Sequence[str]) -> Machine:
        with open("/proc/cpuinfo") as f:
            models = [line.split(":", 1)[1].strip() for line in f if line.startswith(("model name", "CPU implementer"))]
        return Machine(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            commit=commit(root),
            cpu=models[0] if models else platform.machine(),
            cores=os.cpu_count() or 1,
            kernel=platform.release(),
            load=os.getloadavg()[0],
            command=" ".join(["./run bench", *argv]),
        )

    def __str__(self) -> str:
        return (
            f"{self.date}, commit {self.commit}, {self.cores} x {self.cpu}, Linux {self.kernel}, "
            f"load {self.load:.1f} at the start"
        )


def commit(root: Path) -> str:
    argv = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:  # no git here
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def markdown(table: Table) -> str:
    lines = [f"**{table.title}**", ""]
    lines += ["| " + " | ".join(row) + " |" for row in (table.header, ["---"] * len(table.header), *table.rows)]
    return "\n".join(lines)


def plain(table: Table) -> str:
    widths = [max(len(row[i]) for row in (table.header, *table.rows)) for i in range(len(table.header))]
    out = [table.title]
    for row in (table.header, ["-" * w for w in widths], *table.rows):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        out.append("  " + "  ".join(cells).rstrip())
    return "\n".join(out)


def show(report: Report) -> None:
    print(f"\n{report.title}\n{'=' * len(report.title)}")
    for note in report.notes:
        print(f"note: {note}")
    for table in report.all_tables:
        print("\n" + plain(table))
    sys.stdout.flush()


def write_json(path: Path, machine: Machine, reports: Sequence[Report]) -> None:
    def verdict(v: Verdict) -> dict[str, Any]:
        return {**asdict(v), "outcome": v.outcome, "target": str(v.bound)}

    document = {
        "machine": asdict(machine),
        "reports": [
            {
                "what": r.what,
                "tables": [asdict(t) for t in r.tables],
                "verdicts": [verdict(v) for v in r.verdicts],
                "notes": r.notes,
                "raw": r.raw,
            }
            for r in reports
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def markers(what: str) -> tuple[str, str]:
    return f"<!-- bench {what} -->", f"<!-- end {what} -->"


def prepare_page(path: Path, programs: Sequence[str]) -> None:
    """See that `path` has a section for each of `programs`; a page that is not there is made, with empty sections.
    Raises ValueError when one that is there lacks a section, OSError when it cannot be made."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# Measured\n" + "\n".join("\n".join(markers(what)) + "\n" for what in programs))
        return
    text = path.read_text()
    for what in programs:
        begin, end = markers(what)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"{path} has no section between {begin!r} and {end!r}")


def update_page(path: Path, machine: Machine, report: Report, picture: str | None) -> None:
    """Replace the section of `report` in a page that prepare_page() accepts."""
    prepare_page(path, [report.what])
    begin, end = markers(report.what)
    parts = [f"Measured {machine}.\n`{machine.command}`"]
    if picture:
        parts.append(f"![{report.title}]({picture})")
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    parts += [markdown(table) for table in report.all_tables]
    before, rest = path.read_text().split(begin)
    path.write_text(before + begin + "\n" + "\n\n".join(parts) + "\n" + end + rest.split(end)[1])


class Progress:
    """One line that is overwritten on a terminal; elsewhere only the phases, a line each."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.total = self.done = 0

    def phase(self, text: str, steps: int = 0) -> None:
        self.clear()
        self.total, self.done = steps, 0
        print(text, file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        self.done += 1
        if self.is_terminal:
            count = f"[{self.done}/{self.total}] " if self.total else ""
            print(f"\r\033[K{count}{text}"[:110], end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
