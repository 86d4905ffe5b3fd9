"""Everything that looks for faults without a use case: sanitizers, fuzzing, static analysis, style and layers.

`./run check` does all of it; `--quick` is the part that `./run test` includes: layers, style, format, ASan+UBSan over
the unit tests and the fuzz corpora. Each tool has a build folder of its own; logs lie under build-check/.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import suites
from suites import FAILED, PASSED, ROOT, SKIPPED, Result

LOGS = ROOT / "build-check"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
FUZZ_RUNS = 1_000_000
FUZZ_SECONDS = 600  # of one target: those that open sockets take hours for a million
STRICT = ["-Db_lundef=false", "-Dwerror=true", "-Dc_args=-fno-sanitize-recover=undefined -Wno-string-plus-int"]
ASAN = ["-Db_sanitize=address,undefined", *STRICT]
TSAN = ["-Db_sanitize=thread", *STRICT]
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": f"halt_on_error=1:second_deadlock_stack=1:suppressions={ROOT / 'tests' / 'tsan.supp'}",
}


def clang_env() -> dict[str, str]:
    return suites.tool_env({"CC": "clang"} | symbolizer())


def symbolizer() -> dict[str, str]:
    """Where the sanitizers find function names: Debian's programs carry a version in their names."""
    for name in ("llvm-symbolizer", "llvm-symbolizer-14"):
        path = shutil.which(name)
        if path:
            return {f"{tool}_SYMBOLIZER_PATH": path for tool in ("ASAN", "UBSAN", "TSAN")}
    return {}


def sources(*folders: str) -> list[str]:
    """The C files below `folders`; builds lie elsewhere."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.[ch]")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def layers() -> list[Result]:
    return [suites.step("layers", [sys.executable, "tools/layers.py"], LOGS / "layers.log", 60)]


def tidy() -> list[Result]:
    return [suites.step("style (tools/tidy.py)", [sys.executable, "tools/tidy.py"], LOGS / "tidy.log", 60)]


def documented() -> list[Result]:
    return [suites.step("option tables (tools/options.py)", [sys.executable, "tools/options.py", "--check"],
                        LOGS / "options.log", 60)]


def formatted() -> list[Result]:
    cmd = ["clang-format", "--dry-run", "-Werror", *sources("src", "include", "tests", "python", "bench")]
    code, output = suites.run_logged(cmd, LOGS / "format.log", 120)
    names = sorted(set(re.findall(r"^([^\s:]+):\d+:\d+: error", output, re.M)))
    detail = f"run: clang-format -i {' '.join(names)}" if names else suites.tail(output)
    return [Result("clang-format", PASSED if code == 0 else FAILED, detail)]


def sanitized(name: str, options: list[str], tests: list[str], timeout_s: float) -> list[Result]:
    """One sanitizer build and the suites of `tests` in it; each test program counts once."""
    folder = f"build-{name}"
    failure = suites.build(folder, LOGS, options, clang_env())
    if failure:
        return [failure]
    wrapper = no_aslr() if options is TSAN else []
    results = suites.meson_tests(folder, tests, LOGS, timeout_s, SANITIZER_OPTIONS | symbolizer(), wrapper, multiply=5)
    return programs(name, results)


def no_aslr() -> list[str]:
    """clang 14's TSan cannot map its shadow on kernels that randomise 32 bits of an address."""
    wrapper = ["setarch", os.uname().machine, "--addr-no-randomize"]
    allowed = subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode == 0
    return wrapper if allowed else []


def programs(name: str, results: list[Result]) -> list[Result]:
    """Fold the functions of a program into one result: they were counted by the ordinary build already."""
    folded: dict[str, Result] = {}
    for r in results:
        program = r.name.split(":")[0]
        kept = folded.setdefault(program, Result(f"{name}: {program}", r.status, r.detail))
        if r.status == FAILED or (r.status == PASSED and kept.status == SKIPPED):
            kept.status, kept.detail = r.status, f"{r.name}\n{r.detail}" if r.status == FAILED else ""
    return list(folded.values())


