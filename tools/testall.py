"""Run every test suite and end with one line, "N passed, N failed, N skipped". `./run test` calls it.

Suites, in order: unit and conform (C, over the shipped objects), dropin (Python, tests/py), e2e (tests/e2e), demo
(one prompt through two vLLM servers, and the Store), torch (tests/torch, in the demo's environment), guest (tests/guest:
a QEMU machine with real RDMA verbs), gpu (kernels on a GPU; by itself only where there is one), check (the reduced ./run
check). Logs lie under build-test/logs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import check
import guest_suite
import suites
from suites import FAILED, ROOT, SKIPPED, Result

BUILD = "build-test"
LOGS = ROOT / BUILD / "logs"
BUILD_OPTIONS = ["-Dwerror=true"]
MESON_SUITES = {"conform": ["conform", "sim"]}
LIMIT_S = {"unit": 300, "conform": 600, "dropin": 600, "e2e": 1500, "demo": 1200, "torch": 900, "guest": 1200, "gpu": 900,
           "check": 600}


def meson_suite(name: str, args: argparse.Namespace) -> list[Result]:
    failure = suites.build(BUILD, LOGS, BUILD_OPTIONS)
    if failure:
        return [failure]
    return suites.meson_tests(BUILD, MESON_SUITES.get(name, [name]), LOGS, LIMIT_S[name])


def unit(args: argparse.Namespace) -> list[Result]:
    return meson_suite("unit", args)


def conform(args: argparse.Namespace) -> list[Result]:
    return meson_suite("conform", args)


def dropin(args: argparse.Namespace) -> list[Result]:
    return suites.pytest_tests("tests/py", LOGS, LIMIT_S["dropin"], args.pytest)


def e2e(args: argparse.Namespace) -> list[Result]:
    results = meson_suite("e2e", args)
    return results + suites.pytest_tests("tests/e2e", LOGS, LIMIT_S["e2e"], args.pytest)


def demo(args: argparse.Namespace) -> list[Result]:
    if not (ROOT / "tools" / "demo" / "demo.py").exists():
        return []
    return [
        suites.step(f"demo: {name}, one prompt", ["./run", "demo", name, "--one"], LOGS / f"demo-{name}.log", LIMIT_S["demo"])
        for name in ("pd", "store", "ep")
    ]


def torch(args: argparse.Namespace) -> list[Result]:
    setup = "set -e; . tools/setup.sh; MC_WHEEL=$(setup_wheel_path) tools/demo/setup.sh"
    code, output = suites.run_logged(["bash", "-c", setup], LOGS / "torch-setup.log", LIMIT_S["demo"])
    if code != 0:
        return [Result("torch: environment", FAILED, suites.tail(output))]
    return suites.pytest_tests("tests/torch", LOGS, LIMIT_S["torch"], args.pytest, python=output.split()[-1])


def guest(args: argparse.Namespace) -> list[Result]:
    failure = suites.build(BUILD, LOGS, BUILD_OPTIONS)
    return [failure] if failure else guest_suite.run(BUILD, LOGS, LIMIT_S["guest"], args.long)


def gpu(args: argparse.Namespace) -> list[Result]:
    return meson_suite("gpu", args)


def is_asked_for(name: str) -> bool:
    """Without --suite: all but what this machine cannot do at all."""
    return name != "gpu" or Path("/dev/nvidiactl").exists()


def check_quick(args: argparse.Namespace) -> list[Result]:
    return check.quick(LIMIT_S["check"])


SUITES = {"unit": unit, "conform": conform, "dropin": dropin, "e2e": e2e, "demo": demo, "torch": torch, "guest": guest, "gpu": gpu,
          "check": check_quick}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run test", description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this suite; may be repeated")
    parser.add_argument("--long", action="store_true", help="guest: also all of the conformance suite over RDMA (half an hour)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    args = parser.parse_args()
    suites.main_guard()
    os.chdir(ROOT)
    everything = []
    for name in args.suite or filter(is_asked_for, SUITES):
        suites.say(f"{name} ...")
        start = time.monotonic()
        results = SUITES[name](args)
        if not results:
            results = [Result(name, SKIPPED if args.pytest else FAILED, "the suite has no test")]
        suites.say(f"  {name}: {suites.count(results)} in {time.monotonic() - start:.0f} s")
        everything += results
    return suites.report(everything)


if __name__ == "__main__":
    sys.exit(main())
