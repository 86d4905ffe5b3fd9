"""Say where the nvcc of PyPI is (tools/requirements-cuda.txt), if the Python that runs this, or one in PATH, has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FIND = ("import importlib.util as u; s = u.find_spec('nvidia'); "
        "print(*(s.submodule_search_locations if s else ()), sep='\\n')")  # fmt: skip


def found_by(python: str) -> str | None:
    answer = subprocess.run([python, "-c", FIND], capture_output=True, text=True)
    for folder in answer.stdout.split("\n") if answer.returncode == 0 else ():
        for nvcc in sorted(Path(folder).glob("cu*/bin/nvcc")) if folder else ():
            return str(nvcc)
    return None


def main() -> int:
    for python in (sys.executable, shutil.which("python3")):
        nvcc = found_by(python) if python else None
        if nvcc:
            print(nvcc)
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
