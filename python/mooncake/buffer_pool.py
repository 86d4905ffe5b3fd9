"""Registered buffers that are used again and again: BufferPool lends them, a lease gives them back.

    pool = BufferPool(store, max_bytes=1 << 30)
    with pool.buffer(nbytes) as lease:
        store.get_into(key, lease.ptr, lease.size)
        use(lease.buffer)

Registering memory costs more than most transfers, so a buffer stays registered between leases. Buffers come in classes of
powers of two, each a mapping of its own; where the limit is reached, idle ones of other classes make room. Any thread may
acquire and release.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
import weakref

from mooncake._mooncake import BufferLeaseView

PAGE = mmap.PAGESIZE


class _Region:
    """One registered buffer. Its memory lives as long as anybody looks at it."""

    def __init__(self, store, size: int, alignment: int) -> None:
        """Room for `size` bytes at an address that is a multiple of `alignment`."""
        self.size = size
        self._memory = mmap.mmap(-1, size + (alignment if alignment > PAGE else 0))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = -(-start // alignment) * alignment
        code = store.register_buffer(self.address, size)
        if code != 0:
            raise RuntimeError(f"register_buffer() of {size} bytes for a buffer pool failed with code {code}")

    def close(self, store) -> None:
        store.unregister_buffer(self.address)  # a store that is closed has let go of it


class BufferLease:
    """`size` bytes of registered memory at `ptr`, until release()."""

    def __init__(self, pool: BufferPool, region: _Region, size: int) -> None:
        self._pool = pool
        self._region = region
        self._view = BufferLeaseView(region.address, size, region)
        self._size = size

    @property
    def size(self) -> int:
        """What was asked for."""
        return self._size

    @property
    def ptr(self) -> int:
        if self._region is None:
            raise RuntimeError("buffer lease is closed")
        return self._region.address

    @property
    def buffer(self) -> memoryview:
        """The bytes, writable. A lease with views cannot be released."""
        return self._view.buffer

    def release(self) -> None:
        """Give it back. Again is allowed."""
        with self._pool._changed:  # noqa: SLF001 (one module)
            if self._region is None:
                return
            if not self._view.end():
                raise RuntimeError("cannot release buffer while exported views exist")
            region, self._region = self._region, None
            self._pool._give_back(region)  # noqa: SLF001

    def __enter__(self) -> BufferLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        """A lease that nobody released: its buffer is used again once nobody looks at it."""
        if getattr(self, "_region", None) is not None:
            self._pool._orphans.append((self._view, self._region))  # noqa: SLF001 (append is atomic)


class BufferPool:
    """Registered buffers of a store, at most `max_bytes` of them (0: no limit) and `max_regions` (None: no limit).

    A size above `max_size_class` is served, but its buffer is not kept. `default_timeout` (seconds, None: for ever) is for
    acquire() that waits because all is lent; with `block_on_exhaustion=False` it fails at once instead.
    """

    def __init__(
        self, store, max_bytes: int = 0, min_size_class: int = 65536, max_size_class: int | None = None, alignment: int = 8388608,
        block_on_exhaustion: bool = True, default_timeout: float | None = None, max_regions: int | None = None,
        prewarm_size: int | None = None, prewarm_count: int = 0,
    ) -> None:  # fmt: skip
        for name, value in (
            ("max_bytes", max_bytes), ("min_size_class", min_size_class), ("max_size_class", max_size_class),
            ("alignment", alignment), ("max_regions", max_regions), ("prewarm_size", prewarm_size), ("prewarm_count", prewarm_count),
        ):  # fmt: skip
            if value is not None and (not isinstance(value, int) or value < 0):
                raise TypeError(f"BufferPool(): {name} is a number that is not negative, not {value!r}")
        if store is None or not store.is_open():
            raise RuntimeError("MooncakeDistributedStore is not initialized")
        if min_size_class == 0 or alignment == 0:
            raise RuntimeError("min_size_class and alignment must be positive")
        if alignment & (alignment - 1) or alignment < ctypes.sizeof(ctypes.c_void_p):
            raise RuntimeError("alignment must be a power of two and at least sizeof(void*)")
        self._store = store
        self._max_bytes, self._max_regions = max_bytes, max_regions or 0
        self._min_class, self._max_class = min_size_class, max_size_class
        self._alignment = alignment
        self._blocks, self._timeout = block_on_exhaustion, default_timeout
        self._changed = threading.Condition(threading.RLock())  # guards the rest
        self._idle: dict[int, list[_Region]] = {}
        self._bytes = self._regions = self._lent = 0
        self._orphans: list[tuple[BufferLeaseView, _Region]] = []
        self._is_closed = False
        self._end = weakref.finalize(self, _close_all, store, self._idle)
        if prewarm_size and prewarm_count:
            self.prewarm(prewarm_size, prewarm_count)

    def acquire(self, size: int, block: bool | None = None, timeout: float | None = None) -> BufferLease:
        """Borrow `size` bytes. RuntimeError: larger than the pool, none left, none in time, closed."""
        if not isinstance(size, int) or size < 0:
            raise TypeError(f"acquire(): size is a number that is not negative, not {size!r}")
        waits = self._blocks if block is None else block
        seconds = self._timeout if timeout is None else timeout
        until = None if seconds is None else time.monotonic() + max(seconds, 0)
        wanted = self._class_of(size)
        with self._changed:
            while True:
                if self._is_closed:
                    raise RuntimeError("buffer pool is closed")
                if self._max_bytes and wanted > self._max_bytes:
                    raise RuntimeError("requested buffer size exceeds pool capacity")
                region = self._take(wanted)
                if region is not None:
                    self._lent += 1
                    return BufferLease(self, region, size)
                if not waits:
                    raise RuntimeError("buffer pool is exhausted")
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise RuntimeError("timed out waiting for buffer")
                # Leases that nobody released are looked for now and then.
                self._changed.wait(0.1 if left is None else min(left, 0.1))

    buffer = acquire

    def prewarm(self, size: int, count: int) -> None:
        """Register buffers for `count` leases of `size` bytes ahead. RuntimeError where they do not fit."""
        leases = []
        try:
            for _ in range(count):
                leases.append(self.acquire(size, block=False))
        finally:
            for lease in leases:
                lease.release()

    def close(self) -> None:
        """Let go of all memory. RuntimeError while something is lent. Again is allowed."""
        with self._changed:
            if self._is_closed:
                return
            self._sweep()
            if self._lent:
                raise RuntimeError("cannot close buffer pool with active leases")
            self._is_closed = True
            self._end()
            self._changed.notify_all()

    # ---- under the lock ----

    def _class_of(self, size: int) -> int:
        """Bytes of the buffer for it: a power of two, or whole pages above the largest class."""
        pages = -(-max(size, self._min_class) // PAGE) * PAGE
        power = 1 << (pages - 1).bit_length()
        is_large = self._max_class is not None and power > self._max_class
        return pages if is_large or (self._max_bytes and power > self._max_bytes >= pages) else power

    def _take(self, wanted: int) -> _Region | None:
        self._sweep()
        idle = self._idle.get(wanted)
        if idle:
            return idle.pop()
        while not self._has_room(wanted):
            if not self._shrink():
                return None
        region = _Region(self._store, wanted, self._alignment)
        self._bytes += wanted
        self._regions += 1
        return region

    def _has_room(self, wanted: int) -> bool:
        if self._max_regions and self._regions >= self._max_regions:
            return False
        return not self._max_bytes or self._bytes + wanted <= self._max_bytes

    def _shrink(self) -> bool:
        """Let go of an idle buffer, a large one first."""
        sizes = [size for size, idle in self._idle.items() if idle]
        if not sizes:
            return False
        self._drop(self._idle[max(sizes)].pop())
        return True

    def _drop(self, region: _Region) -> None:
        self._bytes -= region.size
        self._regions -= 1
        region.close(self._store)

    def _give_back(self, region: _Region) -> None:
        self._lent -= 1
        if self._max_class is not None and region.size > max(self._max_class, self._min_class):
            self._drop(region)
        else:
            self._idle.setdefault(region.size, []).append(region)
        self._changed.notify()

    def _sweep(self) -> None:
        """Buffers of leases that were forgotten."""
        for _ in range(len(self._orphans)):
            view, region = self._orphans.pop(0)
            if view.end():
                self._give_back(region)
            else:
                self._orphans.append((view, region))


def _close_all(store, idle: dict[int, list[_Region]]) -> None:
    for regions in idle.values():
        while regions:
            regions.pop().close(store)


RegisteredBufferPool = BufferPool
RegisteredBufferLease = BufferLease
RegisteredBufferLeaseView = BufferLeaseView

__all__ = ["BufferPool", "RegisteredBufferPool"]
