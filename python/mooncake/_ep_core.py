"""What the buffers of expert parallelism share: the halves of mooncake/ep.h on tensors. Part of mooncake.mooncake_ep_buffer."""

from __future__ import annotations

import collections
import ctypes
import functools
import mmap
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist

from mooncake import (
    _mooncake,
    pg,  # noqa: F401 - the backend of the groups
)
from mooncake._codes import INVAL, TIMEDOUT
from mooncake._pg_group import MooncakeProcessGroup

NEVER_NS = (1 << 64) - 1
SAME, FP8, FP8_POW2 = 0, 1, 2
CPU = torch.device("cpu")
GROUP = 128
TOPK_MAX = 32
PAGE = 4096
POOLED_MAX = 4  # blocks of a buffer that wait to be used again


class EventOverlap:
    """An operation that may still run: `current_stream_wait()`, or leave a `with` block, to be sure that it has ended."""

    def __init__(self, event=None, extra_tensors: tuple[torch.Tensor, ...] | None = None) -> None:
        self.event, self.extra_tensors = event, extra_tensors

    def current_stream_wait(self) -> None:
        if self.event is None:
            raise RuntimeError("EventOverlap: there is no event to wait for")
        self.event.current_stream_wait()

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(self, *exc) -> None:
        if self.event is not None:
            self.event.current_stream_wait()


class Event:
    """The end of a half, here or in the background. Raises what went wrong in it, to everyone who waits."""

    def __init__(self, future: Future | None = None) -> None:
        self._future = future

    def current_stream_wait(self) -> None:
        if self._future is not None:
            self._future.result()

    synchronize = current_stream_wait


class Deferred:
    """Taking what came, when the caller asks for it; once, however often it asks."""

    def __init__(self, end) -> None:
        self._end = end

    def __call__(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()


def nothing() -> None:
    """What is called for a hook where none was asked for."""


@functools.cache
def _array_of(size: int):
    # A class of its own, so that its objects can be watched.
    return type("Block", (ctypes.c_uint8 * size,), {})


class Pool:
    """Memory of results: what a tensor leaves behind is given to the next, with its pages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: collections.deque[mmap.mmap] = collections.deque()

    def _give(self, block: mmap.mmap) -> None:
        with self._lock:
            self._free.append(block)
            while len(self._free) > POOLED_MAX:
                self._free.popleft()

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            for block in self._free:
                if len(block) == size:
                    self._free.remove(block)
                    return block
        return mmap.mmap(-1, size)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """As torch.empty()."""
        count = 1
        for n in shape:
            count *= n
        size = -(-max(count * dtype.itemsize, 1) // PAGE) * PAGE
        block = self._take(size)
        array = _array_of(size).from_buffer(block)
        weakref.finalize(array, self._give, block).atexit = False
        return torch.frombuffer(array, dtype=dtype, count=count).view(shape) if count else torch.empty(shape, dtype=dtype)


def lent(address: int, shape: tuple[int, ...], dtype: torch.dtype, owner) -> torch.Tensor:
    """A tensor over memory that lives as long as `owner`."""
    count = 1
    for n in shape:
        count *= n
    array = _array_of(count * dtype.itemsize).from_address(address)
    array.owner = owner
    return torch.frombuffer(array, dtype=dtype, count=count).view(shape)


def need(name: str, tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device: torch.device = CPU) -> torch.Tensor:
    """A contiguous tensor of that type, shape (None: any length) and place, or an error that says what is not."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: a tensor, not {type(tensor).__name__}")
    if tensor.device != device:
        raise NotImplementedError(f"{name}: tensors of {'the CPU' if device == CPU else device}, not of {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: {dtype}, not {tensor.dtype}")
    if tensor.dim() != len(shape) or any(want is not None and n != want for n, want in zip(tensor.shape, shape, strict=True)):
        wanted = ", ".join("*" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: shape [{wanted}], not {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: contiguous, not with strides {tensor.stride()}")
    return tensor


def mirror(name: str, active: torch.Tensor | None, ranks: int, device: torch.device = CPU) -> torch.Tensor | None:
    """The caller's active_ranks, which halves read and write."""
    if active is None:
        return None
    if isinstance(active, torch.Tensor) and active.dim() == 1 and active.numel() < ranks:
        raise ValueError(f"{name}: one number for each of {ranks} ranks, not {active.numel()}")
    return need(name, active, torch.int32, (None,), device)


def timeout_ns(timeout_us: int) -> int:
    return NEVER_NS if int(timeout_us) < 0 else min(int(timeout_us) * 1000, NEVER_NS - 1)


def one_of(is_async: bool, is_deferred: bool) -> None:
    if is_async and is_deferred:
        raise ValueError("async_finish and return_recv_hook: one of them")


def fail(code: int, text: str):
    if code == INVAL:
        raise ValueError(text)
    if code == TIMEDOUT:
        raise TimeoutError(text)
    raise dist.DistBackendError(f"{text} (code {code})")


class Place:
    """Where halves run: on the CPU."""

    device = CPU
    lent = staticmethod(lent)

    def __init__(self, core: Core) -> None:
        self.ep, self.empty, self.finish = core.ep, core.pool.tensor, core.finish

    def stream(self) -> tuple[int, ...]:
        """What calls of halves take more."""
        return ()


class Core:
    """One rank's end of expert parallelism over a group of mooncake.pg."""

    def __init__(self, group) -> None:
        if not isinstance(group, MooncakeProcessGroup):
            raise TypeError(f"group: one of the backend mooncake-cpu (mooncake.pg), not {type(group).__name__}")
        self.group, self.ep, self.pool = group, _mooncake.EpBuffer(group._coll), Pool()
        self.ranks = 0
        self._worker: ThreadPoolExecutor | None = None
        self._running: list[Future] = []

    @property
    def place(self) -> Place:
        return Place(self)

    def update(self) -> None:
        self.drain()
        code, text = self.ep.update()
        if code < 0:
            fail(code, text)
        # Experts do not move when the last ranks are gone: the number of ranks only grows.
        self.ranks = max(self.ranks, self.group.size(), self.group._founders)

    def drain(self) -> None:
        """Halves of the background end in their order, and before the next begins; their callers are told of errors."""
        while self._running:
            self._running.pop(0).exception()

    def begin(self, half):
        """What EpBuffer answered."""
        if isinstance(half, tuple):
            fail(*half)
        return half

    def finish(self, end, is_async: bool, is_deferred: bool):
        """Run `end` now, in the background, or when the hook is called. -> (event, hook)"""
        if is_deferred:
            return Event(), Deferred(end)
        if not is_async:
            end()
            return Event(), nothing
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "mooncake-ep")
        future = self._worker.submit(end)
        self._running.append(future)
        return Event(future), nothing


def check(answer) -> None:
    code, text, *_ = answer
    if code < 0:
        fail(code, text)
