"""mooncake.engine works beside torch and NIXL, whichever is imported first: our libraries keep their symbols to themselves."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mooncake

CACHE = Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache/mooncake-c")
NEIGHBOURS = ["torch", "nixl._api"]
PYTHONS = [Path(sys.executable), CACHE / "peers/nixl/bin/python", CACHE / "vllm-env/bin/python"]
if os.environ.get("MC_TORCH_PYTHON"):
    PYTHONS.append(Path(os.environ["MC_TORCH_PYTHON"]))

USE = """
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, engine.last_error()
address = engine.allocate_managed_buffer(8192)
engine.write_bytes_to_buffer(address, b"beside", 6)
name = f"127.0.0.1:{engine.get_rpc_port()}"
assert engine.transfer_sync_write(name, address, address + 4096, 6) == 0, engine.last_error()
assert engine.read_bytes_from_buffer(address + 4096, 6) == b"beside"
"""


def has(python: Path, module: str) -> bool:
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module.split('.')[0]!r}) is None)"
    return python.exists() and subprocess.run([python, "-P", "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our package alone, for PYTHONPATH of another environment."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "mooncake").symlink_to(Path(mooncake.__file__).resolve().parent)
    return folder


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_works_beside(package: Path, neighbour: str, is_first: bool) -> None:
    python = next((python for python in PYTHONS if has(python, neighbour)), None)
    if python is None:
        pytest.skip(f"{neighbour} is not installed in any of {len(PYTHONS)} environments")
    order = ["mooncake.engine", neighbour] if is_first else [neighbour, "mooncake.engine"]
    code = "".join(f"import {name}\n" for name in order) + USE
    if neighbour == "torch":
        code += "import torch\nassert (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item() == 64.0**3\n"
    env = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([python, "-P", "-c", code], env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_works_beside_standard_modules_with_libraries_of_their_own() -> None:
    for order in itertools.permutations(["mooncake.engine", "ssl", "sqlite3"]):
        code = "".join(f"import {name}\n" for name in order) + USE
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
