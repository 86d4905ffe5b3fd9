"""The programs of examples/ as a reader starts them: two processes, and a C program built with pkg-config."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 60


def run_pair(command: list[str]) -> tuple[str, str]:
    """What a target and an initiator print after the target's first line."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MC_")}
    with subprocess.Popen([*command, "target", "127.0.0.1"], stdout=subprocess.PIPE, text=True, env=env) as target:
        try:
            name, address = target.stdout.readline().split()
            initiator = [*command, "initiator", "127.0.0.1", name, address]
            out = subprocess.run(initiator, check=True, capture_output=True, text=True, env=env, timeout=LIMIT_S).stdout
            rest = target.communicate(timeout=LIMIT_S)[0]
        finally:
            target.kill()
    assert target.returncode == 0
    return out, rest


def check_pair(command: list[str]) -> None:
    out, rest = run_pair(command)
    assert "read 1048576 bytes" in out and "written by the target" in out, out
    assert "example" in rest and "done" in rest and "written by the initiator" in rest, rest


def test_python_example_moves_both_ways() -> None:
    check_pair([sys.executable, "-P", str(EXAMPLES / "two_processes.py")])


def test_c_example_builds_with_pkg_config_and_moves_both_ways(tmp_path: Path) -> None:
    compiler, tool = shutil.which("cc"), shutil.which("pkg-config")
    if not compiler or not tool:
        pytest.skip("no C compiler or no pkg-config")
    where = subprocess.run(
        [sys.executable, "-P", "-m", "mooncake.config", "--pkgconfig"], check=True, capture_output=True, text=True
    ).stdout.strip()
    env = os.environ | {"PKG_CONFIG_PATH": where}
    flags = subprocess.run(
        [tool, "--cflags", "--libs", "mooncake"], check=True, capture_output=True, text=True, env=env
    ).stdout.split()
    program = tmp_path / "two_processes"
    build = [compiler, "-Wall", "-Wextra", "-Werror", str(EXAMPLES / "two_processes.c"), "-o", str(program), *flags]
    subprocess.run(build, check=True)
    check_pair([str(program)])
