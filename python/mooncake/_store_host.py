"""Memory and processors of this host, for engines that place their buffers before they use the Store."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_MPOL_BIND = 2
_NODES_MAX = 1024


class MooncakeHostMemAllocator:
    """Page-aligned memory by address, until free(): engines keep the address, and let the allocator go."""

    _lock = threading.Lock()
    _held: dict[int, mmap.mmap] = {}  # of the process

    def alloc(self, arg0: int) -> int:
        """Address of `arg0` bytes of zeros; 0 when there is no such memory."""
        if arg0 <= 0:
            return 0
        try:
            memory = mmap.mmap(-1, arg0)
        except (OSError, OverflowError):
            return 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with self._lock:
            self._held[address] = memory
        return address

    def free(self, arg0: int) -> int:
        """0; -1 for an address that alloc() did not give."""
        with self._lock:
            return 0 if self._held.pop(arg0, None) is not None else -1


def get_alloc_func_addr() -> int:
    """Address of a C function (size, device, stream) -> memory, for torch's pluggable allocators."""
    return ctypes.cast(_libc.malloc, ctypes.c_void_p).value


def get_free_func_addr() -> int:
    """Address of the C function that frees it."""
    return ctypes.cast(_libc.free, ctypes.c_void_p).value


def bind_to_numa_node(node: int) -> None:
    """Run this thread, and take its memory, on one NUMA node from now on. Nothing happens where there is no such node."""
    if not 0 <= node < _NODES_MAX:
        return
    try:
        with open(f"/sys/devices/system/node/node{node}/cpulist") as file:
            cpus = file.read()
    except FileNotFoundError:
        return
    allowed = set()
    for part in filter(None, cpus.strip().split(",")):
        first, _, last = part.partition("-")
        allowed |= set(range(int(first), int(last or first) + 1))
    if allowed:
        os.sched_setaffinity(0, allowed)
    number = _SYS_SET_MEMPOLICY.get(os.uname().machine)
    if number is not None:
        mask = (ctypes.c_ulong * (_NODES_MAX // 64))()
        mask[node // 64] = 1 << (node % 64)
        _libc.syscall(number, _MPOL_BIND, mask, _NODES_MAX)
