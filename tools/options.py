"""Write the table of environment variables in docs/operations.md from the option tables in the sources.

A row is an MC_OPT_<TYPE>(struct, field, "MC_NAME", "default", …, "help") under src/. `--check` only compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- options: written by tools/options.py -->\n", "<!-- end of options -->\n"
ROW = re.compile(r"\bMC_OPT_(INT|SIZE|BOOL|DOUBLE|STR|ENUM)\(")
KINDS = {"INT": "integer", "SIZE": "bytes", "BOOL": "boolean", "DOUBLE": "number", "STR": "text", "ENUM": "one of"}


def arguments(text: str, start: int) -> list[str]:
    """The arguments of a macro call whose "(" ends at `start`, split at commas outside strings and brackets."""
    parts, depth, at, quoted, begin = [], 1, start, False, start
    while depth and at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if not quoted and (depth == 0 or (depth == 1 and char == ",")):
            parts.append(text[begin:at].strip())
            begin = at + 1
        at += 1
    return parts


def literal(text: str) -> str:
    """The value of adjacent string literals."""
    return "".join(re.findall(r'"((?:\\.|[^"\\])*)"', text)).replace('\\"', '"')


def rows() -> dict[str, str]:
    """One line of the table for each variable."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.[ch]")):
        if path.name == "opt.h":
            continue
        text = path.read_text()
        for match in ROW.finditer(text):
            args = arguments(text, match.end())
            name = literal(args[2]) if len(args) > 4 else ""
            if not name.isupper():
                continue  # a command's flag, not a variable
            kind = KINDS[match.group(1)]
            limits = f", {args[4]} … {args[5]}" if match.group(1) in ("INT", "SIZE", "DOUBLE") else ""
            default = f"`{literal(args[3])}`" if literal(args[3]) else "unset"
            found[name] = f"| `{name}` | {default} | {kind}{limits} | {literal(args[-1])} |\n"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the page is up to date; write nothing")
    args = parser.parse_args()
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, foot = rest.split(END)
    table = "| variable | default | type, range | what |\n|---|---|---|---|\n" + "".join(line for _, line in sorted(rows().items()))
    wanted = head + BEGIN + table + END + foot
    if wanted == page:
        return 0
    if args.check:
        print("docs/operations.md: the table of options is out of date: run python3 tools/options.py")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
