"""embed.py FILE HEADER NAME: a header that says where a file is, and changes when the file does: for .incbin."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def main() -> int:
    file, header, name = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    header.write_text(f'/* {digest} */\n#define {name} "{file}"\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
