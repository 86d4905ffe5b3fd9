"""Prometheus' text format, as our servers write it: samples by name and labels, quantiles of histograms."""

from __future__ import annotations

import re
from collections.abc import Iterator

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\.|[^"\\])*)"')


def parse(text: str) -> Samples:
    """{name: {labels: value}}; a line that is no sample is a ValueError."""
    found: Samples = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if not match:
            raise ValueError(f"no sample: {line!r}")
        name, labels, value = match.groups()
        pairs = tuple((key, re.sub(r"\\(.)", r"\1", text)) for key, text in _LABEL.findall(labels or ""))
        found.setdefault(name, {})[pairs] = float(value)
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples of a name that have these labels; 0 without any."""
    wanted = set(labels.items())
    return sum(n for pairs, n in samples.get(name, {}).items() if wanted <= set(pairs))


def label_values(samples: Samples, name: str, label: str) -> list[str]:
    return sorted({text for pairs in samples.get(name, {}) for key, text in pairs if key == label})


def _buckets(samples: Samples, name: str, wanted: set[tuple[str, str]]) -> Iterator[tuple[float, float]]:
    for pairs, n in samples.get(f"{name}_bucket", {}).items():
        if wanted <= set(pairs):
            yield float(dict(pairs)["le"]), n


def quantile(was: Samples, now: Samples, name: str, q: float, **labels: str) -> float | None:
    """Upper bound of the bucket where the quantile of what came between two scrapes lies; None when nothing came."""
    before = dict(_buckets(was, name, set(labels.items())))
    counts = sorted((le, n - before.get(le, 0)) for le, n in _buckets(now, name, set(labels.items())))
    if not counts or counts[-1][1] <= 0:
        return None
    return next(le for le, n in counts if n >= q * counts[-1][1])
