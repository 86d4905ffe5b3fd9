"""Bytes with an address, as engines hand them to the Store."""

import ctypes
import random


class Memory:
    """`size` bytes: zeros, or those that a seed gives."""

    def __init__(self, size: int, seed: int | None = None) -> None:
        data = random.Random(seed).randbytes(size) if seed is not None else bytes(size)
        self.array = (ctypes.c_char * size).from_buffer_copy(data)
        self.address = ctypes.addressof(self.array)
        self.size = size

    @property
    def raw(self) -> bytes:
        return self.array.raw

    def at(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.address + offset, size)
