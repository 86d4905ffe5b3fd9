"""Write a file as a C array: embed.py IN OUT NAME. The build calls it for what is compiled in."""

import sys
from pathlib import Path


def main() -> None:
    source, target, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    data = source.read_bytes()
    rows = (", ".join(str(byte) for byte in data[at : at + 24]) for at in range(0, len(data), 24))
    body = ",\n\t".join(rows)
    target.write_text(f"/* {source.name}, by embed.py */\nstatic const unsigned char {name}[] = {{\n\t{body}\n}};\n")


if __name__ == "__main__":
    main()
