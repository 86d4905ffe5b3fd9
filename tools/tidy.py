"""Check what a program can check of docs/style.md. Prints file:line: rule: message; fixes nothing.

It reads text, not a syntax tree: clang-format has put each function's braces in column 0 (a gate of its own), which
makes lengths, nesting and names exact. A line that must break a rule says so and why: /* tidy-ok(rule): reason */.
Arguments are files or folders; without any, the whole tree.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 900
FUNCTION_LINES_MAX = 70
NESTING_MAX = 4
COLUMNS_MAX = 100
TAB = 8

BANNED = {
    "strcpy": "mc_str helpers or memcpy with a checked length", "strcat": "mc_str helpers",
    "sprintf": "snprintf", "vsprintf": "vsnprintf", "strtok": "a cursor of codec or str", "atoi": "a checked parser",
    "atol": "a checked parser", "atof": "a checked parser", "gets": "fgets", "alloca": "a bounded array",
}
KINDS = (".c", ".h", ".cu", ".py", ".pyi", ".sh", ".build", ".proto", ".toml", ".map")
GENERATED = re.compile(r"^(\.|build|dist$|__pycache__$)|\.egg-info$")  # folders: tools' own, and what they make
PRINTING = {"printf", "fprintf", "vprintf", "vfprintf", "puts", "putchar", "perror", "dprintf"}
SLEEPING = {"sleep", "usleep", "nanosleep", "clock_nanosleep"}
LABELS = {"fail", "out", "retry"}
PROGRAMS = ("examples/", "src/cli/", "bench/", "tests/", "tools/")  # may print: they are not libraries
UPSTREAM_ABI = ("transfer_engine_c.h", "store_c.h", "src/capi/")  # upstream's names and typedefs
ENTRY_POINTS = re.compile(r"^(main|LLVMFuzzer\w+|PyInit_\w+|__\w+)$")

CONTROL = re.compile(r"\b(if|for|while|switch|else|do|mc_\w+_each\w*)\b")
TOKEN = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)
WAIVER = re.compile(r"tidy-ok\(([\w-]+)\): *\S")


@dataclass
class Source:
    name: str  # from the root
    text: str
    code: str  # the text with comments and literals blanked
    lines: list[str]
    code_lines: list[str]


@dataclass
class Function:
    name: str
    line: int  # of the first line of its signature
    signature: str
    start: int  # index of the line with "{"
    end: int  # index of the line with "}"


problems: list[str] = []


def complain(src: Source, line: int, rule: str, message: str) -> None:
    """`line` counts from 1. A waiver on the line or the one before silences the rule."""
    for index in (line - 1, line - 2):
        if 0 <= index < len(src.lines):
            match = WAIVER.search(src.lines[index])
            if match and match.group(1) == rule:
                return
    problems.append(f"{src.name}:{line}: {rule}: {message}")


def blank(match: re.Match) -> str:
    token = match.group()
    if token[0] in "\"'":
        return token[0] + " " * (len(token) - 2) + token[0]
    return re.sub(r"[^\n\t]", " ", token)


def load(path: Path) -> Source:
    text = path.read_text(errors="replace")
    code = TOKEN.sub(blank, text)
    return Source(str(path.relative_to(ROOT)), text, code, text.splitlines(), code.splitlines())


def functions(src: Source) -> list[Function]:
    """A definition: a line that is "{" in column 0 after a signature, up to the "}" in column 0."""
    found = []
    for index, line in enumerate(src.code_lines):
        if line.rstrip() != "{":
            continue
        first = index - 1
        while first > 0 and src.code_lines[first - 1].strip() and not re.match(
                r"[#}]|.*[;:}]\s*$", src.code_lines[first - 1]):
            first -= 1
        signature = " ".join(src.code_lines[first:index])
        match = re.search(r"(\w+)\s*\(", re.sub(r"__attribute__\s*\(\(.*?\)\)|\b[A-Z][A-Z0-9_]*\s*\([^()]*\)", "", signature))
        end = next((i for i in range(index + 1, len(src.code_lines)) if src.code_lines[i].startswith("}")), None)
        if match and end is not None:
            found.append(Function(match.group(1), first + 1, signature, index, end))
    return found


def width(line: str) -> int:
    return len(line.expandtabs(TAB))


def check_text(src: Source) -> None:
    """Any file: no trailing blanks, no CR, a newline at the end."""
    for number, line in enumerate(src.lines, 1):
        if line != line.rstrip():
            complain(src, number, "blanks", "white space at the end of the line")
    if "\r" in src.text:
        complain(src, 1, "line-ends", "carriage returns")
    if src.text and not src.text.endswith("\n"):
        complain(src, len(src.lines), "line-ends", "no newline at the end of the file")


def check_c_lines(src: Source) -> None:
    if len(src.lines) > FILE_LINES_MAX:
        complain(src, len(src.lines), "file-length", f"{len(src.lines)} lines, {FILE_LINES_MAX} at most: one concept a file")
    for number, line in enumerate(src.lines, 1):
        if width(line) > COLUMNS_MAX and " " in line.strip():
            complain(src, number, "columns", f"{width(line)} columns, {COLUMNS_MAX} at most")
        if re.match(r" {8}.*[^\s\\]", line):
            complain(src, number, "tabs", "indent with tabs")
        marker = re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", line)
        if marker:
            complain(src, number, "todo", f"{marker.group(1)} without an issue: TODO(#123)")


def check_head(src: Source) -> None:
    """The file comment, the guard of a header, x.c's include of x.h."""
    path = Path(src.name)
    head = re.match(r"/\*\n \* ([\w.+-]+): \S", src.text)
    if not head:
        complain(src, 1, "file-comment", f"start with \"/*\\n * {path.name}: what it is for, the idea, its source\"")
    elif head.group(1) != path.name:
        complain(src, 2, "file-comment", f"names {head.group(1)}, the file is {path.name}")
    if path.suffix == ".h":
        guard = re.search(r"^#ifndef (\w+)\n#define (\w+)$", src.code, re.M)
        if "#pragma once" not in src.code and not (guard and guard.group(1) == guard.group(2)):
            complain(src, 1, "header-guard", "no include guard")
        return
    own = path.with_suffix(".h")
    includes = [(i, m.group(1)) for i, line in enumerate(src.lines, 1)
                if (m := re.match(r'#\s*include\s+["<]([^">]+)[">]', line))]
    if (ROOT / own).exists() and includes and Path(includes[0][1]).name != own.name:
        complain(src, includes[0][0], "own-header-first", f"include {own.name} before {includes[0][1]}")


