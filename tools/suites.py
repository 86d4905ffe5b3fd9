"""Run test programs and collect what they found; shared by testall.py and check.py. Standard library only.

A result is one test: a cmocka function, a pytest case, a step. Nothing here waits without a limit: a command that
overruns is ended with its whole process group, and that is a failed test that shows the end of its log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / "bin"
TAIL_LINES = 40
HEARTBEAT_S = 60

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass
class Result:
    name: str
    status: str
    detail: str = ""  # a failure's end of output, a skip's reason


def say(text: str) -> None:
    print(text, flush=True)


def tail(text: str, lines: int = TAIL_LINES) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def tool_env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of every command: the tools of .venv first, no surprises from the caller's own settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MC_", "MESON_", "PYTEST_"))}
    env.update({k: v for k, v in os.environ.items() if k == "MC_CACHE_DIR"})  # where installed peers lie
    env["PATH"] = f"{VENV}{os.pathsep}{env['PATH']}"
    env.update(extra or {})
    return env


def stop_group(proc: subprocess.Popen, grace_s: float = 10) -> None:
    """End a command's whole process group: SIGTERM, then SIGKILL."""
    for sig, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        try:
            os.killpg(proc.pid, sig)
        except ProcessLookupError:
            return
        try:
            proc.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    try:
        os.killpg(proc.pid, signal.SIGKILL)  # what outlived its leader
    except ProcessLookupError:
        pass


