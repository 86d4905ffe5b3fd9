"""./run demo: real vLLM servers on the CPU, on our engine and our store; experts across processes. Runs in the environment
that setup.sh makes.

Three demos, each in a module of its own: pd_demo.py (prefill and decode apart), store_demo.py (a pool of KV that
outlives the engines, the master and the node) and ep_demo.py (a layer of experts that outlives its ranks). See
docs/demo.md.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from ep_demo import EpDemo
from pd_demo import PdDemo
from story import Story, run
from store_demo import StoreDemo

DEMOS: dict[str, type[Story]] = {demo.name: demo for demo in (PdDemo, StoreDemo, EpDemo)}
BY_DEFAULT = ["pd", "store"]


def cache_dir() -> Path:
    return Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache" / "mooncake-c")


def positive(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too few: 2 or more, the first token alone shows no decoding")
    return value


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run demo", description="Real vLLM servers, on our engine and our store.")
    parser.add_argument(
        "what",
        nargs="?",
        choices=tuple(DEMOS),
        help="pd: prefill and decode apart; store: a pool of KV that outlives engines, master and node; ep: "
        "a layer of experts that outlives its ranks "
        f"(default: {', then '.join(BY_DEFAULT)})",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="send this (may be repeated; default: pd three of ~1400 tokens, store the first of them)",
    )
    parser.add_argument("--one", action="store_true", help="the first prompt only")
    parser.add_argument("--transport", choices=("tcp", "shm"), default="tcp", help="how the KV moves (default: tcp)")
    parser.add_argument(
        "--max-tokens", type=positive, default=48, metavar="N", help="length of each answer (default: 48)"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="then leave it serving an OpenAI endpoint until Ctrl-C (pd or store, not both)",
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, everything else on stderr")
    parser.add_argument(
        "--svg", metavar="FILE", help="where the picture goes (pd or store, not both; default: next to the logs)"
    )
    parser.add_argument("--verbose", action="store_true", help="every step and every counter")
    args = parser.parse_args(argv)
    args.demos = [args.what] if args.what else BY_DEFAULT
    if len(args.demos) > 1:
        for option in ("keep", "svg"):
            if getattr(args, option):
                parser.error(f"--{option} is for one demo: say which, as in ./run demo store --{option}")
    return args


async def run_all(args: argparse.Namespace) -> int:
    """One after the other; the first that fails ends it. With --json one object comes out, on every path."""
    told: list[dict[str, Any]] = []

    def publish(result: dict[str, Any]) -> None:
        told.append(result)
        if args.json and len(args.demos) == 1:
            print(json.dumps(result, indent=2), flush=True)

    status = 0
    for name in args.demos:
        status = await run(DEMOS[name](args, cache_dir(), publish))
        if status != 0:
            break
    if args.json and len(args.demos) > 1:
        print(json.dumps({"ok": status == 0, "demos": told}, indent=2), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(run_all(parse_args(sys.argv[1:]))))
