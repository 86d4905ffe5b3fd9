"""Tensors in the Store: an object is a header, which says type and shape, and the elements.

The header is upstream's, so that objects made of it by `…_from` and read by `…_into` mean the same there and here:

    u32 magic, u16 version, u16 length, i32 dtype, i32 ndim, u32 layout, u32 0, u64 offset and u64 length of the elements,
    i64[8] shape of the whole, i64[8] shape of what is here, u64 axes, 4 x {u64 kind, u32 rank, u32 size, i64 dim, i64 extent}

A shard of tensor parallelism lies under its own key, `<key>_tp_<rank>`.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from mooncake._store_types import ReplicateConfig

if TYPE_CHECKING:
    import torch

MAGIC = 0x4D4F4F4E
VERSION = 1
FULL, SHARD = 0, 1
AXIS_TP = 1
DIMS_MAX = 8
AXES_MAX = 4
HEADER = struct.Struct("<IHHiiIIQQ8q8qQ")
AXIS = struct.Struct("<QIIqq")
HEADER_LEN = HEADER.size + AXES_MAX * AXIS.size

DTYPES = (
    "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float16", "bfloat16",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip

INVALID_PARAMS = -600
UPSERT = 1
_DEFAULT = ReplicateConfig()


def _tensor_metadata_size() -> int:
    return HEADER_LEN


def _header(tensor: torch.Tensor, whole: tuple[int, ...], axes: list[tuple[int, int, int, int, int]]) -> bytes | None:
    """None for what a header cannot say."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES or tensor.dim() > DIMS_MAX:
        return None

    def padded(shape: tuple[int, ...]) -> list[int]:
        return [*shape, *[-1] * (DIMS_MAX - len(shape))]

    head = HEADER.pack(
        MAGIC, VERSION, HEADER_LEN, DTYPES.index(name), tensor.dim(), SHARD if axes else FULL, 0, HEADER_LEN,
        tensor.numel() * tensor.element_size(), *padded(whole), *padded(tuple(tensor.shape)), len(axes),
    )  # fmt: skip
    return (head + b"".join(AXIS.pack(*axis) for axis in axes)).ljust(HEADER_LEN, b"\0")


def _tensor_of(buffer: object, length: int) -> torch.Tensor | None:
    """The tensor whose header and elements these bytes are, in place; None when they are none."""
    import torch

    if length < HEADER_LEN:
        return None
    magic, version, header_len, dtype, ndim, _, _, offset, size, *dims, _axes = HEADER.unpack_from(buffer)
    shape = dims[DIMS_MAX : DIMS_MAX + ndim] if 0 <= ndim <= DIMS_MAX else [-1]
    if magic != MAGIC or version != VERSION or header_len != HEADER_LEN or not 0 <= dtype < len(DTYPES) or min(shape, default=0) < 0:
        return None
    kind = getattr(torch, DTYPES[dtype], None)
    elements = 1
    for dim in shape:
        elements *= dim
    if kind is None or offset != HEADER_LEN or offset + size > length or elements * kind.itemsize != size:
        return None
    if size == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=torch.uint8, offset=offset, count=size).view(kind).reshape(shape)


def _serialize_tensor(arg0: torch.Tensor) -> tuple[bytes, int, int, torch.Tensor]:
    """(header, address of the elements, their bytes, the tensor that holds them)."""
    tensor = arg0.detach().contiguous().cpu()
    header = _header(tensor, tuple(tensor.shape), [])
    if header is None:
        raise ValueError(f"a tensor of {tensor.dtype} with {tensor.dim()} dimensions cannot be stored")
    return header, tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor


def _deserialize_tensor(arg0: bytes) -> torch.Tensor | None:
    return _tensor_of(bytearray(arg0), len(arg0))


