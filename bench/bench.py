#!/usr/bin/env python3
"""The benchmarks of ./run bench: ours beside upstream's wheel, NIXL and what the machine can do at best."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # run as a script: `bench` is the package, not this file

from bench.context import Context
from bench.pairs import HERE, BenchError, can_import
from bench.raw import cache_dir
from bench.report import Machine, Progress, Report, prepare_page, show, update_page, write_json

PROGRAMS = {
    "transfer": "GB/s, latency and CPU of transfers between two processes, against every peer and limit",
    "rails": "four shaped TCP rails: share of their sum, link down, silent loss (root)",
    "rdma": "RDMA in an emulated guest, against perftest and upstream (tests/guest)",
    "store": "objects in the Store, beside upstream's, Redis and memcached",
    "register": "registering up to 10,000 buffers",
    "idle": "CPU and wake-ups of connected engines that do nothing, and CPU at 100 operations/s",
    "rpc": "control calls against a raw ping-pong, and the cost of their messages",
    "file": "a file segment against fio with O_DIRECT",
    "limits": "the raw programs alone",
    "coll": "collectives: ours, Gloo and Open MPI; SIGKILL of a rank and its replacement",
    "ep": "dispatch and combine of expert parallelism: ours, and composed from Gloo's all_to_all",
    "rdma_post": "instructions, locks and verbs calls of a slice over RDMA, counted (valgrind)",
    "index": "the Store's index alone: lookups, commits and bytes of an object on one core",
    "ssd": "the SSD tier's log against fio with O_DIRECT, and how long it takes to open",
    "trace": "eviction policies on request traces: trace [FILE.jsonl ...], else a generated one",
}
PEER_NAMES = ("upstream", "nixl")
UNCHECKED = "unchecked"  # ours, built without checksums: a column of the Store


def parse(argv: list[str]) -> argparse.Namespace:
    programs = "\n".join(f"  {name:10} {text}" for name, text in PROGRAMS.items())
    ap = argparse.ArgumentParser(
        prog="./run bench",
        description=f"{__doc__}\n\nprograms (default: transfer):\n{programs}\n  all        every one of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ap.add_argument("what", nargs="*", default=["transfer"], metavar="program")
    ap.add_argument("--reps", type=int, help="repetitions (default 7; 1 with --quick)")
    ap.add_argument("--secs", type=float, help="seconds a measurement (default 0.4; 0.1 with --quick)")
    ap.add_argument("--quick", action="store_true", help="few cases, one short repetition: does it run at all")
    ap.add_argument("--json", type=Path, metavar="FILE", help="write every repetition there")
    ap.add_argument("--svg", type=Path, metavar="DIR", help="write pictures there (default: beside --out, if given)")
    ap.add_argument(
        "--out", type=Path, metavar="PAGE", help="write to the sections of this page, e.g. docs/performance.md, or a new one"
    )
    ap.add_argument("--no-peers", action="store_true", help="do not install missing peers; leave their columns out")
    defaults = {"ours": "this one", **dict.fromkeys((*PEER_NAMES, UNCHECKED), "installed on demand")}
    for name, text in defaults.items():
        ap.add_argument(f"--{name}", metavar="PYTHON", help=f"interpreter that has it, or 'none' (default: {text})")
    args = ap.parse_args(argv)
    args.files = [Path(w) for w in args.what if w.endswith(".jsonl")]
    args.what = [w for w in args.what if not w.endswith(".jsonl")]
    if args.files and args.what != ["trace"]:
        ap.error("FILE.jsonl goes with the program trace alone")
    if "all" in args.what:
        args.what = list(PROGRAMS)
    unknown = [w for w in args.what if w not in PROGRAMS]
    if unknown:
        ap.error(f"no program {unknown[0]!r}; there are {', '.join(PROGRAMS)}, all")
    args.reps = args.reps or (1 if args.quick else 7)
    args.secs = args.secs or (0.1 if args.quick else 0.4)
    if args.reps < 1 or not 0.01 <= args.secs <= 600:
        ap.error("want --reps of at least 1 and --secs of 0.01 to 600")
    if args.out:  # before anything is measured for nothing
        try:
            prepare_page(args.out, args.what)
        except (ValueError, OSError) as error:
            ap.error(f"--out: {error}")
    return args


def peer_python(name: str, chosen: str | None, may_install: bool, missing: list[str]) -> str | None:
    """The peer's interpreter, installed when it is missing; None, with a note, when there is none."""
    if chosen == "none":
        missing.append(f"{name}: left out on request.")
        return None
    python = chosen or str(cache_dir() / "peers" / name / "bin" / "python")
    if not chosen and may_install:
        done = subprocess.run([str(HERE / "peers.sh"), name], stdout=sys.stderr, env={**os.environ, "PYTHON": sys.executable})
        if done.returncode != 0:
            missing.append(f"{name}: cannot be installed here, so its columns are missing.")
            return None
    why = can_import(python, "nixl._api" if name == "nixl" else "mooncake.engine")
    if why:
        missing.append(f"{name}: not available ({why}).")
        return None
    return python


def has_our_distribution() -> bool:
    """Upstream's wheel has the same import name: it must not be measured under our name."""
    try:
        importlib.metadata.version("mooncake-c")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def our_python(chosen: str | None, missing: list[str]) -> str | None:
    if chosen == "none":
        missing.append("ours: left out on request.")
        return None
    python = chosen or sys.executable
    why = can_import(python, "mooncake.engine")
    if not why and not chosen and not has_our_distribution():
        why = "this interpreter's mooncake.engine is not of the distribution mooncake-c"
    if why:
        missing.append(f"ours: not available ({why}).")
        return None
    return python


def publish(args: argparse.Namespace, machine: Machine, reports: list[Report]) -> None:
    pictures = args.svg or (args.out.parent / "img" if args.out else None)
    for report in reports:
        picture = None
        if report.svg and pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"bench-{report.what}.svg"
            path.write_text(report.svg)
            picture = os.path.relpath(path, args.out.parent) if args.out else str(path)
        if args.out:
            update_page(args.out, machine, report, picture)
    if args.json:
        write_json(args.json, machine, reports)


def main(argv: list[str]) -> int:
    args = parse(argv)
    machine = Machine.here(ROOT, argv)
    progress = Progress()
    missing: list[str] = []
    needs_peers = any(w not in ("limits", "rpc", "rdma_post", "index", "ssd", "trace", "coll", "ep") for w in args.what)
    ours = our_python(args.ours, missing) if needs_peers or {"coll", "ep"} & set(args.what) else None
    peers: dict[str, Any] = {
        name: peer_python(name, getattr(args, name), not args.no_peers, missing) if needs_peers else None
        for name in PEER_NAMES
    }
    unchecked = None
    if "store" in args.what and not args.quick:
        unchecked = peer_python(UNCHECKED, args.unchecked, not args.no_peers, missing)
    ctx = Context(
        ours=ours,
        unchecked=unchecked,
        missing=missing,
        reps=args.reps,
        secs=args.secs,
        is_quick=args.quick,
        progress=progress,
        results=HERE / "results",
        files=args.files,
        **peers,
    )
    print(machine)
    reports = []
    failed = False
    for what in args.what:
        try:
            report = importlib.import_module(f"bench.{what}").run(ctx)
        except BenchError as error:
            progress.clear()
            print(f"{what}: {error}", file=sys.stderr)
            failed = True
            continue
        show(report)
        reports.append(report)
        failed = failed or any(v.outcome == "FAIL" for v in report.verdicts)
    publish(args, machine, reports)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
