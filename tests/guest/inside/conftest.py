"""The node fixture of tests/py, for tests in the guest, where only ours runs."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests/py"))

from cluster import Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """node("ours", settings): a process with an engine; it ends with the test."""
    nodes: list[Node] = []

    def start(kind: str, env: dict[str, str]) -> Node:
        nodes.append(Node([sys.executable, "-P"], tmp_path / f"{len(nodes)}-{kind}.log", env))
        return nodes[-1]

    yield start
    for one in nodes:
        one.close()
