"""Expert parallelism, and the process group it is built on: what is in mooncake.pg, Buffer, and ElasticBuffer."""

from __future__ import annotations

from mooncake import pg as _pg
from mooncake.mooncake_elastic_buffer import ElasticBuffer, EPHandle
from mooncake.mooncake_ep_buffer import Buffer, EventOverlap
from mooncake.pg import *  # noqa: F403 - upstream's mooncake.ep has those names, too

get_ep_buffer_size_hint = Buffer.get_ep_buffer_size_hint

__all__ = [*_pg.__all__, "Buffer", "EPHandle", "ElasticBuffer", "EventOverlap", "get_ep_buffer_size_hint"]