def run_logged(cmd: list[str], log: Path, timeout_s: float, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run `cmd` from the root with its output in `log`. Returns its exit status (-1: out of time) and its output."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as out:
        proc = subprocess.Popen(cmd, cwd=ROOT, env=env or tool_env(), stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while True:
                left = timeout_s - (time.monotonic() - start)
                try:
                    code = proc.wait(max(0.1, min(left, HEARTBEAT_S)))
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - start
                    if elapsed >= timeout_s:
                        out.write(f"\n{cmd[0]}: out of time after {timeout_s:.0f} s\n".encode())
                        code = -1
                        break
                    say(f"    {log.stem}: {elapsed:.0f} s, {last_line(log)}")
        finally:
            stop_group(proc)
    return code, log.read_text(errors="replace")


def last_line(log: Path) -> str:
    lines = tail(log.read_text(errors="replace"), 1)
    return lines[:100] if lines else "no output yet"


def step(name: str, cmd: list[str], log: Path, timeout_s: float, env: dict[str, str] | None = None) -> Result:
    """One command as one test."""
    code, output = run_logged(cmd, log, timeout_s, env)
    return Result(name, PASSED if code == 0 else FAILED, "" if code == 0 else tail(output))


def build(folder: str, log_dir: Path, options: list[str], env: dict[str, str] | None = None) -> Result | None:
    """Configure (once for each set of options) and compile `folder`. None when it worked, else the failure."""
    stamp = ROOT / folder / "options"
    wanted = " ".join(options)
    if not stamp.exists() or stamp.read_text() != wanted:
        wipe = ["--wipe"] if (ROOT / folder / "build.ninja").exists() else []
        result = step(f"{folder}: configure", ["meson", "setup", *wipe, folder, *options],
                      log_dir / f"{folder}-configure.log", 300, env)
        if result.status == FAILED:
            return result
        stamp.write_text(wanted)
    result = step(f"{folder}: compile", ["ninja", "-C", folder, "--quiet", "-k", "20"], log_dir / f"{folder}-compile.log", 1800, env)
    return result if result.status == FAILED else None


TAP_LINE = re.compile(r"^(not ok|ok) +\d+ *(?:- *(.*?))?(?: *# *(SKIP|skip)(.*))?$")


def tap_results(program: str, row: dict) -> list[Result]:
    """The functions of one test program. A program that printed no TAP is one test by itself."""
    output = row.get("stdout", "") + row.get("stderr", "")
    results = []
    said = ""  # the line before; cmocka's skip() takes no reason, so a test prints it
    for line in row.get("stdout", "").splitlines():
        match = TAP_LINE.match(line.strip())
        if not match:
            said = line.strip().removeprefix("# ").removeprefix("skipped: ")
            continue
        verdict, name, skip, after = match.groups()
        status = SKIPPED if skip else PASSED if verdict == "ok" else FAILED
        title = name or (after or "").strip() or line.strip()
        results.append(Result(f"{program}: {title}", status, (said or "no reason given") if skip else ""))
        said = ""
    failed = [r for r in results if r.status == FAILED]
    for r in failed:
        r.detail = tail(output)
    verdict = row["result"]
    if verdict in ("OK", "EXPECTEDFAIL"):
        return results or [Result(program, PASSED)]
    if verdict == "SKIP":
        return results or [Result(program, SKIPPED, tail(output, 1) or "no reason given")]
    if not failed:  # it crashed or ran out of time between two functions
        results.append(Result(program, FAILED, f"{verdict}, exit status {row.get('returncode')}\n{tail(output)}"))
    return results


def meson_tests(folder: str, suites: list[str], log_dir: Path, timeout_s: float,
                env: dict[str, str] | None = None, wrapper: list[str] | None = None, multiply: int = 1) -> list[Result]:
    """Run the meson tests of `suites` in a folder that is built. No test at all gives an empty list."""
    logbase = "tests-" + "-".join(suites)
    report = ROOT / folder / "meson-logs" / f"{logbase}.json"
    report.unlink(missing_ok=True)
    cmd = ["meson", "test", "-C", folder, "--no-rebuild", "--logbase", logbase, "--timeout-multiplier", str(multiply)]
    for suite in suites:
        cmd += ["--suite", suite]
    full_env = tool_env({"CMOCKA_MESSAGE_OUTPUT": "TAP", **(env or {})})
    code, output = run_logged((wrapper or []) + cmd, log_dir / f"{folder}-{logbase}.log", timeout_s, full_env)
    rows = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    results = [r for row in rows for r in tap_results(row["name"].split(" / ")[-1], row)]
    if code != 0 and not any(r.status == FAILED for r in results):
        results.append(Result(f"{folder}: meson test", FAILED, tail(output)))
    return results


# Another interpreter has its own packages first and takes of ours what it lacks: pytest.
BORROWED_PYTEST = "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main())"


def pytest_command(python: str | None) -> list[str]:
    if python is None:
        return [str(VENV / "python"), "-m", "pytest"]
    packages = next((VENV.parent / "lib").glob("python3*/site-packages"))
    return [python, "-P", "-c", BORROWED_PYTEST, str(packages)]


def pytest_tests(path: str, log_dir: Path, timeout_s: float, extra: list[str], wrapper: list[str] | None = None,
                 python: str | None = None) -> list[Result]:
    """Run the pytest files under `path`, by `wrapper` and `python` if given. Each test has 5 minutes unless it asks for more."""
    name = path.replace("/", "-")
    report = log_dir / f"{name}.xml"
    report.unlink(missing_ok=True)
    log = log_dir / f"{name}.log"
    cmd = [*pytest_command(python), path, "-v", "--color=no", f"--junitxml={report}", "--timeout=300", *extra]
    code, output = run_logged((wrapper or []) + cmd, log, timeout_s)
    results = []
    for case in ET.parse(report).iter("testcase") if report.exists() else []:
        title = f"{case.get('classname')}.{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            results.append(Result(title, FAILED, tail(bad.text or bad.get("message") or "")))
        elif skip is not None:
            results.append(Result(title, SKIPPED, skip.get("message") or "no reason given"))
        else:
            results.append(Result(title, PASSED))
    if code not in (0, 5) and not any(r.status == FAILED for r in results):
        results.append(Result(f"pytest {path}", FAILED, tail(output)))
    return results


def count(results: list[Result]) -> str:
    number = {s: sum(r.status == s for r in results) for s in (PASSED, FAILED, SKIPPED)}
    return f"{number[PASSED]} passed, {number[FAILED]} failed, {number[SKIPPED]} skipped"


def report(results: list[Result]) -> int:
    """Print every failure's end, every skip's reason and, as the last line, the count. Returns the exit status."""
    for r in results:
        if r.status == SKIPPED:
            say(f"SKIPPED {r.name}: {' '.join(r.detail.split())}")
    for r in results:
        if r.status == FAILED:
            say(f"FAILED  {r.name}")
            say("\n".join("    " + line for line in r.detail.splitlines()))
    say(count(results))
    failed = any(r.status == FAILED for r in results)
    return 1 if failed or not any(r.status == PASSED for r in results) else 0


def main_guard() -> None:
    """Ctrl-C and SIGTERM end the running command's group too: run_logged() cleans up on the way out."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda number, _: sys.exit(128 + number))
