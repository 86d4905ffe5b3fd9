"""Medians, spreads and how numbers are written. Pure functions; tests/py/test_bench_stats.py covers them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
METRICS = ("GBps", "p50_us", "p99_us", "cpu_s_per_GB")


@dataclass(frozen=True)
class Summary:
    """Repetitions of one case on one column."""

    count: int
    values: dict[str, float]  # metric -> median over the quieter half of the repetitions
    low: dict[str, float]  # over all repetitions
    high: dict[str, float]

    def __getitem__(self, metric: str) -> float:
        return self.values[metric]


def quieter_half(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The half of the repetitions during which unrelated processes used least CPU; all of them when there are few.

    The choice looks at the others' CPU only, never at the result.
    """
    if len(rows) <= 2:
        return list(rows)
    return sorted(rows, key=lambda r: r["others"])[: (len(rows) + 1) // 2]


def summarize(rows: Sequence[dict[str, Any]], metrics: Sequence[str] = METRICS) -> Summary:
    if not rows:
        raise ValueError("no repetition to summarize")
    quiet = quieter_half(rows)
    return Summary(
        count=len(rows),
        values={m: statistics.median(r[m] for r in quiet) for m in metrics},
        low={m: min(r[m] for r in rows) for m in metrics},
        high={m: max(r[m] for r in rows) for m in metrics},
    )


@dataclass(frozen=True)
class Spread:
    """Ratios of one thing against itself: what a ratio of 1 looks like in this run."""

    geomean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.geomean:.2f} [{self.low:.2f}-{self.high:.2f}]"


def spread(ratios: Sequence[float]) -> Spread | None:
    kept = [r for r in ratios if math.isfinite(r) and r > 0]
    if not kept:
        return None
    return Spread(statistics.geometric_mean(kept), min(kept), max(kept), len(kept))


def size_text(size: int) -> str:
    """4 KiB, 1 MiB, 100 B: the largest unit that leaves a whole number."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def number_text(value: float) -> str:
    """Three significant digits, no exponent."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 5)}f}"
