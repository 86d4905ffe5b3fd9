"""Reads counters from Prometheus text: vLLM's own and those that our engine serves from inside it."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import ClientError, ClientSession

from process import DemoError

OWN_HITS = "vllm:prefix_cache_hits_total"
EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"
STORE_SECONDS = "vllm:mooncake_store_operation_time_seconds_sum"
CACHE_CONFIG = "vllm:cache_config_info"
ENGINE_BYTES = "mc_transfer_bytes_total"
SETTLE_S = 5.0  # counters of a finished request may come this much later

T = TypeVar("T")

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([-+0-9.eE]+|[-+]?Inf|NaN)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    samples = []
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match:
            name, labels, value = match.groups()
            samples.append(Sample(name, dict(_LABEL.findall(labels or "")), float(value)))
    return samples


def total(samples: list[Sample], name: str, **labels: str) -> float:
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def scrape(session: ClientSession, url: str) -> list[Sample]:
    try:
        async with session.get(url) as reply:
            if reply.status != 200:
                raise DemoError(f"{url} answered HTTP {reply.status}")
            return parse(await reply.text())
    except (ClientError, OSError, TimeoutError) as exc:
        raise DemoError(f"{url} cannot be read: {exc or type(exc).__name__}") from exc


async def external_hits(session: ClientSession, server_url: str) -> int:
    """Prompt tokens whose KV this server has taken from another one, so far."""
    return int(total(await scrape(session, f"{server_url}/metrics"), EXTERNAL_HITS))


async def own_hits(session: ClientSession, server_url: str) -> int:
    """Prompt tokens whose KV this server had itself, so far."""
    return int(total(await scrape(session, f"{server_url}/metrics"), OWN_HITS))


@dataclass(frozen=True)
class StoreReads:
    """What an instance has had from the pool so far: prompt tokens, and the time of our store's calls."""

    hits: int
    get_s: float


async def store_reads(session: ClientSession, server_url: str) -> StoreReads:
    samples = await scrape(session, f"{server_url}/metrics")
    return StoreReads(int(total(samples, EXTERNAL_HITS)), total(samples, STORE_SECONDS, operation="load_get"))


async def block_size(session: ClientSession, server_url: str) -> int:
    for sample in await scrape(session, f"{server_url}/metrics"):
        if sample.name == CACHE_CONFIG and sample.labels.get("block_size", "").isdigit():
            return int(sample.labels["block_size"])
    raise DemoError(f"{server_url}/metrics does not tell the KV block size ({CACHE_CONFIG})")


async def engine_bytes(session: ClientSession, metrics_url: str) -> dict[str, int]:
    """Bytes that our engine has transferred so far, by transport."""
    out: dict[str, int] = {}
    for sample in await scrape(session, metrics_url):
        if sample.name == ENGINE_BYTES:
            transport = sample.labels.get("transport", "?")
            out[transport] = out.get(transport, 0) + int(sample.value)
    return out


async def settle(read: Callable[[], Awaitable[T]], enough: Callable[[T], bool]) -> T:
    """Read until it is enough or SETTLE_S have passed; the last reading is returned either way."""
    end = time.monotonic() + SETTLE_S
    while True:
        value = await read()
        if enough(value) or time.monotonic() > end:
            return value
        await asyncio.sleep(0.1)
