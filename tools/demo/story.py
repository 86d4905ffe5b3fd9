"""What the demos have in common: where they write, what they check before they start, how they end."""

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_package
from process import DemoError, Processes, Progress
from servers import MODEL_NAME

RUNS_KEPT = 10
BF16_BYTES = 2


class Story:
    """One demo, once. What a person reads goes to `out`, which is stderr when stdout carries the JSON."""

    name = ""  # as on the command line
    module = ""  # the module of ours that it stands on
    needs_shim = False  # vLLM's own gap on a CPU, see cpu_shim

    def __init__(self, args: argparse.Namespace, cache: Path, publish: Callable[[dict[str, Any]], None]) -> None:
        self.args = args
        self.publish = publish
        self.out = sys.stderr if args.json else sys.stdout
        self.model = cache / "model"
        self.work = make_work_dir(cache / "demo", self.name)
        self.svg = Path(args.svg) if args.svg else self.work / "timeline.svg"
        self.progress = Progress(self.out)
        self.processes = Processes(self.progress)
        # For comparing with another engine: its folder, and no counters of ours to ask for.
        self.foreign_engine = os.environ.get("MC_DEMO_ENGINE_PATH")
        shim = [str(Path(__file__).resolve().parent / "cpu_shim")] if self.needs_shim else []
        self.python_path = [*shim, *([self.foreign_engine] if self.foreign_engine else [])]
        self.engine: dict[str, Any] = {}
        self.finished = False

    async def tell(self) -> None:
        """The demo itself; its processes are ended by who calls this."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove what is large and of no use once the processes have ended."""

    def table(self) -> str:
        """The closing table, as far as there is one; "" before the first result."""
        raise NotImplementedError

    def results(self) -> dict[str, Any]:
        """What this demo adds to the JSON."""
        raise NotImplementedError

    async def main(self) -> None:
        self.check_setup()
        try:
            async with self.processes:
                await self.processes.while_alive(self.tell())
        finally:
            self.progress.close()
            self.tidy()

    def say(self, text: str = "") -> None:
        self.progress.close()
        print(text, file=self.out, flush=True)

    def verbose(self, text: str) -> None:
        if self.args.verbose:
            self.say(text)

    def show(self, piece: str) -> None:
        self.out.write(piece)
        self.out.flush()

    def check_setup(self) -> None:
        if not (self.model / "config.json").is_file():
            raise DemoError(f"no model in {self.model}: tools/demo/setup.sh makes it")
        self.engine = engine_package.probe(self.python_path, self.module)
        if self.foreign_engine:
            self.say(f"engine: {self.engine['engine']} (MC_DEMO_ENGINE_PATH; its bytes are not counted)")
            return
        engine_package.check(self.engine)
        self.say(f"engine: {engine_package.DIST_NAME} {self.engine['version']}, {self.engine['engine']}")

    def kv_bytes_per_token(self) -> int:
        config = json.loads((self.model / "config.json").read_text())
        return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * BF16_BYTES

    def finish(self, picture: str, notes: list[str]) -> None:
        self.svg.parent.mkdir(parents=True, exist_ok=True)
        self.svg.write_text(picture)
        self.say(f"\n{self.table()}\n")
        for note in notes:
            self.say(note)
        self.say(f"picture: {self.svg}")
        self.say(f"demo {self.name}: ok")
        self.finished = True
        self.publish(self.as_json(None))

    async def keep(self, url: str) -> None:
        body = json.dumps(
            {"model": MODEL_NAME, "messages": [{"role": "user", "content": "What is the Moon?"}], "max_tokens": 64}
        )
        self.say(f"\nserving until Ctrl-C, an OpenAI endpoint at {url}/v1:")
        self.say(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
        await asyncio.Event().wait()

    def as_json(self, error: str | None) -> dict[str, Any]:
        return {
            "demo": self.name,
            "ok": error is None,
            "error": error,
            "transport": self.args.transport,
            "engine": {"version": self.engine.get("version"), "file": self.engine.get("engine")},
            "start_s": {p.name: round(p.ready_s, 1) for p in self.processes.all},
            "logs": [str(p.log) for p in self.processes.all],
            "timeline_svg": str(self.svg) if self.svg.is_file() else None,
            **self.results(),
        }

    def fail(self, error: DemoError) -> None:
        table = self.table()
        if table:
            self.say(f"\n{table}")
        for process in (p for p in self.processes.all if p.last_lines):
            print(f"\nend of the log of the {process.name}, {process.log}:\n{process.last_lines}", file=sys.stderr)
        print(f"\ndemo {self.name}: FAILED: {error}", file=sys.stderr, flush=True)
        self.publish(self.as_json(str(error)))


def make_work_dir(parent: Path, name: str) -> Path:
    """A folder for this call's logs and picture; the oldest beyond RUNS_KEPT go."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(p for p in parent.iterdir() if p.is_dir())[: -RUNS_KEPT + 1]:
        shutil.rmtree(old, ignore_errors=True)
    work = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{name}"
    work.mkdir()
    return work


async def run(story: Story) -> int:
    """Run to an exit status. The first SIGINT, SIGTERM or SIGHUP ends the work, and that ends the processes."""
    task = asyncio.create_task(story.main())
    caught: list[int] = []

    def on_signal(number: int) -> None:
        if not caught:
            task.cancel()
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        await task
        return 0
    except DemoError as error:
        story.fail(error)
        return 1
    except asyncio.CancelledError:
        if not caught:
            raise
        if story.finished:  # only --keep was still going on
            return 0
        print("\ndemo: interrupted", file=sys.stderr)
        return 128 + caught[0]