def fuzzed() -> list[Result]:
    """libFuzzer under ASan+UBSan. What it finds is kept in build-fuzz/found/<target>; new inputs stay out of the tree."""
    failure = suites.build("build-fuzz", LOGS, ["-Dfuzz=true", *ASAN], clang_env())
    if failure:
        return [failure]
    results = []
    for program in sorted((ROOT / "build-fuzz" / "tests" / "fuzz").glob("fuzz_*")):
        if not program.is_file() or not os.access(program, os.X_OK):
            continue
        target = program.name.removeprefix("fuzz_")
        found = ROOT / "build-fuzz" / "found" / target
        grown = ROOT / "build-fuzz" / "corpus" / target
        found.mkdir(parents=True, exist_ok=True)
        grown.mkdir(parents=True, exist_ok=True)
        cmd = [str(program), f"-runs={FUZZ_RUNS}", f"-max_total_time={FUZZ_SECONDS}", "-timeout=30", "-rss_limit_mb=2048",
               "-print_final_stats=1", f"-artifact_prefix={found}/", str(grown), str(CORPUS / target)]
        suites.say(f"  fuzz {target} ...")
        results.append(suites.step(f"fuzz: {target}", cmd, LOGS / f"fuzz-{target}.log", 3600,
                                   suites.tool_env(SANITIZER_OPTIONS | symbolizer())))
    return results or [Result("fuzz", FAILED, "no fuzz target was built")]


def clang_tidy() -> list[Result]:
    """Each file by itself, two at a time, against the clang build's compile commands."""
    failure = suites.build("build-asan", LOGS, ASAN, clang_env())
    if failure:
        return [failure]
    files = [s for s in sources("src", "python") if s.endswith(".c")]
    cmd = ["xargs", "-a", str(listed(files)), "-n", "1", "-P", str(os.cpu_count() or 2),
           "clang-tidy", "--quiet", "-p", "build-asan"]
    code, output = suites.run_logged(cmd, LOGS / "clang-tidy.log", 3600)
    found = sorted({line for line in output.splitlines() if re.search(r": (error|warning): ", line)})
    return [Result("clang-tidy", PASSED if code == 0 else FAILED, "\n".join(found) or suites.tail(output))]


def listed(names: list[str]) -> Path:
    path = LOGS / "clang-tidy-files"
    path.write_text("\n".join(names) + "\n")
    return path


def cppcheck() -> list[Result]:
    cmd = ["cppcheck", "--quiet", "--std=c11", "--enable=warning,portability", "--inline-suppr", "--error-exitcode=1",
           "--suppress=missingIncludeSystem", "-j", str(os.cpu_count() or 2), "-Iinclude", "-Isrc", "-D_GNU_SOURCE",
           *[s for s in sources("src") if s.endswith(".c")]]
    return [suites.step("cppcheck", cmd, LOGS / "cppcheck.log", 1800)]


def quick(timeout_s: float) -> list[Result]:
    return layers() + tidy() + documented() + formatted() + sanitized("asan", ASAN, ["unit", "fuzz"], timeout_s)


def full() -> list[Result]:
    results = []
    for name, part in {
        "layers": layers, "style": tidy, "options": documented, "format": formatted, "clang-tidy": clang_tidy, "cppcheck": cppcheck,
        "ASan+UBSan": lambda: sanitized("asan", ASAN, ["unit", "conform", "sim", "fuzz"], 3600),
        "TSan": lambda: sanitized("tsan", TSAN, ["unit", "conform", "sim"], 3600),
        "fuzz": fuzzed,
    }.items():
        suites.say(f"{name} ...")
        results += part()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run check", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the part that ./run test includes")
    args = parser.parse_args()
    suites.main_guard()
    os.chdir(ROOT)
    return suites.report(quick(1200) if args.quick else full())


if __name__ == "__main__":
    sys.exit(main())
