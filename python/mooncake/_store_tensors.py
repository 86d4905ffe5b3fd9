"""Tensors in the Store: whole ones, and shards of tensor parallelism. Torch is imported by the first call that needs it.

An object is a header and the elements (_store_tensor_format.py). The elements of a tensor in memory are sent from where they
are; those that lie elsewhere or with gaps are copied together first.
"""

from __future__ import annotations

import ctypes
from operator import index
from typing import TYPE_CHECKING

from mooncake import _store_layout as layout
from mooncake._codes import INVALID_PARAMS
from mooncake._store_layout import refuse
from mooncake._store_reshard import Want, read, tensor_at, tensor_of
from mooncake._store_tensor_format import (
    DIMS_MAX,
    DTYPES,
    HEADER_LEN,
    TP,
    Axis,
    Header,
    pack_header,
    parse_header,
    shard_shape,
)
from mooncake._store_types import ReplicateConfig

if TYPE_CHECKING:
    import torch

FILE_NOT_FOUND = -1100
UPSERT = 1
_DEFAULT = ReplicateConfig()


def _tensor_metadata_size() -> int:
    return HEADER_LEN


def _dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _in_memory(tensor: object) -> torch.Tensor | None:
    """The tensor, its elements one after the other in this host's memory; None for what is no tensor or cannot be stored."""
    if not hasattr(tensor, "data_ptr") or not hasattr(tensor, "element_size"):
        return None
    if _dtype_of(tensor) not in DTYPES or tensor.dim() > DIMS_MAX or tensor.is_nested:
        return None
    try:
        tensor = tensor.detach().cpu().resolve_neg().contiguous()
        has_elements = tensor.numel() == 0 or tensor.data_ptr() != 0
    except (RuntimeError, NotImplementedError):  # no memory of its own: meta, sparse
        return None
    return tensor if has_elements else None  # not so: fake ones, DTensors


def _tensor_in(buffer_ptr: int, size: int) -> torch.Tensor | None:
    """The tensor whose header and elements are exactly this memory."""
    if not 0 < buffer_ptr < 1 << 64 or size < HEADER_LEN:
        return None
    header = parse_header((ctypes.c_char * HEADER_LEN).from_address(buffer_ptr), size)
    if header is None or HEADER_LEN + header.bytes != size:
        return None
    return tensor_at(buffer_ptr + HEADER_LEN, header.shape, header.dtype)


def _serialize_tensor(arg0: torch.Tensor) -> tuple[bytes, int, int, torch.Tensor]:
    """(header, address of the elements, their bytes, the tensor that holds them)."""
    tensor = _in_memory(arg0)
    if tensor is None:
        raise ValueError(f"{type(arg0).__name__} of {getattr(arg0, 'dtype', 'no type')} cannot be stored")
    shape = tuple(tensor.shape)
    return pack_header(Header(_dtype_of(tensor), shape, shape)), tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor


def _deserialize_tensor(arg0: bytes) -> torch.Tensor | None:
    return tensor_of(bytearray(arg0), len(arg0))


class Outgoing:
    """Objects of one call, and the tensors whose memory they are: alive until it has ended.

    Each belongs to a request, which is all stored or not at all as far as its arguments say; its code is the first of its
    objects' that is not 0.
    """

    def __init__(self, requests: int) -> None:
        self.codes = [0] * requests
        self._keys: list[str] = []
        self._ptrs: list[list[int]] = []
        self._sizes: list[list[int]] = []
        self._owners: list[int] = []
        self._alive: list[object] = []

    def refuse(self, request: int) -> None:
        self.codes[request] = INVALID_PARAMS

    def add_bytes(self, request: int, key: str, head: bytes, tensor: torch.Tensor | None = None) -> None:
        memory = ctypes.create_string_buffer(head, len(head))
        size = tensor.numel() * tensor.element_size() if tensor is not None else 0
        self._keys.append(key)
        self._ptrs.append([ctypes.addressof(memory)] + ([tensor.data_ptr()] if size else []))
        self._sizes.append([len(head)] + ([size] if size else []))
        self._owners.append(request)
        self._alive += [memory, tensor]

    def add(self, request: int, key: str, tensor: torch.Tensor, whole: tuple[int, ...], axes: tuple[Axis, ...] = ()) -> None:
        """A tensor as _in_memory() gives it, or a narrow one of such."""
        tensor = tensor.contiguous()
        self.add_bytes(request, key, pack_header(Header(_dtype_of(tensor), whole, tuple(tensor.shape), axes)), tensor)

    def put(self, store, config: ReplicateConfig, flags: int) -> list[int]:
        if not store.is_open():
            return [INVALID_PARAMS] * len(self.codes)
        for i, code in zip(self._owners, store.put_memory(self._keys, self._ptrs, self._sizes, config.packed(), flags)):
            self.codes[i] = self.codes[i] or code
        return self.codes


