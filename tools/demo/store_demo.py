"""./run demo store: vLLM instances on the CPU, one after the other, share their prefix cache through our store.

vLLM's own MooncakeStoreConnector, as it is, puts the KV blocks of a prompt into the pool and takes them from there.
The first instance computes, and answers once more out of its own cache; each later one is a fresh process that must
find every full block in the pool and answer with the same tokens as out of that cache: when nothing else happened,
after the master was killed, and after the node was restarted. See docs/demo.md.
"""

import secrets
import sys
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout

import metrics
from client import Answer, ask, chat_body
from kv_pool import MEMORY, Pool
from lifelines import picture
from process import DemoError, free_ports
from prompts import DEFAULT_PROMPTS
from servers import READY_S, VllmServer, vllm_command, vllm_environment, write_log_config
from store_report import Load, Phase, Reading, megabytes, parse_loads, table
from story import Story
from timeline import seconds

WARM_UP = "Say hello."  # less than a block: it leaves nothing in the pool


class StoreDemo(Story):
    name = "store"
    module = "mooncake.store"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        prompts = self.args.prompt or [DEFAULT_PROMPTS[0]]
        self.prompts = prompts[:1] if self.args.one else prompts
        self.salts = [secrets.token_hex(8) for _ in self.prompts]  # no prompt finds another's blocks
        self.pool: Pool | None = None
        self.phases: list[Phase] = []
        self.ssd_bytes: int | None = None

    async def tell(self) -> None:
        # With the package's own programs: ours are in the environment, another's may lie in its package's folder.
        programs = Path(self.foreign_engine, "mooncake") if self.foreign_engine else Path(sys.executable).parent
        pool = self.pool = Pool(self.processes, self.work, self.args.transport, self.python_path, programs)
        self.say(f"pool: master {pool.address}, a node with {MEMORY} of memory and {pool.ssd}; logs in {self.work}")
        await pool.start()
        server = await self.phase(pool, Phase("A", "the first, the pool is empty"))
        held = await pool.wait_for_objects(sum(reading.full_blocks for reading in self.phases[0].readings))
        self.say(f"    {len(held)} blocks of KV are in the pool; the instance ends")
        await self.processes.stop(server)

        server = await self.phase(pool, Phase("B", "a fresh process"))
        await self.processes.stop(server)

        again_s = await pool.kill_master(held)
        self.say(f"\nmaster: kill -9, started again, all {len(held)} blocks served {seconds(again_s)} later")
        server = await self.phase(pool, Phase("C", "after kill -9 of the master", again_s))
        await self.processes.stop(server)

        await pool.wait_for_ssd(held)
        self.ssd_bytes = pool.ssd_bytes()
        await pool.restart_node(held)
        self.say(f"\nnode: SIGTERM, its memory is gone; started again on {megabytes(self.ssd_bytes)} of files")
        server = await self.phase(pool, Phase("D", "after a restart of the node", only_disk=True))
        self.closing(pool)
        if self.args.keep:
            self.say(f"\nthe pool's master: {pool.http_url}/metrics")
            await self.keep(server.url)

    def tidy(self) -> None:
        if self.pool is not None:
            self.pool.remove_files()

    async def phase(self, pool: Pool, phase: Phase) -> VllmServer:
        """A fresh instance answers every prompt; what must be true of an answer is checked at once."""
        self.say(f"\n[{phase.name}] an instance of vLLM: {phase.title}")
        server = self.instance(pool, phase.name)
        await self.processes.start(server, server.ready, READY_S)
        self.phases.append(phase)
        async with ClientSession(timeout=ClientTimeout(total=30.0)) as session:
            await ask(session, server.url, chat_body(WARM_UP, 2, secrets.token_hex(8)), f"{phase.name}-warm-up")
            block = await metrics.block_size(session, server.url)
            for number in range(len(self.prompts)):
                reading = await self.one_prompt(session, server, number, block)
                if phase.is_first:
                    reading.cached = await self.from_own_cache(session, server, number, reading)
                phase.readings.append(reading)
                phase.check(number, self.phases[0].readings[number], self.kv_bytes_per_token())
                self.say(f"    {reading.in_words()}")
        return server

    def instance(self, pool: Pool, name: str) -> VllmServer:
        port = free_ports(1)[0]
        transfer = {
            "kv_connector": "MooncakeStoreConnector",
            "kv_role": "kv_both",
            # Names the socket of the connector's own lookups, which lies in a folder that all users share.
            "kv_connector_extra_config": {"load_async": True, "lookup_rpc_port": port},
        }
        env = vllm_environment(self.python_path, write_log_config(self.work / "logging.json"), self.args.transport)
        env.update(MOONCAKE_CONFIG_PATH=str(pool.config), VLLM_MOONCAKE_STORE_TIER_LOG="1")
        command = vllm_command(self.model, port, transfer)
        return VllmServer(f"instance {name}", command, env, self.work / f"instance-{name}.log", port=port)

    async def one_prompt(self, session: ClientSession, server: VllmServer, number: int, block: int) -> Reading:
        prompt = self.prompts[number]
        logged = server.log.stat().st_size
        before = await metrics.store_reads(session, server.url)
        self.say(f"    ...{prompt.strip().splitlines()[-1]}")
        body = chat_body(prompt, self.args.max_tokens, self.salts[number])
        answer = await ask(session, server.url, body, f"{server.name[-1]}-{number}", self.show)
        self.say()

        async def read() -> Reading:
            now = await metrics.store_reads(session, server.url)
            load = Load.sum(parse_loads(server.log.read_bytes()[logged:].decode(errors="replace")))
            return Reading(prompt, answer, block, now.hits - before.hits, load, now.get_s - before.get_s)

        # Nothing is due from an empty pool: the first reading of the counters is as good as any.
        reading = await metrics.settle(read, lambda r: len(self.phases) == 1 or r.is_complete)
        self.verbose(f"    {reading}")
        return reading

    async def from_own_cache(
        self, session: ClientSession, server: VllmServer, number: int, computed: Reading
    ) -> Answer | None:
        """The same prompt again. Arithmetic in bf16 is not the same for a whole prompt and for its last few tokens, so
        only this answer says which tokens are due when the blocks are there already."""
        if not computed.due_tokens:
            return None  # the check of the reading says so
        before = await metrics.own_hits(session, server.url)
        body = chat_body(self.prompts[number], self.args.max_tokens, self.salts[number])
        answer = await ask(session, server.url, body, f"{server.name[-1]}-{number}-again")

        async def hits() -> int:
            return await metrics.own_hits(session, server.url) - before

        got = await metrics.settle(hits, lambda n: n >= computed.due_tokens)
        if got != computed.due_tokens:
            raise DemoError(f"instance A had {got} tokens in its own cache, {computed.due_tokens} were due")
        if answer.token_ids != computed.answer.token_ids:
            self.say(f"    out of its own cache it answers: {answer.text.strip()}")
        return answer

    def closing(self, pool: Pool) -> None:
        notes = [
            f"bytes: returned by our store for the blocks. On the SSD: {megabytes(self.ssd_bytes)} in files.",
            "TTFT: first token after the request, in an instance that has answered another one. "
            "without: instance A's, which computed the whole prompt. equal: to A's answer out of its own cache.",
        ]
        self.finish(picture(self.phases, [pool.master, pool.node, *self.instances()]), notes)

    def instances(self) -> list[VllmServer]:
        return [process for process in self.processes.all if isinstance(process, VllmServer)]

    def table(self) -> str:
        return table(self.phases) if self.phases and self.phases[0].readings else ""

    def results(self) -> dict[str, Any]:
        return {"phases": [phase.as_json(self.phases[0]) for phase in self.phases], "ssd_bytes": self.ssd_bytes}
