"""The pool of the store demo: `mooncake_master`, and one node, `mooncake_client`, that owns memory and an SSD
directory. What the pool holds is asked from the master over HTTP, as an operator would.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeVar

from aiohttp import ClientError, ClientSession, ClientTimeout

from process import HOST, DemoError, Process, Processes, answers, base_environment, free_ports

MEMORY = "512 MB"
CLIENT_BUFFER = "64 MB"  # of each vLLM's own client, for what it cannot send in place
START_S = 30.0
SETTLE_S = 30.0  # all that was put is there, or on the SSD, or served again, by then
SETTLE_POLL_S = 0.02

T = TypeVar("T")


class Pool:
    """Master and node, on ports and in folders that they keep when they are started again."""

    def __init__(
        self, processes: Processes, work: Path, transport: str, python_path: list[str], programs: Path
    ) -> None:
        self._processes = processes
        self._rpc_port, self._http_port, self._node_port = free_ports(3)
        self.ssd = work / "ssd"
        self.state = work / "state"
        self.config = work / "mooncake.json"
        self.address = f"{HOST}:{self._rpc_port}"
        self.http_url = f"http://{HOST}:{self._http_port}"
        env = base_environment(python_path)
        if transport == "tcp":
            env["MC_FORCE_TCP"] = "1"
        master_env = {**env, "XDG_STATE_HOME": str(self.state)}  # where our master keeps what outlives it
        command = [program("mooncake_master", programs), *self._master_flags()]
        self.master = Process("master", command, master_env, work / "master.log")
        node_env = {**env, "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": str(self.ssd)}
        command = [program("mooncake_client", programs), *self._node_flags()]
        self.node = Process("node", command, node_env, work / "node.log")

    def _master_flags(self) -> list[str]:
        return [
            f"--rpc_address={HOST}",
            f"--rpc_port={self._rpc_port}",
            f"--metrics_host={HOST}",
            f"--metrics_port={self._http_port}",
            "--enable_offload=true",
        ]

    def _node_flags(self) -> list[str]:
        return [
            f"--host={HOST}",
            f"--port={self._node_port}",
            f"--global_segment_size={MEMORY}",
            f"--master_server_address={self.address}",
            "--metadata_server=P2PHANDSHAKE",
            "--protocol=tcp",
            "--enable_offload=true",
        ]

    async def start(self) -> None:
        for folder in (self.ssd, self.state):
            folder.mkdir()
        self.config.write_text(json.dumps(self._client_config(), indent=2))
        await self._start_master()
        await self._start_node()

    def _client_config(self) -> dict[str, object]:
        """What vLLM's connector reads at MOONCAKE_CONFIG_PATH: its own process gives no memory to the pool."""
        return {
            "mode": "standalone-store",
            "metadata_server": "P2PHANDSHAKE",
            "master_server_address": self.address,
            "protocol": "tcp",
            "device_name": "",
            "global_segment_size": 0,
            "local_buffer_size": CLIENT_BUFFER,
            "enable_offload": True,
        }

    async def _start_master(self) -> None:
        async def ready(session: ClientSession) -> bool:
            return await answers(session, f"{self.http_url}/health")

        await self._processes.start(self.master, ready, START_S)

    async def _start_node(self) -> None:
        async def ready(session: ClientSession) -> bool:
            return bool((await self._get(session, "/get_all_segments", {})).strip())

        await self._processes.start(self.node, ready, START_S)

    async def kill_master(self, held: list[str]) -> float:
        """kill -9 and start it again. Returns how long after its start all that it held was served again."""
        await self._processes.kill(self.master)
        await self._start_master()
        return await self._served_again(held, self.master)

    async def restart_node(self, held: list[str]) -> None:
        """SIGTERM, the whole way down, and start it again on its SSD directory; all of `held` must be served again."""
        stubborn = await self._processes.stop(self.node)
        if stubborn:
            raise DemoError(f"the node did not end within its time after SIGTERM; its log is {self.node.log}")
        if await until_empty(self._segments):  # else the old one would be taken for the new one
            raise DemoError(f"the master lists the node {SETTLE_S:g} s after its end; its log is {self.master.log}")
        await self._start_node()
        await self._served_again(held, self.node)

    async def _served_again(self, held: list[str], process: Process) -> float:
        async def missing() -> set[str]:
            return set(held) - set(await self.keys())

        lacks = await until_empty(missing)
        if lacks:
            raise DemoError(
                f"{len(lacks)} of {len(held)} objects are not served {SETTLE_S:g} s after the restart of the "
                f"{process.name}, {sorted(lacks)[0]!r} among them; its log is {process.log}"
            )
        return time.time() - process.life.start

    async def _segments(self) -> list[str]:
        async with client_session() as session:
            return (await self._get(session, "/get_all_segments", {})).splitlines()

    async def keys(self) -> list[str]:
        """Every key that the master serves now."""
        async with client_session() as session:
            return (await self._get(session, "/get_all_keys", {})).splitlines()

    async def wait_for_objects(self, count: int) -> list[str]:
        """The keys once there are `count` of them: an engine puts them after it has answered."""

        async def missing() -> range:
            return range(count - len(await self.keys()))

        lacks = await until_empty(missing)
        if lacks:
            raise DemoError(
                f"the pool holds {count - len(lacks)} objects {SETTLE_S:g} s after the answer, {count} were due: "
                "the instance did not put all full blocks of its prompt"
            )
        return await self.keys()

    async def wait_for_ssd(self, held: list[str]) -> None:
        """Return when each object is on the SSD, by the master's word."""

        async def missing() -> set[str]:
            return set(held) - on_ssd(await self._describe(held))

        lacks = await until_empty(missing)
        if lacks:
            raise DemoError(
                f"{len(lacks)} of {len(held)} objects are not on the SSD after {SETTLE_S:g} s, {sorted(lacks)[0]!r} "
                f"among them; the node's log is {self.node.log}"
            )

    async def _describe(self, keys: list[str]) -> dict[str, dict]:
        async with client_session() as session:
            text = await self._get(session, "/batch_query_keys", {"keys": ",".join(keys)})
        try:
            return json.loads(text)["data"]
        except (json.JSONDecodeError, KeyError, TypeError) as exc:
            raise DemoError(f"{self.http_url}/batch_query_keys answered {text!r:.300}: {exc!r}") from exc

    async def _get(self, session: ClientSession, path: str, query: dict[str, str]) -> str:
        try:
            async with session.get(self.http_url + path, params=query) as reply:
                text = await reply.text()
                if reply.status != 200:
                    raise DemoError(f"{self.http_url}{path} answered HTTP {reply.status}: {text:.300}")
                return text
        except (ClientError, OSError, TimeoutError) as exc:
            raise DemoError(f"{self.http_url}{path} cannot be read: {exc or type(exc).__name__}") from exc

    def ssd_bytes(self) -> int:
        """What its files occupy."""
        return sum(f.stat().st_blocks * 512 for f in self.ssd.rglob("*") if f.is_file())

    def remove_files(self) -> None:
        for folder in (self.ssd, self.state):
            shutil.rmtree(folder, ignore_errors=True)


def on_ssd(described: dict[str, dict]) -> set[str]:
    return {key for key, state in described.items() if state.get("ok") and state.get("local_disk_values")}


def client_session() -> ClientSession:
    return ClientSession(timeout=ClientTimeout(total=10.0))


async def until_empty(missing: Callable[[], Awaitable[Collection[T]]]) -> Collection[T]:
    """Ask until nothing is missing, or SETTLE_S have passed; returns what is missing then."""
    end = time.monotonic() + SETTLE_S
    while True:
        lacks = await missing()
        if not lacks or time.monotonic() > end:
            return lacks
        await asyncio.sleep(SETTLE_POLL_S)


def program(name: str, folder: Path) -> str:
    path = shutil.which(name, path=str(folder))
    if path is None:
        raise DemoError(f"there is no program {name} in {folder}. Run ./run demo store")
    return path