def shard(tensor: torch.Tensor, cut: Axis) -> torch.Tensor:
    """The shard of this place: a view. The shape has equal ones."""
    length = tensor.shape[cut.dim] // cut.size
    return tensor.narrow(cut.dim, cut.rank * length, length)


class Tensors:
    """The methods of MooncakeDistributedStore about tensors, but those of _store_parallel.py."""

    __slots__ = ()

    # ---- whole tensors ----

    def _put_tensors(self, keys: list[str], tensors: list, config: ReplicateConfig, flags: int) -> list[int]:
        keys = layout.texts(keys)
        if len(keys) != len(tensors):
            return [INVALID_PARAMS] * len(keys)
        out = Outgoing(len(keys))
        for i, (key, tensor) in enumerate(zip(keys, map(_in_memory, tensors))):
            if tensor is None:
                out.refuse(i)
            else:
                out.add(i, key, tensor, tuple(tensor.shape))
        return out.put(self, config, flags)

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
        return [None if found is None else tensor_of(found, len(found)) for found in self.get_handles(keys)]

    # ---- tensors whose header and elements lie in the caller's memory ----

    def _put_tensors_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], flags: int) -> list[int]:
        """All of them, or none when one is no tensor of that size."""
        if not len(keys) == len(buffer_ptrs) == len(sizes) or not self.is_open():
            return [INVALID_PARAMS] * len(keys)
        if any(_tensor_in(ptr, size) is None for ptr, size in zip(buffer_ptrs, sizes)):
            return [INVALID_PARAMS] * len(keys)
        return self.put_memory(keys, buffer_ptrs, sizes, None, flags)

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self._put_tensors_from([key], [buffer_ptr], [size], 0)[0]

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self._put_tensors_from([key], [buffer_ptr], [size], UPSERT)[0]

    def batch_put_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        return self._put_tensors_from(keys, buffer_ptrs, sizes, 0)

    def batch_upsert_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        return self._put_tensors_from(keys, buffer_ptrs, sizes, UPSERT)

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> torch.Tensor | None:
        return self.batch_get_tensor_into([key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[torch.Tensor | None]:
        """Tensors over the caller's memory: they are valid as long as that is."""
        if not len(keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(keys)
        got = self.get_memory(keys, buffer_ptrs, sizes)
        return [
            tensor_of((ctypes.c_char * n).from_address(ptr), n) if n > 0 else None for ptr, n in zip(buffer_ptrs, got)
        ]  # fmt: skip

    # ---- tensors of a GPU ----

    def get_tensor_into_cuda(self, key: str, tensor: torch.Tensor) -> int:
        return self.batch_get_tensor_into_cuda([key], [tensor])[0]

    def batch_get_tensor_into_cuda(self, keys: list[str], tensors_list: list) -> list[int]:
        """Elements into tensors of a GPU, of the same type and shape, by way of pinned memory: bytes, or a code."""
        import torch

        if len(keys) != len(tensors_list) or not self.is_open():
            return [INVALID_PARAMS] * len(keys)
        codes = [0 if self._is_cuda(key, tensor) else INVALID_PARAMS for key, tensor in zip(keys, tensors_list)]
        asked = [i for i, code in enumerate(codes) if code == 0]
        sizes = {i: HEADER_LEN + tensors_list[i].numel() * tensors_list[i].element_size() for i in asked}
        pinned = {i: torch.empty(sizes[i], dtype=torch.uint8, pin_memory=True) for i in asked}
        got = self.get_memory([keys[i] for i in asked], [pinned[i].data_ptr() for i in asked], list(sizes.values()))
        for i, n in zip(asked, got):
            found = tensor_of(pinned[i].numpy(), n) if n == sizes[i] else None
            if found is not None and (found.dtype, found.shape) == (tensors_list[i].dtype, tensors_list[i].shape):
                tensors_list[i].copy_(found)
                codes[i] = n - HEADER_LEN
            else:
                codes[i] = n if n < 0 else INVALID_PARAMS
        return codes

    @staticmethod
    def _is_cuda(key: str, tensor: object) -> bool:
        if getattr(tensor, "is_cuda", False):
            return True
        where = getattr(tensor, "device", None)
        refuse(
            f"get_tensor_into_cuda({key!r}): needs a tensor of a CUDA device, not "
            + (f"one on {where}" if where else f"{type(tensor).__name__}") + "; get_tensor_into() reads into host memory"
        )  # fmt: skip
        return False

    # ---- files ----

    def load_tensor_from_safetensor(self, key: str | None = None, file_name: str | None = None) -> torch.Tensor | None:
        """Store the tensor `key` of a file, or its first one, and return it; without a key it is stored under the file's name."""
        if not isinstance(file_name, str) or not isinstance(key, (str, type(None))):
            raise TypeError("load_tensor_from_safetensor() needs file_name, a str; key is a str or None")
        if not self.is_open():
            return None
        try:
            from safetensors import safe_open

            with safe_open(file_name, framework="pt") as file:
                names = list(file.keys())
                if key in names:
                    name = key
                elif names:
                    name = names[0]
                    if key is not None:
                        refuse(f"load_tensor_from_safetensor(): {file_name} has no tensor {key!r}; its first, {name!r}, is taken")
                else:
                    refuse(f"load_tensor_from_safetensor(): {file_name} has no tensors")
                    return None
                tensor = file.get_tensor(name)
        except Exception as why:  # noqa: BLE001 - the library's own kinds of errors have no common base
            refuse(f"load_tensor_from_safetensor(): {file_name}: {why}")
            return None
        code = self.put_tensor(file_name if key is None else key, tensor)
        if code != 0:
            refuse(f"load_tensor_from_safetensor(): {file_name}: {name!r} could not be stored, code {code}")
            return None
        return tensor

    def save_tensor_to_safetensor(self, key: str, file_name: str | None = None) -> int:
        """Write a tensor to a file, under its key; the key is the file's name if none is given."""
        if not isinstance(file_name, (str, type(None))):
            raise TypeError(f"file_name must be a str or None, not {file_name!r}")
        if not self.is_open():
            return INVALID_PARAMS
        tensor = self.get_tensor(key)
        if tensor is None:
            return FILE_NOT_FOUND
        try:
            from safetensors.torch import save_file

            save_file({key: tensor}, key if file_name is None else file_name)
        except Exception as why:  # noqa: BLE001 - as above
            refuse(f"save_tensor_to_safetensor(): {file_name or key}: {why}")
            return INVALID_PARAMS
        return 0

    # ---- shards of tensor parallelism ----

    def _put_shards(
        self, keys: list[str], tensors: list, config: ReplicateConfig, size: int, dim: int, what: str
    ) -> list[int]:  # fmt: skip
        """All shards of each whole tensor."""
        keys, size, dim = layout.texts(keys), index(size), index(dim)
        if len(keys) != len(tensors):
            return [INVALID_PARAMS] * len(keys)
        out = Outgoing(len(keys))
        for i, (key, tensor) in enumerate(zip(keys, map(_in_memory, tensors))):
            whole = tuple(tensor.shape) if tensor is not None else ()
            if tensor is None:
                out.refuse(i)
            elif size <= 1:
                out.add(i, key, tensor, whole)
            elif shard_shape(whole, Axis(TP, 0, size, dim)) is None:
                refuse(f"{what}: {key!r} of shape {whole} has no {size} equal shards along dimension {dim}")
                out.refuse(i)
            else:
                for cut in (Axis(TP, rank, size, dim) for rank in range(size)):
                    out.add(i, layout.tp_key(key, cut.rank), shard(tensor, cut), whole, (cut,))
        return out.put(self, config, 0)

    def put_tensor_with_tp(self, key: str, tensor: torch.Tensor, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> int:
        """All shards of a whole tensor, whatever tp_rank is."""
        return self._put_shards([key], [tensor], _DEFAULT, tp_size, split_dim, "put_tensor_with_tp()")[0]

    def pub_tensor_with_tp(
        self, key: str, tensor: torch.Tensor, config: ReplicateConfig = _DEFAULT, tp_rank: int = 0, tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:  # fmt: skip
        return self._put_shards([key], [tensor], config, tp_size, split_dim, "pub_tensor_with_tp()")[0]

    def batch_put_tensor_with_tp(
        self, base_keys: list[str], tensors_list: list, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> list[int]:
        return self._put_shards(base_keys, tensors_list, _DEFAULT, tp_size, split_dim, "batch_put_tensor_with_tp()")

    def batch_pub_tensor_with_tp(
        self, base_keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT, tp_rank: int = 0, tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:  # fmt: skip
        return self._put_shards(base_keys, tensors_list, config, tp_size, split_dim, "batch_pub_tensor_with_tp()")

    def put_tensor_with_tp_from(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """All shards of a whole tensor, whose header and elements are this memory."""
        return self.batch_put_tensor_with_tp_from([key], [buffer_ptr], [size], tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp_from(
        self, base_keys: list[str], buffer_ptrs: list[int], sizes: list[int], tp_rank: int = 0, tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:  # fmt: skip
        if not len(base_keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(base_keys)
        tensors = list(map(_tensor_in, buffer_ptrs, sizes))
        return self._put_shards(base_keys, tensors, _DEFAULT, tp_size, split_dim, "put_tensor_with_tp_from()")

    def _get_shards(
        self, what: str, keys: list[str], rank: int, size: int, dim: int, into: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor | None]:
        """Shards, put together from others if they are stored otherwise. Dimension 0, the default, is also any."""
        keys, cut = layout.texts(keys), Axis(TP, index(rank), index(size), index(dim))
        if not 0 <= rank < size:
            refuse(f"{what}: there is no rank {rank} of {size}")
            return [None] * len(keys)
        return read(self, what, [Want(key, cut, has_any_dim=dim == 0) for key in keys], into)

    def get_tensor_with_tp(self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> torch.Tensor | None:
        if tp_size <= 1:
            return self.get_tensor(key)
        return self._get_shards("get_tensor_with_tp()", [key], tp_rank, tp_size, split_dim)[0]

    def batch_get_tensor_with_tp(self, base_keys: list[str], tp_rank: int = 0, tp_size: int = 1) -> list[torch.Tensor | None]:
        if tp_size <= 1:
            return self.batch_get_tensor(base_keys)
        return self._get_shards("batch_get_tensor_with_tp()", base_keys, tp_rank, tp_size, 0)

    def get_tensor_with_tp_into(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> torch.Tensor | None:
        if tp_size <= 1:
            return self.get_tensor_into(key, buffer_ptr, size)
        into = [(buffer_ptr, size)]
        return self._get_shards("get_tensor_with_tp_into()", [key], tp_rank, tp_size, split_dim, into)[0]

    def batch_get_tensor_with_tp_into(
        self, base_keys: list[str], buffer_ptrs: list[int], sizes: list[int], tp_rank: int = 0, tp_size: int = 1
    ) -> list[torch.Tensor | None]:
        if tp_size <= 1 or not len(base_keys) == len(buffer_ptrs) == len(sizes):
            return self.batch_get_tensor_into(base_keys, buffer_ptrs, sizes)
        into = list(zip(buffer_ptrs, sizes))
        return self._get_shards("batch_get_tensor_with_tp_into()", base_keys, tp_rank, tp_size, 0, into)
