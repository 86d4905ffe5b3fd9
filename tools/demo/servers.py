"""The vLLM API servers of the demos, one kind of command and environment for all of them."""

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from process import HOST, Process, Processes, answers, base_environment, free_ports

HERE = Path(__file__).resolve().parent
MODEL_NAME = "smollm2-135m"
READY_S = 420.0
PARALLEL_MEM_BYTES = 6 << 30  # two servers at ~2.3 GB each, and room for the rest
CONNECTOR_LOGGER = "vllm.distributed.kv_transfer.kv_connector.v1.mooncake.mooncake_connector"


@dataclass(eq=False)
class VllmServer(Process):
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def ready(self, session: ClientSession) -> bool:
        return await answers(session, f"{self.url}/health")


@dataclass(eq=False)
class PdServer(VllmServer):
    """One of a pair. `metrics_port` is where our engine inside it serves its own counters."""

    role: str = ""  # "prefill" or "decode"
    metrics_port: int = 0
    bootstrap_port: int = 0

    @property
    def bootstrap_url(self) -> str:
        return f"http://{HOST}:{self.bootstrap_port}"

    @property
    def engine_metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"


def vllm_command(model: Path, port: int, transfer: dict[str, Any]) -> list[str]:
    options = ["--model", str(model), "--served-model-name", MODEL_NAME, "--dtype", "bfloat16"]
    options += ["--host", HOST, "--port", str(port), "--enforce-eager", "--max-model-len", "4096"]
    options += ["--max-num-seqs", "4", "--generation-config", "vllm", "--distributed-executor-backend", "uni"]
    options += ["--kv-transfer-config", json.dumps(transfer)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]


def vllm_environment(python_path: list[str], log_config: Path, transport: str) -> dict[str, str]:
    env = base_environment(python_path)
    env.update(
        HF_HUB_OFFLINE="1",
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        OMP_NUM_THREADS="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_HOST_IP=HOST,
        VLLM_LOGGING_CONFIG_PATH=str(log_config),
    )
    if transport == "tcp":
        env["MC_FORCE_TCP"] = "1"
    return env


def write_log_config(path: Path) -> Path:
    """vLLM's log with times in seconds, and the connector's debug lines, from which the timeline takes the transfer."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"demo": {"format": "%(created).6f %(levelname)s [%(name)s] %(message)s"}},
        "handlers": {"demo": {"class": "logging.StreamHandler", "formatter": "demo", "stream": "ext://sys.stdout"}},
        "loggers": {
            "vllm": {"handlers": ["demo"], "level": "INFO", "propagate": False},
            CONNECTOR_LOGGER: {"level": "DEBUG"},
        },
    }
    path.write_text(json.dumps(config, indent=2))
    return path


class PdServers:
    """The prefill and the decode server."""

    def __init__(self, model: Path, work: Path, transport: str, python_path: list[str]) -> None:
        ports = free_ports(5)
        log_config = write_log_config(work / "logging.json")

        def server(role: str, kv_role: str, port: int, metrics_port: int) -> PdServer:
            extra = {"mooncake_protocol": "tcp", "num_workers": 2}
            transfer = {"kv_connector": "MooncakeConnector", "kv_role": kv_role, "kv_connector_extra_config": extra}
            env = vllm_environment(python_path, log_config, transport)
            env.update(
                VLLM_MOONCAKE_BOOTSTRAP_PORT=str(ports[2]),
                VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT="60",
                MC_METRICS_PORT=str(metrics_port),
            )
            return PdServer(
                f"{role} server",
                vllm_command(model, port, transfer),
                env,
                work / f"{role}.log",
                port=port,
                role=role,
                metrics_port=metrics_port,
                bootstrap_port=ports[2],
            )

        self.prefill = server("prefill", "kv_producer", ports[0], ports[1])
        self.decode = server("decode", "kv_consumer", ports[3], ports[4])
        self.all = (self.prefill, self.decode)

    async def start(self, processes: Processes) -> None:
        """Return when both answer. Together where memory allows: most of a start is Python imports, one core each."""
        if memory_available() >= PARALLEL_MEM_BYTES:
            await first_failure(processes.start(server, server.ready, READY_S) for server in self.all)
            return
        for server in self.all:
            await processes.start(server, server.ready, READY_S)


def memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


async def first_failure(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one fails, cancel the rest and raise its exception as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
