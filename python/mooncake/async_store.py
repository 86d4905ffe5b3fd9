"""The Store for asyncio: `await store.async_get("key")` runs `get` beside the loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from mooncake.store import MooncakeDistributedStore

_PREFIX = "async_"


class MooncakeDistributedStoreAsync(MooncakeDistributedStore):
    """Each method `name` also as `async_name`, run in the loop's default executor."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable]:
        if not name.startswith(_PREFIX):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        method = getattr(self, name.removeprefix(_PREFIX))

        @functools.wraps(method)
        async def run(*args, **kwargs):
            call = functools.partial(method, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(None, call)

        return run
