"""Start the package's programs: `mooncake serve`, and the console script transfer_engine_bench."""

import os
import sys

PROGRAMS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "bin")


def run_program(name: str, arguments: list[str]) -> None:
    """Become one of the package's programs."""
    path = os.path.join(PROGRAMS, name)
    try:
        os.execv(path, [name, *arguments])
    except OSError as why:
        sys.exit(f"{name}: {path} does not start: {why.strerror}; reinstall the package")


def main() -> None:
    run_program("transfer_engine_bench", sys.argv[1:])
