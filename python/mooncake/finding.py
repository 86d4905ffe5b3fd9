"""What a check of `mooncake doctor` found, and helpers that its checks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass
class Finding:
    """One check's result. `fix` is empty when there is nothing to mend."""

    name: str
    status: str
    found: str
    fix: str = ""


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def read(path: str, root: Path) -> str | None:
    """A file of the kernel's; None when it is not there or cannot be read."""
    try:
        return (root / path.lstrip("/")).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
