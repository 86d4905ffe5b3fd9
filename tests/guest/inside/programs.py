#!/usr/bin/env python3
"""Run test programs one after the other, in the guest: programs.py OUT LIMIT_S "PROGRAM ARGS" ...

OUT gets one JSON object a program, with the fields of meson's own test log, so that the host reads both alike.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time


def run(command: str, limit_s: float) -> dict[str, object]:
    start = time.monotonic()
    row: dict[str, object] = {"name": command}
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, errors="replace", timeout=limit_s)
        row |= {"stdout": done.stdout, "stderr": done.stderr, "returncode": done.returncode}
        row["result"] = "OK" if done.returncode == 0 else "FAIL"
    except subprocess.TimeoutExpired as late:
        said = [(part or b"").decode(errors="replace") for part in (late.stdout, late.stderr)]
        row |= {"stdout": said[0], "stderr": said[1], "returncode": -1, "result": "TIMEOUT"}
    except OSError as error:
        row |= {"stdout": "", "stderr": f"{command}: {error}", "returncode": -1, "result": "FAIL"}
    row["duration"] = time.monotonic() - start
    return row


def main(argv: list[str]) -> int:
    out, limit_s, commands = argv[0], float(argv[1]), argv[2:]
    bad = 0
    with open(out, "w") as file:
        for command in commands:
            row = run(command, limit_s)
            bad += row["result"] != "OK"
            print(f"{row['result']:8}{row['duration']:6.1f} s  {command}", flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
