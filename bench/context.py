"""What every bench program gets: the interpreters, the sizes, where to put logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.pairs import MIB, BenchError, Impl, Pair, Place
from bench.report import Progress
from bench.targets import NIXL_SHM, NIXL_TCP, OURS_FOREIGN, OURS_SHM, OURS_TCP, UPSTREAM

# NIXL's devices: loopback, unless a program puts the ends into namespaces of their own.
LOOPBACK = {"UCX_NET_DEVICES": "lo"}
TCP_ONLY = {"MC_FORCE_TCP": "1"}


@dataclass
class Context:
    ours: str | None  # interpreters; None: not there, and `missing` says why
    upstream: str | None
    nixl: str | None
    missing: list[str]
    reps: int
    secs: float
    is_quick: bool
    results: Path
    progress: Progress = field(default_factory=Progress)
    pool: int = 256 * MIB
    files: list[Path] = field(default_factory=list)  # traces
    unchecked: str | None = None  # our own without checksums

    @property
    def logs(self) -> Path:
        return self.results / "logs"

    def columns(self) -> list[Impl]:
        """The implementations of the transfer table; ours over every path, so that the paths stand side by side."""
        out = []
        if self.ours:
            out.append(Impl(OURS_TCP, self.ours, env=TCP_ONLY, is_network=True))
            out.append(Impl(OURS_SHM, self.ours, alloc="managed"))
            out.append(Impl(OURS_FOREIGN, self.ours))
        if self.upstream:
            out.append(Impl(UPSTREAM, self.upstream, env=TCP_ONLY, is_network=True))
        if self.nixl:
            out.append(Impl(NIXL_TCP, self.nixl, backend="nixl", env={**LOOPBACK, "UCX_TLS": "tcp"}, is_network=True))
            out.append(Impl(NIXL_SHM, self.nixl, backend="nixl", env=LOOPBACK))
        return out

    def one_each(self) -> list[Impl]:
        """One column an implementation, with its own defaults; for the programs that are not about the path."""
        out = []
        if self.ours:
            out.append(Impl("ours", self.ours))
        if self.upstream:
            out.append(Impl("upstream", self.upstream))
        if self.nixl:
            out.append(Impl("nixl", self.nixl, backend="nixl", env=LOOPBACK))
        return out

    def open(
        self, impl: Impl, failed: Callable[[str], None], pool: int | None = None, place: Place = Place()
    ) -> Pair | None:
        """A pair, or None after telling `failed` why there is none."""
        try:
            return Pair(impl, self.pool if pool is None else pool, self.logs, place)
        except BenchError as error:
            failed(f"{impl.name} does not start: {error}")
            return None
