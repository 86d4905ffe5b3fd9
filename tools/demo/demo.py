"""./run demo: two real vLLM servers on the CPU, prefill and decode apart, the KV cache moving through our
Transfer Engine.

Runs in the environment that setup.sh makes. The story of a prompt: the proxy sends it to the prefill server;
vLLM's own MooncakeConnector there pushes the KV cache into the decode server's memory through
`mooncake.engine`; the decode server answers. Then the prefill server answers the same prompt alone, and the
texts must be equal. See docs/demo.md.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout

import engine_package
import metrics
from client import ask, chat_body
from prompts import DEFAULT_PROMPTS
from proxy import Proxy, ProxyConfig, start_proxy
from report import Run, table
from servers import HERE, HOST, MODEL_NAME, DemoError, Progress, Server, Servers, free_ports
from timeline import render, transfers

RUNS_KEPT = 10
LOG_SLACK_S = 0.5  # a log line may be written this much after what the proxy saw
BF16_BYTES = 2


class Demo:
    """One call of ./run demo. What a person reads goes to `out`, which is stderr when stdout carries the JSON."""

    def __init__(self, args: argparse.Namespace, cache: Path) -> None:
        self.args = args
        self.out = sys.stderr if args.json else sys.stdout
        self.model = cache / "model"
        self.work = make_work_dir(cache / "demo")
        self.svg = Path(args.svg) if args.svg else self.work / "timeline.svg"
        # For comparing with another engine: its folder, and no counters of ours to ask for.
        self.foreign_engine = os.environ.get("MC_DEMO_ENGINE_PATH")
        self.python_path = [str(HERE / "cpu_shim"), *([self.foreign_engine] if self.foreign_engine else [])]
        self.engine: dict[str, Any] = {}
        self.servers: Servers | None = None
        self.runs: list[Run] = []
        self.finished = False
        self.marks: dict[str, dict[str, float]] = {}

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def verbose(self, text: str) -> None:
        if self.args.verbose:
            self.say(text)

    def observe(self, request_id: str, step: str) -> None:
        """The proxy calls it at each step of a request."""
        self.marks.setdefault(request_id, {})[step] = time.time()
        self.verbose(f"    proxy: {request_id} {step}")

    async def main(self) -> None:
        self.check_setup()
        async with Servers(self.model, self.work, self.args.transport, self.python_path) as servers:
            self.servers = servers
            self.say(f"servers: prefill {servers.prefill.url}, decode {servers.decode.url}; logs in {self.work}")
            progress = Progress(self.out)
            try:
                await servers.start(progress)
            finally:
                progress.close()
            await self.while_alive(servers, self.serve(servers))

    def check_setup(self) -> None:
        if not (self.model / "config.json").is_file():
            raise DemoError(f"no model in {self.model}: tools/demo/setup.sh makes it")
        self.engine = engine_package.probe(self.python_path)
        if self.foreign_engine:
            self.say(f"engine: {self.engine['engine']} (MC_DEMO_ENGINE_PATH; its bytes are not counted)")
            return
        engine_package.check(self.engine)
        self.say(f"engine: {engine_package.DIST_NAME} {self.engine['version']}, {self.engine['engine']}")
        self.say(
            "vLLM's connector asks torch for an accelerator; tools/demo/cpu_shim answers for the CPU (vLLM's gap)"
        )

    async def while_alive(self, servers: Servers, work: Any) -> None:
        """Do the work; a server that ends meanwhile ends the work with its name and log."""
        job, watch = asyncio.create_task(work), asyncio.create_task(servers.watch())
        try:
            await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            job.result()
        finally:
            for task in (job, watch):
                task.cancel()
            await asyncio.gather(job, watch, return_exceptions=True)

    async def serve(self, servers: Servers) -> None:
        config = ProxyConfig(servers.prefill.url, servers.decode.url, servers.prefill.bootstrap_url)
        port = free_ports(1)[0]
        async with Proxy(config, self.observe) as proxy:
            runner = await start_proxy(proxy, HOST, port)
            try:
                await self.send_prompts(servers, f"http://{HOST}:{port}")
                self.finish()
                if self.args.keep:
                    await self.keep(f"http://{HOST}:{port}")
            finally:
                await asyncio.shield(runner.cleanup())

    async def send_prompts(self, servers: Servers, proxy_url: str) -> None:
        prompts = self.args.prompt or list(DEFAULT_PROMPTS)
        async with ClientSession(timeout=ClientTimeout(total=30.0)) as session:
            for number, prompt in enumerate(prompts[:1] if self.args.one else prompts, 1):
                self.say(f"\n[{number}] ...{prompt.strip().splitlines()[-1]}")
                run = await self.one_prompt(session, servers, proxy_url, prompt)
                self.runs.append(run)
                run.check(self.args.transport)

    async def one_prompt(self, session: ClientSession, servers: Servers, proxy_url: str, prompt: str) -> Run:
        block = await metrics.block_size(session, servers.decode.url)
        hits_before = await metrics.external_hits(session, servers.decode.url)
        bytes_before = await self.engine_bytes(session, servers.prefill)
        request_id = f"demo-{secrets.token_hex(4)}"
        split = await ask(session, proxy_url, self.body(prompt), request_id, self.show)
        self.say()
        single = await ask(session, servers.prefill.url, self.body(prompt), f"{request_id}-single")

        due = max(1, split.prompt_tokens - block)
        hits = await metrics.settle(
            lambda: metrics.external_hits(session, servers.decode.url), lambda n: n - hits_before >= due
        )
        expected = split.prompt_tokens * self.kv_bytes_per_token()
        counted = await self.moved_since(session, servers.prefill, bytes_before, expected)
        self.verbose(f"    decode server's external hits: {hits_before} -> {hits}; engine's bytes: {counted}")
        sent = await metrics.settle(lambda: self.logged_transfers(servers, split.sent, split.ended), bool)
        return Run(prompt, split, single, hits - hits_before, block, expected, counted, self.marks[request_id], sent)

    def body(self, prompt: str) -> dict[str, Any]:
        return chat_body(prompt, self.args.max_tokens, secrets.token_hex(8))

    def show(self, piece: str) -> None:
        self.out.write(piece)
        self.out.flush()

    async def logged_transfers(self, servers: Servers, start: float, end: float) -> list[tuple[float, float]]:
        return transfers(servers.prefill.log, start, end + LOG_SLACK_S)

    async def engine_bytes(self, session: ClientSession, server: Server) -> dict[str, int]:
        return {} if self.foreign_engine else await metrics.engine_bytes(session, server.engine_metrics_url)

    async def moved_since(
        self, session: ClientSession, server: Server, before: dict[str, int], expected: int
    ) -> dict[str, int] | None:
        """Bytes the prefill server's engine wrote to the other side since `before`, by transport."""
        if self.foreign_engine:
            return None

        async def read() -> dict[str, int]:
            now = await metrics.engine_bytes(session, server.engine_metrics_url)
            return {k: v - before.get(k, 0) for k, v in now.items() if v > before.get(k, 0)}

        return await metrics.settle(read, lambda moved: sum(moved.values()) >= expected)

    def kv_bytes_per_token(self) -> int:
        config = json.loads((self.model / "config.json").read_text())
        return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * BF16_BYTES

    def finish(self) -> None:
        self.svg.parent.mkdir(parents=True, exist_ok=True)
        caption = f"Prefill and decode apart, KV over {self.args.transport}"
        self.svg.write_text(render([run.timeline() for run in self.runs], caption))
        self.say(f"\n{table(self.runs)}\n")
        self.say(
            "KV moved: counted by our engine (whole blocks). transfer: the engine's call, as vLLM's connector timed it."
        )
        self.say(f"picture: {self.svg}")
        self.say("demo: ok")
        self.finished = True
        if self.args.json:
            print(json.dumps(self.as_json(None), indent=2), flush=True)

    async def keep(self, url: str) -> None:
        body = json.dumps(
            {"model": MODEL_NAME, "messages": [{"role": "user", "content": "What is the Moon?"}], "max_tokens": 64}
        )
        self.say(f"\nserving until Ctrl-C, an OpenAI endpoint at {url}/v1:")
        self.say(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
        await asyncio.Event().wait()

    def as_json(self, error: str | None) -> dict[str, Any]:
        servers = self.servers.all if self.servers else ()
        return {
            "ok": error is None,
            "error": error,
            "transport": self.args.transport,
            "engine": {"version": self.engine.get("version"), "file": self.engine.get("engine")},
            "start_s": {s.role: round(s.ready_s, 1) for s in servers},
            "logs": [str(s.log) for s in servers],
            "timeline_svg": str(self.svg) if self.svg.is_file() else None,
            "runs": [run.as_json() for run in self.runs],
        }

    def fail(self, error: DemoError) -> None:
        if self.runs:
            self.say(f"\n{table(self.runs)}")
        for server in self.servers.all if self.servers else ():
            print(f"\nend of the {server.role} server's log {server.log}:\n{server.last_lines}", file=sys.stderr)
        print(f"\ndemo: FAILED: {error}", file=sys.stderr, flush=True)
        if self.args.json:
            print(json.dumps(self.as_json(str(error)), indent=2), flush=True)


def make_work_dir(parent: Path) -> Path:
    """A folder for this call's logs and picture; the oldest beyond RUNS_KEPT go."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(p for p in parent.iterdir() if p.is_dir())[: -RUNS_KEPT + 1]:
        shutil.rmtree(old, ignore_errors=True)
    work = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    work.mkdir()
    return work


def cache_dir() -> Path:
    return Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache" / "mooncake-c")


def positive(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too few: 2 or more, the first token alone shows no decoding")
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Two real vLLM servers, prefill and decode apart, on our engine."
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="send this (may be repeated; default: three of ~1300 tokens)",
    )
    parser.add_argument("--one", action="store_true", help="send the first prompt only")
    parser.add_argument("--transport", choices=("tcp", "shm"), default="tcp", help="how the KV moves (default: tcp)")
    parser.add_argument(
        "--max-tokens", type=positive, default=48, metavar="N", help="length of each answer (default: 48)"
    )
    parser.add_argument("--keep", action="store_true", help="then leave it serving an OpenAI endpoint until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, everything else on stderr")
    parser.add_argument(
        "--svg", metavar="FILE", help="where the picture of the timeline goes (default: next to the logs)"
    )
    parser.add_argument("--verbose", action="store_true", help="every step of the proxy and every counter")
    return parser.parse_args()


async def guarded(demo: Demo) -> int:
    """Run to an exit status. The first SIGINT, SIGTERM or SIGHUP ends the work, and that ends the servers."""
    task = asyncio.create_task(demo.main())
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
        demo.fail(error)
        return 1
    except asyncio.CancelledError:
        if not caught:
            raise
        if demo.finished:  # only --keep was still going on
            return 0
        print("\ndemo: interrupted", file=sys.stderr)
        return 128 + caught[0]


def main() -> int:
    args = parse_args()
    return asyncio.run(guarded(Demo(args, cache_dir())))


if __name__ == "__main__":
    sys.exit(main())