class _Outgoing:
    """Memory of the tensors of one call, alive until it has ended."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.ptrs: list[list[int]] = []
        self.sizes: list[list[int]] = []
        self._alive: list[object] = []

    def add(self, key: str, tensor: torch.Tensor, whole: tuple[int, ...], axes: list[tuple[int, int, int, int, int]]) -> bool:
        tensor = tensor.detach().contiguous().cpu()
        header = _header(tensor, whole, axes)
        if header is None:
            return False
        head = ctypes.create_string_buffer(header, HEADER_LEN)
        size = tensor.numel() * tensor.element_size()
        self.keys.append(key)
        self.ptrs.append([ctypes.addressof(head)] + ([tensor.data_ptr()] if size else []))
        self.sizes.append([HEADER_LEN] + ([size] if size else []))
        self._alive += [head, tensor]
        return True


def _is_tensor(value: object) -> bool:
    return hasattr(value, "data_ptr") and hasattr(value, "element_size")


def _shard_key(key: str, rank: int, size: int) -> str:
    return f"{key}_tp_{rank}" if size > 1 else key


class Tensors:
    """The methods of MooncakeDistributedStore about tensors; torch is imported by the first that needs it."""

    __slots__ = ()

    # ---- whole tensors ----

    def _put_tensors(self, keys: list[str], tensors: list, config: ReplicateConfig, flags: int) -> list[int]:
        if len(keys) != len(tensors):
            return [INVALID_PARAMS] * len(keys)
        out = _Outgoing()
        is_out = [_is_tensor(t) and out.add(k, t, tuple(t.shape), []) for k, t in zip(keys, tensors)]
        codes = iter(self.put_memory(out.keys, out.ptrs, out.sizes, config.packed(), flags))
        return [next(codes) if there else INVALID_PARAMS for there in is_out]

    def put_tensor(self, key: str, tensor: torch.Tensor) -> int:
        return self._put_tensors([key], [tensor], _DEFAULT, 0)[0]

    def pub_tensor(self, key: str, tensor: torch.Tensor, config: ReplicateConfig = _DEFAULT) -> int:
        return self._put_tensors([key], [tensor], config, 0)[0]

    def upsert_tensor(self, key: str, tensor: torch.Tensor) -> int:
        return self._put_tensors([key], [tensor], _DEFAULT, UPSERT)[0]

    def upsert_pub_tensor(self, key: str, tensor: torch.Tensor, config: ReplicateConfig = _DEFAULT) -> int:
        return self._put_tensors([key], [tensor], config, UPSERT)[0]

    def batch_put_tensor(self, keys: list[str], tensors_list: list) -> list[int]:
        return self._put_tensors(keys, tensors_list, _DEFAULT, 0)

    def batch_pub_tensor(self, keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT) -> list[int]:
        return self._put_tensors(keys, tensors_list, config, 0)

    def batch_upsert_tensor(self, keys: list[str], tensors_list: list) -> list[int]:
        return self._put_tensors(keys, tensors_list, _DEFAULT, UPSERT)

    def batch_upsert_pub_tensor(self, keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT) -> list[int]:
        return self._put_tensors(keys, tensors_list, config, UPSERT)

    def get_tensor(self, key: str) -> torch.Tensor | None:
        return self.batch_get_tensor([key])[0]

    def batch_get_tensor(self, keys: list[str]) -> list[torch.Tensor | None]:
        """None where there is no such object, or it is no tensor."""
        return [None if found is None else _tensor_of(found, len(found)) for found in self.get_handles(keys)]

    # ---- tensors whose header and elements lie in the caller's memory ----

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self.put_memory((key,), (buffer_ptr,), (size,), None, 0)[0]

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self.put_memory((key,), (buffer_ptr,), (size,), None, UPSERT)[0]

    def batch_put_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.put_memory(keys, buffer_ptrs, sizes, None, 0)

    def batch_upsert_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.put_memory(keys, buffer_ptrs, sizes, None, UPSERT)

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> torch.Tensor | None:
        return self.batch_get_tensor_into([key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[torch.Tensor | None]:
        """Tensors over the caller's memory: they are valid as long as that is."""
        got = self.get_memory(keys, buffer_ptrs, sizes)
        return [
            _tensor_of((ctypes.c_char * n).from_address(ptr), n) if n > 0 else None for ptr, n in zip(buffer_ptrs, got)
        ]  # fmt: skip

    # ---- shards of tensor parallelism ----

    def _put_shards(self, keys: list[str], tensors: list, config: ReplicateConfig, size: int, dim: int) -> list[int]:
        """All shards of each whole tensor; its code is the first that is not 0."""
        import torch

        if len(keys) != len(tensors):
            return [INVALID_PARAMS] * len(keys)
        out, codes, owner = _Outgoing(), [0] * len(keys), []
        for i, (key, tensor) in enumerate(zip(keys, tensors)):
            if not _is_tensor(tensor) or size < 1 or not -tensor.dim() <= dim < max(tensor.dim(), 1):
                codes[i] = INVALID_PARAMS
                continue
            shards = torch.chunk(tensor, size, dim) if size > 1 else (tensor,)
            if len(shards) != size:
                codes[i] = INVALID_PARAMS
                continue
            for rank, shard in enumerate(shards):
                axes = [(AXIS_TP, rank, size, dim % tensor.dim(), shard.shape[dim])] if size > 1 else []
                if out.add(_shard_key(key, rank, size), shard, tuple(tensor.shape), axes):
                    owner.append(i)
                else:
                    codes[i] = INVALID_PARAMS
        for i, code in zip(owner, self.put_memory(out.keys, out.ptrs, out.sizes, config.packed(), 0)):
            codes[i] = codes[i] or code
        return codes

    def put_tensor_with_tp(self, key: str, tensor: torch.Tensor, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> int:
        return self._put_shards([key], [tensor], _DEFAULT, tp_size, split_dim)[0]

    def pub_tensor_with_tp(
        self, key: str, tensor: torch.Tensor, config: ReplicateConfig = _DEFAULT, tp_rank: int = 0, tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:  # fmt: skip
        return self._put_shards([key], [tensor], config, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp(
        self, base_keys: list[str], tensors_list: list, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> list[int]:
        return self._put_shards(base_keys, tensors_list, _DEFAULT, tp_size, split_dim)

    def batch_pub_tensor_with_tp(
        self, base_keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT, tp_rank: int = 0, tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:  # fmt: skip
        return self._put_shards(base_keys, tensors_list, config, tp_size, split_dim)

    def get_tensor_with_tp(self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> torch.Tensor | None:
        return self.get_tensor(_shard_key(key, tp_rank, tp_size))

    def batch_get_tensor_with_tp(self, base_keys: list[str], tp_rank: int = 0, tp_size: int = 1) -> list[torch.Tensor | None]:
        return self.batch_get_tensor([_shard_key(key, tp_rank, tp_size) for key in base_keys])

    def get_tensor_with_tp_into(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> torch.Tensor | None:
        return self.get_tensor_into(_shard_key(key, tp_rank, tp_size), buffer_ptr, size)

    def batch_get_tensor_with_tp_into(
        self, base_keys: list[str], buffer_ptrs: list[int], sizes: list[int], tp_rank: int = 0, tp_size: int = 1
    ) -> list[torch.Tensor | None]:
        return self.batch_get_tensor_into([_shard_key(key, tp_rank, tp_size) for key in base_keys], buffer_ptrs, sizes)
