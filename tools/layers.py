"""Check that includes and link dependencies follow the arrows of docs/design.md. Fixes nothing; prints file:line.

Rules: a file under src/<layer>/ includes headers of its own layer and of those below; the build file of a layer links
exactly the layer's arrows; the faces (src/capi, python/) know the public headers and base alone; a file that calls
itself pure does no I/O and reads no clock; public headers include public headers only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The arrows: a layer and those directly below it. Change docs/design.md and this table in one commit.
ARROWS = {
    "base": [],
    "wire": ["base"],
    "io": ["base"],
    "log": ["io"],
    "rpc": ["wire", "io"],
    "xport": ["rpc"],
    "disco": ["rpc"],
    "meta": ["wire"],
    "engine": ["xport", "disco"],
    "coll": ["engine"],
    "ep": ["coll"],
    "master": ["meta", "rpc"],
    "owner": ["meta", "engine"],
    "ssd": ["owner", "log"],
    "node": ["ssd"],
    "client": ["ssd"],
    "conductor": ["engine"],
    "capi": ["engine"],
    "cli": ["engine", "master", "node"],
}
FACES = {"capi"}  # see the public API, not the engine's inside
EVERYTHING = {"lib"}  # links the layers into the shared libraries

# Public headers, by the layer that implements them; err.h is everyone's, and so are store.h's numbers.
PUBLIC = {"err.h": "base", "store.h": "base", "engine.h": "engine", "coll.h": "coll", "ep.h": "ep", "ep_cuda.h": "ep", "transfer_engine_c.h": "capi"}

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
PURE = re.compile(r"\b[Pp]ure:")
IMPURE_HEADERS = re.compile(
    r"^(unistd|fcntl|dirent|poll|pthread|threads|time|dlfcn|netdb)\.h$|^sys/(socket|epoll|eventfd|time|timerfd|mman|file)\.h$"
    r"|^(netinet|arpa|net|io|rpc)/")
IMPURE_CALLS = re.compile(r"\b(mc_clock_now|mc_now_ns|mc_wall_ns|clock_gettime|gettimeofday|time)\s*\(")


def closure(layer: str) -> set[str]:
    seen, todo = set(), [layer]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += ARROWS[name]
    return seen


def code_of(text: str) -> str:
    """The text without comments, line by line as before."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group())
    return re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.S)


def includes(text: str) -> list[tuple[int, str, bool]]:
    """(line, header, is quoted) of each include."""
    found = []
    for number, line in enumerate(code_of(text).splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            found.append((number, match.group(1) or match.group(2), match.group(1) is not None))
    return found


def public_layer(header: str) -> str | None:
    """The layer that implements a public header, None if it is no public header."""
    name = header.removeprefix("mooncake/")
    if header.startswith("mooncake/") or name in PUBLIC:
        return PUBLIC.get(name, "engine")
    return None


def check_file(path: Path, layer: str, allowed: set[str], problems: list[str]) -> None:
    """`allowed` are the layers whose own headers the file may include; public ones follow the arrows alone."""
    rel = path.relative_to(ROOT)
    text = path.read_text(errors="replace")
    for number, header, _ in includes(text):
        target = header.split("/")[0]
        owner = public_layer(header)
        if owner:
            if owner not in closure(layer):
                problems.append(f"{rel}:{number}: {layer} includes <{header}>, which {owner} above it implements")
        elif target in ARROWS and "/" in header and target not in allowed:
            problems.append(f"{rel}:{number}: {layer} includes \"{header}\": no arrow leads from {layer} to {target}")
    head = re.match(r"\s*/\*.*?\*/", text, re.S)
    if head and PURE.search(head.group()):
        check_pure(rel, text, problems)


def check_pure(rel: Path, text: str, problems: list[str]) -> None:
    for number, header, _ in includes(text):
        if IMPURE_HEADERS.search(header):
            problems.append(f"{rel}:{number}: says it is pure, but includes {header}")
    for number, line in enumerate(code_of(text).splitlines(), 1):
        match = IMPURE_CALLS.search(line)
        if match:
            problems.append(f"{rel}:{number}: says it is pure, but calls {match.group(1)}()")


def check_sources(problems: list[str]) -> None:
    for folder in sorted((ROOT / "src").iterdir()):
        layer = folder.name
        if not folder.is_dir() or layer in EVERYTHING:
            continue
        if layer not in ARROWS:
            problems.append(f"src/{layer}: a layer that docs/design.md and tools/layers.py do not know")
            continue
        allowed = {layer, "base"} if layer in FACES else closure(layer)
        for path in sorted(folder.rglob("*.[ch]")):
            check_file(path, layer, allowed, problems)
        tests = ROOT / "tests" / "unit" / layer
        for path in sorted(tests.rglob("*.[ch]")) if tests.exists() else []:
            check_file(path, layer, closure(layer), problems)


def check_public(problems: list[str]) -> None:
    for path in sorted((ROOT / "include").rglob("*.h")):
        rel = path.relative_to(ROOT)
        for number, header, quoted in includes(path.read_text(errors="replace")):
            if quoted or header.split("/")[0] in ARROWS:
                problems.append(f"{rel}:{number}: a public header includes \"{header}\", which is not installed")
    for path in sorted((ROOT / "python").rglob("*.[ch]")):
        rel = path.relative_to(ROOT)
        for number, header, _ in includes(path.read_text(errors="replace")):
            if header.split("/")[0] in set(ARROWS) - {"base"}:
                problems.append(f"{rel}:{number}: the extension includes \"{header}\"; it links libmooncake.so and sees "
                                "its public headers only")


def check_links(problems: list[str]) -> None:
    """`dependencies: [x_dep, …]` and `link_with:` of src/<layer>/meson.build against the arrows."""
    for path in sorted((ROOT / "src").glob("*/meson.build")):
        layer = path.parent.name
        if layer in EVERYTHING or layer not in ARROWS:
            continue
        rel = path.relative_to(ROOT)
        linked = set()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for name in re.findall(r"\b(\w+)_(?:dep|lib)\b", line.split("#")[0]):
                if name == layer or name not in ARROWS:
                    continue
                linked.add(name)
                if name not in ARROWS[layer]:
                    problems.append(f"{rel}:{number}: {layer} links {name}; its arrows lead to "
                                    f"{', '.join(ARROWS[layer]) or 'nothing'}")
        for name in ARROWS[layer]:
            if name not in linked:
                problems.append(f"{rel}: {layer} does not link {name}, to which an arrow leads")


def main() -> int:
    problems: list[str] = []
    check_sources(problems)
    check_public(problems)
    check_links(problems)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
