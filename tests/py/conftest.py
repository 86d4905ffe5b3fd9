"""What the Python tests share: processes that hold an engine, ours or upstream's."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node

CACHE = Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache/mooncake-c")
UPSTREAM = Path(os.environ.get("MC_UPSTREAM_PYTHON") or CACHE / "peers/upstream/bin/python")


@pytest.fixture(scope="session")
def upstream_python() -> str:
    """Interpreter that imports upstream's wheel."""
    if not UPSTREAM.exists():
        pytest.skip(f"upstream's wheel is not installed: no {UPSTREAM} (bench/peers.sh upstream installs it)")
    done = subprocess.run([UPSTREAM, "-I", "-c", "import mooncake.engine"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"upstream's wheel does not import: {done.stderr.strip().splitlines()[-1:]}")
    return str(UPSTREAM)


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """node("ours" | "upstream", **settings): a process with an engine; it ends with the test."""
    nodes: list[Node] = []

    def start(kind: str = "ours", env: dict[str, str] | None = None) -> Node:
        # Upstream's interpreter is isolated: a PYTHONPATH that leads to our package is not for it.
        command = [request.getfixturevalue("upstream_python"), "-I"] if kind == "upstream" else [sys.executable, "-P"]
        nodes.append(Node(command, tmp_path / f"{len(nodes)}-{kind}.log", env or {}))
        return nodes[-1]

    yield start
    for one in nodes:
        one.close()
