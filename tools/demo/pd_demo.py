"""./run demo pd: two real vLLM servers on the CPU, prefill and decode apart, the KV cache moving through our
Transfer Engine.

The story of a prompt: the proxy sends it to the prefill server; vLLM's own MooncakeConnector there pushes the KV
cache into the decode server's memory through `mooncake.engine`; the decode server answers. Then the prefill server
answers the same prompt alone, and the texts must be equal. See docs/demo.md.
"""

import asyncio
import secrets
import time
from typing import Any

from aiohttp import ClientSession, ClientTimeout

import metrics
from client import ask, chat_body
from process import HOST, free_ports
from prompts import DEFAULT_PROMPTS
from proxy import Proxy, ProxyConfig, start_proxy
from report import Run, table
from servers import PdServer, PdServers
from story import Story
from timeline import render, transfers

LOG_SLACK_S = 0.5  # a log line may be written this much after what the proxy saw


class PdDemo(Story):
    name = "pd"
    module = "mooncake.engine"
    needs_shim = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.runs: list[Run] = []
        self.marks: dict[str, dict[str, float]] = {}

    def observe(self, request_id: str, step: str) -> None:
        """The proxy calls it at each step of a request."""
        self.marks.setdefault(request_id, {})[step] = time.time()
        self.verbose(f"    proxy: {request_id} {step}")

    async def tell(self) -> None:
        self.say(
            "vLLM's connector asks torch for an accelerator; tools/demo/cpu_shim answers for the CPU (vLLM's gap)"
        )
        servers = PdServers(self.model, self.work, self.args.transport, self.python_path)
        self.say(f"servers: prefill {servers.prefill.url}, decode {servers.decode.url}; logs in {self.work}")
        await servers.start(self.processes)
        config = ProxyConfig(servers.prefill.url, servers.decode.url, servers.prefill.bootstrap_url)
        port = free_ports(1)[0]
        async with Proxy(config, self.observe) as proxy:
            runner = await start_proxy(proxy, HOST, port)
            try:
                await self.send_prompts(servers, f"http://{HOST}:{port}")
                self.closing()
                if self.args.keep:
                    await self.keep(f"http://{HOST}:{port}")
            finally:
                await asyncio.shield(runner.cleanup())

    async def send_prompts(self, servers: PdServers, proxy_url: str) -> None:
        prompts = self.args.prompt or list(DEFAULT_PROMPTS)
        async with ClientSession(timeout=ClientTimeout(total=30.0)) as session:
            for number, prompt in enumerate(prompts[:1] if self.args.one else prompts, 1):
                self.say(f"\n[{number}] ...{prompt.strip().splitlines()[-1]}")
                run = await self.one_prompt(session, servers, proxy_url, prompt)
                self.runs.append(run)
                run.check(self.args.transport)

    async def one_prompt(self, session: ClientSession, servers: PdServers, proxy_url: str, prompt: str) -> Run:
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

    async def logged_transfers(self, servers: PdServers, start: float, end: float) -> list[tuple[float, float]]:
        return transfers(servers.prefill.log, start, end + LOG_SLACK_S)

    async def engine_bytes(self, session: ClientSession, server: PdServer) -> dict[str, int]:
        return {} if self.foreign_engine else await metrics.engine_bytes(session, server.engine_metrics_url)

    async def moved_since(
        self, session: ClientSession, server: PdServer, before: dict[str, int], expected: int
    ) -> dict[str, int] | None:
        """Bytes the prefill server's engine wrote to the other side since `before`, by transport."""
        if self.foreign_engine:
            return None

        async def read() -> dict[str, int]:
            now = await metrics.engine_bytes(session, server.engine_metrics_url)
            return {k: v - before.get(k, 0) for k, v in now.items() if v > before.get(k, 0)}

        return await metrics.settle(read, lambda moved: sum(moved.values()) >= expected)

    def closing(self) -> None:
        caption = f"Prefill and decode apart, KV over {self.args.transport}"
        picture = render([run.timeline() for run in self.runs], caption)
        notes = [
            "KV moved: counted by our engine (whole blocks). "
            "transfer: the engine's call, as vLLM's connector timed it."
        ]
        self.finish(picture, notes)

    def table(self) -> str:
        return table(self.runs) if self.runs else ""

    def results(self) -> dict[str, Any]:
        return {"runs": [run.as_json() for run in self.runs]}
