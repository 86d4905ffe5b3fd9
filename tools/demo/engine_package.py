"""Which `mooncake` package will the servers import? The demo is worth nothing if it is not the one of this tree.

Asked in a fresh interpreter with the servers' own environment, so that the answer is theirs.
"""

import json
import subprocess
import sys

from process import DemoError, base_environment

DIST_NAME = "mooncake-c"
VERSION_MIN = (0, 4, 0)
PROBE_S = 60.0

_PROBE = """
import importlib, importlib.metadata as md, json, sys
out = {"dists": {}, "version": None, "file": None, "engine": None, "error": None}
for dist in md.distributions():
    if any(str(f).startswith("mooncake/") for f in dist.files or ()):
        out["dists"][dist.metadata["Name"]] = dist.version
try:
    import mooncake
    out["file"], out["version"] = mooncake.__file__, getattr(mooncake, "__version__", None)
    module = importlib.import_module(sys.argv[1])
    out["engine"] = module.__file__
except Exception as exc:
    out["error"] = f"{type(exc).__name__}: {exc}"
print(json.dumps(out))
"""


def probe(python_path: list[str], module: str) -> dict:
    """What the servers would import as `module`, and which packages could be it."""
    command = [sys.executable, "-c", _PROBE, module]
    result = subprocess.run(
        command, env=base_environment(python_path), capture_output=True, text=True, timeout=PROBE_S
    )
    if result.returncode != 0:
        raise DemoError(f"the mooncake package cannot be looked at:\n{result.stderr.strip()}")
    return json.loads(result.stdout.splitlines()[-1])


def version_of(text: str) -> tuple[int, ...]:
    """0.4.0.dev1 -> (0, 4, 0)"""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def check(found: dict) -> None:
    """Raise DemoError unless `import mooncake` gives this project's package, and nothing else could shadow it."""
    others = sorted(f"{name} {version}" for name, version in found["dists"].items() if name != DIST_NAME)
    if others:
        raise DemoError(
            f"another package that is imported as `mooncake` is installed: {', '.join(others)} ({found['file']}). "
            f"Uninstall it from {sys.prefix}: the demo must run on {DIST_NAME}"
        )
    if DIST_NAME not in found["dists"]:
        reason = found["error"] or "it comes from no installed package"
        raise DemoError(
            f"our package {DIST_NAME} is missing from {sys.prefix}: {reason} ({found['file']}). Run ./run demo"
        )
    if found["error"]:
        raise DemoError(f"{DIST_NAME} {found['version']} cannot be used by this demo: {found['error']}")
    if not found["version"] or version_of(found["version"]) < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise DemoError(
            f"mooncake.__version__ is {found['version']}, the demo needs {wanted} or later ({found['file']})"
        )
