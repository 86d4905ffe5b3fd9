"""Say how to compile against the library inside this package: `cc x.c $(python -m mooncake.config --cflags --libs)`."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mooncake.config", description=__doc__)
    parser.add_argument("--cflags", action="store_true", help="flags for the compiler")
    parser.add_argument("--libs", action="store_true", help="flags for the linker")
    parser.add_argument("--pkgconfig", action="store_true", help="directory for PKG_CONFIG_PATH")
    args = parser.parse_args()
    words = []
    if args.cflags:
        words.append(f"-I{ROOT / 'include'}")
    if args.libs:
        words += [f"-L{ROOT / 'lib'}", "-lmooncake", f"-Wl,-rpath,{ROOT / 'lib'}"]
    if args.pkgconfig:
        words.append(str(ROOT / "lib" / "pkgconfig"))
    if not words:
        parser.error("name at least one of --cflags, --libs, --pkgconfig")
    print(*words)


if __name__ == "__main__":
    main()