def check_calls(src: Source) -> None:
    library = not src.name.startswith(PROGRAMS)
    for number, line in enumerate(src.code_lines, 1):
        for name in re.findall(r"(?<![\w.>])(\w+)\s*\(", line):
            if name in BANNED:
                complain(src, number, "banned", f"{name}(): use {BANNED[name]}")
            elif library and name in PRINTING:
                complain(src, number, "printing", f"{name}() in a library: use mc_log or mc_diag")
            elif name in SLEEPING and src.name.startswith("tests/unit/"):
                complain(src, number, "sleep", f"{name}() in a unit test: time is an argument")
        if re.match(r"\s*#\s*include\s*<assert\.h>", line):
            complain(src, number, "banned", "assert.h: use mc_assert")
        if re.search(r"(?<!asm )(?<!asm__ )\bvolatile\b", line):
            complain(src, number, "volatile", "volatile is no means between threads: use atomics")
        label = re.search(r"\bgoto\s+(\w+)", line)
        if label and label.group(1) not in LABELS:
            complain(src, number, "goto", f"goto {label.group(1)}: only {', '.join(sorted(LABELS))}")
        if re.match(r"\s*typedef\s+(struct|union|enum)\b", line) and not any(u in src.name for u in UPSTREAM_ABI):
            complain(src, number, "typedef", "no typedef for structs, unions, enums")


def is_block(code: str, brace: int) -> bool:
    """Whether the "{" at this offset opens statements: after else, do, a label, or the ")" of a control word."""
    before = code[:brace].rstrip()
    if not before or before[-1] in ";{}:" or re.search(r"\b(else|do)$", before):
        return True
    if before[-1] != ")":
        return False
    depth = 0
    for at in range(len(before) - 1, -1, -1):
        depth += (before[at] == ")") - (before[at] == "(")
        if depth == 0:
            return bool(re.search(r"\b(if|for|while|switch|\w+_each\w*)\s*$", before[:at]))
    return False


def check_nesting(src: Source, fn: Function) -> None:
    body = "\n".join(src.code_lines[fn.start:fn.end + 1])
    stack, deepest, line = [], 0, fn.start + 1
    for at, char in enumerate(body):
        if char == "\n":
            line += 1
        elif char == "{":
            stack.append(not stack or is_block(body, at))
            depth = sum(stack) - 1
            if stack[-1] and depth > max(deepest, NESTING_MAX):
                complain(src, line, "nesting", f"{fn.name}(): {depth} levels, {NESTING_MAX} at most")
            deepest = max(deepest, depth)
        elif char == "}" and stack:
            stack.pop()


def check_functions(src: Source) -> None:
    exported = src.name.startswith("src/") and src.name.endswith(".c") and not any(u in src.name for u in UPSTREAM_ABI)
    for fn in functions(src):
        length = fn.end - fn.start - 1
        if length > FUNCTION_LINES_MAX:
            complain(src, fn.line, "function-length", f"{fn.name}(): {length} lines, {FUNCTION_LINES_MAX} at most")
        check_nesting(src, fn)
        for index in range(fn.start, fn.end):
            if re.match(r"\s*#\s*(if|ifdef|ifndef|elif)\b", src.code_lines[index]):
                complain(src, index + 1, "ifdef", f"{fn.name}(): put the variants into files")
        if exported and not re.search(r"\bstatic\b", fn.signature) and not fn.name.startswith("mc_") \
                and not ENTRY_POINTS.match(fn.name):
            complain(src, fn.line, "prefix", f"{fn.name}() has external linkage: mc_<noun>_<verb>, or static")


def check_contracts(src: Source) -> None:
    """Every MC_API declaration of a public header stands below a comment; a run of them may share one."""
    for index, line in enumerate(src.code_lines):
        if not line.startswith("MC_API"):
            continue
        above = index - 1
        while above >= 0 and src.lines[above].strip() and not src.lines[above].rstrip().endswith("*/"):
            above -= 1
        if above < 0 or not src.lines[above].rstrip().endswith("*/"):
            complain(src, index + 1, "contract", "a public function's comment is its contract")


def check(path: Path) -> None:
    src = load(path)
    check_text(src)
    if path.suffix not in (".c", ".h"):
        return
    check_c_lines(src)
    check_head(src)
    check_calls(src)
    check_functions(src)
    if src.name.startswith("include/"):
        check_contracts(src)


def tree(arguments: list[str]) -> list[Path]:
    """The files of ours below `arguments`, or all. Works without git: in an unpacked archive, too."""
    found = []
    for top in arguments or ["."]:
        found += [ROOT / top] if (ROOT / top).is_file() else []
        for folder, folders, names in os.walk(ROOT / top):
            folders[:] = [name for name in folders if not GENERATED.search(name)]
            found += [Path(folder, name) for name in names]
    return sorted({path for path in found if path.name.endswith(KINDS)})


def main() -> int:
    for path in tree(sys.argv[1:]):
        check(path)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
