"""What each row has to reach, in one table, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bench.stats import KIB, MIB, number_text, size_text

# Columns. A target names ours and what it is compared with.
OURS_TCP, OURS_SHM, OURS_FOREIGN = "ours tcp", "ours shm", "ours foreign"
UPSTREAM, NIXL_TCP, NIXL_SHM = "upstream", "nixl tcp", "nixl shm"
RAW_TCP, RAW_TCP2, RAW_TCP4 = "raw tcp", "raw tcp x2", "raw tcp x4"
PROCESS_VM, MEMFD = "process_vm", "memfd nt"
REDIS, MEMCACHED = "redis", "memcached"
RAW_BEST = (RAW_TCP, RAW_TCP2, RAW_TCP4)

GBPS, P50, P99, CPU = "GBps", "p50_us", "p99_us", "cpu_s_per_GB"
UNITS = {GBPS: "GB/s", P50: "p50 us", P99: "p99 us", CPU: "CPU s/GB", "keys_s": "keys/s", "cpu_us_per_key": "CPU us/key"}


class Case(NamedTuple):
    op: str
    block: int
    batch: int
    threads: int

    def __str__(self) -> str:
        text = f"{self.op} {size_text(self.block)}"
        if self.batch > 1:
            text += f" x {self.batch}"
        return text + (f", {self.threads} threads" if self.threads > 1 else "")


@dataclass(frozen=True)
class Bound:
    """`value (<= or >=) factor x best(references) + offset`; without references the offset alone."""

    column: str
    metric: str
    sense: str
    factor: float = 0
    references: tuple[str, ...] = ()
    offset: float = 0

    def __str__(self) -> str:
        text = ""
        if self.references:
            name = self.references[0] if len(self.references) == 1 else f"best {self.references[0]} x1, x2, x4"
            text = f"{self.factor:g} x {name}"
        if self.offset or not self.references:
            text += f"{' + ' if text else ''}{self.offset:g}"
        return f"{self.sense} {text}"


def at_least(column: str, factor: float, *references: str) -> Bound:
    return Bound(column, GBPS, ">=", factor, references)


def at_most(column: str, metric: str, factor: float, *references: str, offset: float = 0) -> Bound:
    return Bound(column, metric, "<=", factor, references, offset)


# (block, batch, threads) -> bounds; they hold for write and read.
TRANSFER: dict[tuple[int, int, int], list[Bound]] = {
    (4 * KIB, 1, 1): [
        at_most(OURS_TCP, P50, 0.5, UPSTREAM),
        at_most(OURS_TCP, CPU, 0.5, UPSTREAM),
        at_most(OURS_SHM, P50, 0, offset=2),
        at_most(OURS_FOREIGN, P50, 0, offset=3.5),
    ],
    (64 * KIB, 1, 1): [
        at_most(OURS_TCP, P50, 0.55, UPSTREAM),
        at_most(OURS_TCP, CPU, 0.45, UPSTREAM),
    ],
    (1 * MIB, 1, 1): [
        at_least(OURS_TCP, 1.5, UPSTREAM),
        at_least(OURS_TCP, 0.95, RAW_TCP),
        at_most(OURS_TCP, CPU, 0.45, UPSTREAM),
        at_most(OURS_TCP, CPU, 1.1, RAW_TCP),
        at_least(OURS_SHM, 0.9, MEMFD),
        at_most(OURS_SHM, CPU, 1.2, MEMFD),
        at_least(OURS_SHM, 2.5, NIXL_SHM),
        at_least(OURS_FOREIGN, 0.95, PROCESS_VM),
        at_least(OURS_FOREIGN, 1, NIXL_SHM),
    ],
    (16 * MIB, 1, 1): [
        at_least(OURS_TCP, 1.7, UPSTREAM),
        at_least(OURS_TCP, 0.95, *RAW_BEST),
        at_most(OURS_TCP, CPU, 0.45, UPSTREAM),
        at_least(OURS_SHM, 0.9, MEMFD),
        at_most(OURS_SHM, CPU, 1.2, MEMFD),
        at_least(OURS_SHM, 2.5, NIXL_SHM),
        at_least(OURS_FOREIGN, 0.95, PROCESS_VM),
        at_least(OURS_FOREIGN, 1, NIXL_SHM),
    ],
    (4 * KIB, 128, 1): [
        at_least(OURS_TCP, 20, UPSTREAM),
        at_least(OURS_TCP, 0.8, RAW_TCP),
        at_most(OURS_TCP, CPU, 0.04, UPSTREAM),
        at_most(OURS_SHM, P50, 1.3, MEMFD, offset=10),
        at_most(OURS_FOREIGN, P50, 1.3, PROCESS_VM, offset=10),
    ],
    (64 * KIB, 128, 1): [
        at_least(OURS_TCP, 2, UPSTREAM),
        at_least(OURS_TCP, 0.95, *RAW_BEST),
        at_most(OURS_TCP, CPU, 0.3, UPSTREAM),
    ],
    (64 * KIB, 1, 4): [
        at_least(OURS_TCP, 12, UPSTREAM),
        at_most(OURS_TCP, P99, 0, offset=1000),
        at_most(OURS_TCP, CPU, 0.08, UPSTREAM),
    ],
}

KEYS, CPU_KEY = "keys_s", "cpu_us_per_key"


PUT_FROM, GET_INTO = "put_from", "get_into"  # from and into the caller's registered memory; put and get: bytes objects
GET_COLD = "get_into cold"  # the place of each object has to be asked for


class StoreCase(NamedTuple):
    op: str  # put, get, PUT_FROM, GET_INTO, GET_COLD, exist
    size: int
    batch: int

    def __str__(self) -> str:
        text = self.op if self.op == "exist" else f"{self.op} {size_text(self.size)}"
        return text + (f" x {self.batch}" if self.batch > 1 else "")


def faster(metric: str, factor: float, reference: str) -> Bound:
    return Bound(OURS_TCP, metric, ">=", factor, (reference,))


STORE: dict[StoreCase, list[Bound]] = {}
for _size in (4 * KIB, 64 * KIB):
    for _op in ("get", GET_INTO):
        STORE[StoreCase(_op, _size, 1)] = [
            at_most(OURS_TCP, P50, 1, MEMCACHED),
            at_most(OURS_TCP, P50, 0.35, UPSTREAM),
            at_most(OURS_TCP, CPU_KEY, 1.5, MEMCACHED),
        ]
    for _op in ("put", PUT_FROM):
        STORE[StoreCase(_op, _size, 1)] = [
            at_most(OURS_TCP, P50, 1.5, MEMCACHED),
            at_most(OURS_TCP, P50, 0.33, UPSTREAM),
            at_most(OURS_TCP, CPU_KEY, 0.3, UPSTREAM),
        ]
STORE[StoreCase(GET_INTO, 4 * KIB, 1)].append(at_most(OURS_SHM, P50, 0, offset=5))
for _op in (PUT_FROM, GET_INTO):
    for _shape, _mcd, _up in (((MIB, 1), 1.1, 2), ((16 * MIB, 1), 1, 2), ((4 * KIB, 100), 2, 8), ((64 * KIB, 32), 1, 2), ((MIB, 16), 0.9, 2)):
        STORE[StoreCase(_op, *_shape)] = [faster(GBPS, _mcd, MEMCACHED), faster(GBPS, _up, UPSTREAM)]
        if _shape[1] == 1:
            STORE[StoreCase(_op, *_shape)].append(at_most(OURS_TCP, CPU_KEY, 1, MEMCACHED))
for _op, _shape, _share in (
    (PUT_FROM, (16 * MIB, 1), 0.8), (GET_INTO, (16 * MIB, 1), 0.8), (PUT_FROM, (MIB, 16), 0.8), (GET_INTO, (MIB, 16), 0.8),
    (GET_INTO, (MIB, 1), 0.8), (GET_COLD, (MIB, 1), 0.5),
):  # fmt: skip
    STORE.setdefault(StoreCase(_op, *_shape), []).append(at_least(OURS_SHM, _share, MEMFD))
STORE[StoreCase("exist", 64, 1)] = [at_most(OURS_TCP, P50, 1, MEMCACHED)]
STORE[StoreCase("exist", 64, 100)] = [faster(KEYS, 1.5, MEMCACHED), at_most(OURS_TCP, CPU_KEY, 0, offset=0.6)]

# What CRCs cost: beside a build without them.
UNCHECKED = ", no CRC"
CHECKSUMS = tuple(
    (StoreCase(op, MIB, 1), at_least(column, share, column + UNCHECKED))
    for op in (PUT_FROM, GET_INTO) for column, share in ((OURS_TCP, 0.95), (OURS_SHM, 0.8))
)  # fmt: skip

# Single numbers of the Store.
STORE_START = Bound(OURS_TCP, "ms to the first checked object", "<=", 0.5, (UPSTREAM,))
STORE_MASTER_RSS = Bound(OURS_TCP, "RSS, MB", "<=", offset=12)
STORE_NODE_RSS = Bound(OURS_TCP, "RSS beside its data, MB", "<=", offset=16)
MASTER_LOOKUPS = Bound("master", "lookups/s of one core", ">=", offset=2e6)
MASTER_COMMITS = Bound("master", "commits/s of one core", ">=", offset=5e5)
MASTER_LOOKUP_P99 = Bound("master", "p99 of a lookup call, us", "<=", 2, ("its smallest size",))
MASTER_COMMIT_P99 = Bound("master", "p99 of a commit call, us", "<=", 2, ("its smallest size",))

# Single numbers of the other programs.
PACED_RATE = 100  # operations a second of 4 KiB over TCP
PACED_CPU = Bound("ours tcp", "CPU us/op beyond pacing", "<=", 1.2, ("raw tcp",))
IDLE_PERCENT = Bound("ours", "idle CPU, % of a core", "<=", offset=0.1)
IDLE_WAKEUPS = Bound("ours", "wake-ups/s of the busiest thread", "<=", offset=1)
REGISTER_US = Bound("ours", "us a buffer", "<=", offset=2)
FILE_GBPS = Bound("ours", GBPS, ">=", 0.9, ("fio",))
SSD_OPEN = Bound("ours", "s for 1 M objects", "<=", offset=10)
RAILS_SHARE = Bound("ours", "share of the rails' sum", ">=", offset=0.90)
RAIL_DOWN_MS = Bound("ours", "stall, ms (link down)", "<=", offset=200)
RAIL_SILENT_MS = Bound("ours", "stall, ms (silent loss)", "<=", offset=1000)
RAIL_MEANWHILE = Bound("ours", "share of the rails still up", ">=", offset=0.90)
RAIL_RECOVERY_MS = Bound("ours", "repaired rail back after, ms", "<=", offset=1000)
RDMA_GBPS = Bound("ours", GBPS, ">=", 0.92, ("perftest",))
RDMA_P50 = Bound("ours", P50, "<=", 1.2, ("perftest",))  # of a write as rdma_inside.py says
RDMA_SHARE = Bound("ours", "share of the NICs' sum", ">=", offset=0.92)
RDMA_STALL = Bound("ours", "stall, s", "<=", offset=3)  # rxe's retries with our settings end after about 2 s
RDMA_MEANWHILE = Bound("ours", "share of the sum meanwhile", ">=", offset=0.7)
RDMA_BACK = Bound("ours", "four NICs again after, s", "<=", offset=5)
RDMA_ERRORS = Bound("ours", "failed operations", "<=", offset=0)
RAIL_ERRORS = Bound("ours", "failed operations", "<=", offset=0)


@dataclass(frozen=True)
class Verdict:
    what: str
    bound: Bound
    value: float | None  # None: no figure for ours
    limit: float | None  # None: no figure for what it is compared with
    failure: str | None = None  # why ours has no figure

    @property
    def outcome(self) -> str:
        if self.failure:
            return "FAIL"
        if self.value is None or self.limit is None:
            return "not measured"
        is_met = self.value <= self.limit if self.bound.sense == "<=" else self.value >= self.limit
        return "pass" if is_met else "miss"

    @property
    def row(self) -> list[str]:
        value, limit = (number_text(x) if x is not None else "-" for x in (self.value, self.limit))
        unit = UNITS.get(self.bound.metric, self.bound.metric)
        return [self.what, self.bound.column, unit, value, str(self.bound), limit, self.failure or self.outcome]


VERDICT_HEADER = ["case", "column", "figure", "value", "target", "limit", "verdict"]

# (case, column, metric) -> figure, or None when it was not measured
Lookup = Callable[[Case, str, str], float | None]


def limit_of(bound: Bound, references: list[float | None]) -> float | None:
    """The number to compare with. The best of several references is the hardest to reach."""
    known = [r for r in references if r is not None]
    if not bound.references:
        return bound.offset
    if not known:
        return None
    best = max(known) if bound.sense == ">=" else min(known)
    return bound.factor * best + bound.offset


def judge(
    what: str, bound: Bound, value: float | None, *references: float | None, failure: str | None = None
) -> Verdict:
    return Verdict(what, bound, value, limit_of(bound, list(references)), failure)


def judge_transfer(cases: list[Case], lookup: Lookup, failure: Callable[[Case, str], str | None]) -> list[Verdict]:
    verdicts = []
    for case in cases:
        for bound in TRANSFER.get((case.block, case.batch, case.threads), []):
            references = [lookup(case, column, bound.metric) for column in bound.references]
            value = lookup(case, bound.column, bound.metric)
            verdicts.append(judge(str(case), bound, value, *references, failure=failure(case, bound.column)))
    return verdicts
