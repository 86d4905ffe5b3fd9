"""A tensor's bytes in the Store: a header, which says type and shape, then the elements. Pure, and without torch.

The formats are upstream's, so that objects made of them by `…_from` and read by `…_into` mean the same there and here:

    header    u32 magic, u16 version, u16 length, i32 dtype, i32 ndim, u32 layout, u32 0, u64 offset and u64 bytes of the
              elements, i64[8] shape of the whole, i64[8] shape of what is here, u64 axes, 4 axes
    axis      u32 kind, u32 place in the request, u32 rank, u32 size, i32 dimension, i32 expert or stage, i64 extent
    manifest  u32 magic, u16 version, u16 length, i32 dtype, i32 ndim, i32 dimension, i32 shards, u64 0, i64[8] shape

A manifest lies beside the shards of a tensor and says how it is cut, for readers who want other pieces.
"""

from __future__ import annotations

import struct
from math import prod
from typing import NamedTuple

MAGIC, MANIFEST_MAGIC = 0x4D4F4F4E, 0x574D414E
VERSION = 1
FULL, SHARD = 0, 1
DP, TP, EP, PP = range(4)
DIMS_MAX = 8
AXES_MAX = 4
SHARDS_MAX = 1 << 16
HEADER = struct.Struct("<IHHiiIIQQ8q8qQ")
AXIS = struct.Struct("<IIIIiiq")
MANIFEST = struct.Struct("<IHHiiiiQ8q")
HEADER_LEN = HEADER.size + AXES_MAX * AXIS.size
MANIFEST_LEN = MANIFEST.size

# torch's names in the order of their numbers, and the bytes of an element.
DTYPES = {
    "float32": 4, "float64": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8,
    "uint64": 8, "bool": 1, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
_NAMES = tuple(DTYPES)


class Axis(NamedTuple):
    """One way in which tensors are spread over processes: this is of rank `rank` of `size`."""

    kind: int
    rank: int
    size: int
    dim: int = -1  # TP: the dimension that is cut
    id: int = 0  # EP, PP: the expert, the stage


class Header(NamedTuple):
    """A tensor, or the shard of one, that an object holds."""

    dtype: str
    whole: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[Axis, ...] = ()

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype]

    @property
    def cut(self) -> Axis | None:
        """The axis that cuts `whole` into shards of this shape; None when it is no such shard."""
        cuts = [axis for axis in self.axes if axis.kind == TP]
        if len(cuts) != 1 or len(self.whole) != len(self.shape) or shard_shape(self.whole, cuts[0]) != self.shape:
            return None
        return cuts[0]


class Manifest(NamedTuple):
    """How a tensor is cut: `size` shards of the same length along `dim`."""

    dtype: str
    whole: tuple[int, ...]
    dim: int
    size: int


def shard_shape(whole: tuple[int, ...], cut: Axis) -> tuple[int, ...] | None:
    """The shape of a shard; None when there is no such rank or dimension, or the shards would not be equal."""
    if not (0 <= cut.rank < cut.size <= SHARDS_MAX and 0 <= cut.dim < len(whole)) or whole[cut.dim] % cut.size:
        return None
    return (*whole[: cut.dim], whole[cut.dim] // cut.size, *whole[cut.dim + 1 :])


def _padded(shape: tuple[int, ...]) -> list[int]:
    return [*shape, *[-1] * (DIMS_MAX - len(shape))]


def _shape(dims: list[int], ndim: int, itemsize: int) -> tuple[int, ...] | None:
    """What a foreign header says, when memory could hold it."""
    shape = tuple(dims[:ndim]) if 0 <= ndim <= DIMS_MAX else (-1,)
    if min(shape, default=0) < 0 or prod(max(dim, 1) for dim in shape) * itemsize >= 1 << 62:
        return None
    return shape


def pack_header(header: Header) -> bytes:
    axes = b"".join(
        AXIS.pack(a.kind, i, a.rank, a.size, a.dim, a.id, header.shape[a.dim] if a.kind == TP else 0)
        for i, a in enumerate(header.axes)
    )
    head = HEADER.pack(
        MAGIC, VERSION, HEADER_LEN, _NAMES.index(header.dtype), len(header.shape), SHARD if header.axes else FULL, 0, HEADER_LEN,
        header.bytes, *_padded(header.whole), *_padded(header.shape), len(header.axes),
    )  # fmt: skip
    return (head + axes).ljust(HEADER_LEN, b"\0")


def parse_header(buffer, length: int) -> Header | None:
    """The header of an object of `length` bytes that begins with this buffer; None when it is no tensor."""
    if length < HEADER_LEN:
        return None
    magic, version, header_len, dtype, ndim, layout, _, offset, size, *dims, naxes = HEADER.unpack_from(buffer)
    if magic != MAGIC or version != VERSION or header_len != HEADER_LEN or offset != HEADER_LEN or layout not in (FULL, SHARD):
        return None
    if not 0 <= dtype < len(_NAMES) or naxes > AXES_MAX:
        return None
    itemsize = DTYPES[_NAMES[dtype]]
    whole, shape = _shape(dims, ndim, itemsize), _shape(dims[DIMS_MAX:], ndim, itemsize)
    if shape is None or prod(shape) * itemsize != size or size > length - HEADER_LEN:
        return None
    axes = (AXIS.unpack_from(buffer, HEADER.size + i * AXIS.size) for i in range(naxes))
    return Header(
        _NAMES[dtype], shape if whole is None else whole, shape, tuple(Axis(a[0], a[2], a[3], a[4], a[5]) for a in axes)
    )


def pack_manifest(manifest: Manifest) -> bytes:
    return MANIFEST.pack(
        MANIFEST_MAGIC, VERSION, MANIFEST_LEN, _NAMES.index(manifest.dtype), len(manifest.whole), manifest.dim, manifest.size, 0,
        *_padded(manifest.whole),
    )  # fmt: skip


def parse_manifest(buffer) -> Manifest | None:
    magic, version, length, dtype, ndim, dim, size, _, *dims = MANIFEST.unpack_from(buffer)
    if magic != MANIFEST_MAGIC or version != VERSION or length != MANIFEST_LEN or not 0 <= dtype < len(_NAMES):
        return None
    whole = _shape(dims, ndim, DTYPES[_NAMES[dtype]])
    if whole is None or shard_shape(whole, Axis(TP, 0, size, dim)) is None:
        return None
    return Manifest(_NAMES[dtype], whole, dim, size)
