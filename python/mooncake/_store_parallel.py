"""Tensors of processes that are placed along several axes (tensor, data, expert, pipeline parallelism).

What is written:
- without a parallelism, the tensor itself;
- along a "tp" axis alone, `tensor` is this rank's shard already;
- along several, or with a writer_partition, `tensor` is the whole one, and this rank's shard of it is stored;
- `…_from`, whose memory holds the whole tensor, stores the shards of all "tp" ranks; of a writer_partition only its own.

What is read: "as_stored" one object, "shard" the piece of a place, "full" the whole; the latter two whichever way it was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mooncake import _store_layout as layout
from mooncake._codes import INVALID_PARAMS
from mooncake._store_layout import MODES, cut_of, refuse
from mooncake._store_reshard import Want, read
from mooncake._store_tensor_format import Axis, Manifest, pack_manifest, shard_shape
from mooncake._store_tensors import UPSERT, Outgoing, _dtype_of, _in_memory, _tensor_in, shard
from mooncake._store_types import ReplicateConfig

if TYPE_CHECKING:
    import torch

_DEFAULT = ReplicateConfig()


class _Put:
    """What one call puts."""

    def __init__(self, what: str, requests: int, holds_whole: bool) -> None:
        self.what, self.holds_whole, self.out = what, holds_whole, Outgoing(requests)

    def add(self, i: int, key: str, tensor: torch.Tensor | None, parallelism: object, partition: object) -> None:
        if tensor is None:
            is_added = False
        elif partition is not None:
            is_added = self._add_written(i, key, tensor, partition)
        elif parallelism is not None:
            is_added = self._add_placed(i, key, tensor, parallelism)
        else:
            self.out.add(i, key, tensor, tuple(tensor.shape))
            is_added = True
        if not is_added:
            self.out.refuse(i)

    def _is_even(self, key: str, whole: tuple[int, ...], cut: Axis) -> bool:
        if shard_shape(whole, cut) is None:
            refuse(f"{self.what}: {key!r} of shape {whole} has no {cut.size} equal shards along dimension {cut.dim}")
            return False
        return True

    def _add_written(self, i: int, key: str, tensor: torch.Tensor, partition: object) -> bool:
        cut, whole = layout.writer_of(self.what, partition), tuple(tensor.shape)
        if cut is None or not self._is_even(key, whole, cut):
            return False
        self.out.add(i, layout.writer_key(key, cut), shard(tensor, cut), whole, (cut,))
        manifest = Manifest(_dtype_of(tensor), whole, cut.dim, cut.size)
        self.out.add_bytes(i, layout.writer_manifest_key(key), pack_manifest(manifest))
        return True

    def _add_placed(self, i: int, key: str, tensor: torch.Tensor, parallelism: object) -> bool:
        axes, whole = layout.axes_of(self.what, parallelism), tuple(tensor.shape)
        cut = cut_of(axes) if axes else None
        if axes is None:
            return False
        if cut is None:
            self.out.add(i, layout.shard_key(key, axes), tensor, whole, axes)
            return True
        is_shard = len(axes) == 1 and not self.holds_whole
        if is_shard and cut.dim < len(whole):
            whole = (*whole[: cut.dim], whole[cut.dim] * cut.size, *whole[cut.dim + 1 :])
        if not self._is_even(key, whole, cut):
            return False
        for one in (cut._replace(rank=rank) for rank in (range(cut.size) if self.holds_whole else (cut.rank,))):
            place = tuple(one if axis is cut else axis for axis in axes)
            self.out.add(i, layout.shard_key(key, place), tensor if is_shard else shard(tensor, one), whole, place)
        manifest = Manifest(_dtype_of(tensor), whole, cut.dim, cut.size)
        self.out.add_bytes(i, layout.manifest_key(key), pack_manifest(manifest))
        return True


def _column(what: str, name: str, given: object, n: int) -> list | None:
    """One of each key; None, and a warning, when it is no list of as many."""
    if given is None:
        return [None] * n
    if not isinstance(given, list) or len(given) != n:
        refuse(f"{what}: {name} must be a list of as many as there are keys, or None")
        return None
    return given


class Parallel:
    """The methods of MooncakeDistributedStore whose names end with `_with_parallelism`."""

    __slots__ = ()

    # ---- writing ----

    def _put_parallel(
        self, what: str, keys: list, tensors: list, parallelisms: object, config: ReplicateConfig, partitions: object, flags: int,
        holds_whole: bool = False,
    ) -> list[int]:  # fmt: skip
        keys, n = layout.texts(keys), len(keys)
        if parallelisms is not None and partitions is not None:
            refuse(f"{what}: a writer_partition and a parallelism exclude each other")
            return [INVALID_PARAMS] * n
        parallelisms, partitions = _column(what, "parallelisms", parallelisms, n), _column(what, "writer_partitions", partitions, n)
        if len(tensors) != n or parallelisms is None or partitions is None:
            return [INVALID_PARAMS] * n
        put = _Put(what, n, holds_whole)
        for i, (key, tensor) in enumerate(zip(keys, map(_in_memory, tensors))):
            put.add(i, key, tensor, parallelisms[i], partitions[i])
        return put.out.put(self, config, flags)

    def _put_parallel_from(
        self, what: str, keys: list, ptrs: list, sizes: list, parallelisms: object, config: ReplicateConfig, partitions: object,
        flags: int,
    ) -> list[int]:  # fmt: skip
        if not len(keys) == len(ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._put_parallel(what, keys, list(map(_tensor_in, ptrs, sizes)), parallelisms, config, partitions, flags, True)

    def put_tensor_with_parallelism(
        self, key: str, tensor: torch.Tensor, parallelism: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partition: object = None,
    ) -> int:  # fmt: skip
        what = "put_tensor_with_parallelism()"
        return self._put_parallel(what, [key], [tensor], _one(parallelism), config, _one(writer_partition), 0)[0]

    def upsert_tensor_with_parallelism(
        self, key: str, tensor: torch.Tensor, parallelism: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partition: object = None,
    ) -> int:  # fmt: skip
        what = "upsert_tensor_with_parallelism()"
        return self._put_parallel(what, [key], [tensor], _one(parallelism), config, _one(writer_partition), UPSERT)[0]

    def batch_put_tensor_with_parallelism(
        self, keys: list[str], tensors_list: list, parallelisms: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partitions: object = None,
    ) -> list[int]:  # fmt: skip
        what = "batch_put_tensor_with_parallelism()"
        return self._put_parallel(what, keys, tensors_list, parallelisms, config, writer_partitions, 0)

    def batch_upsert_tensor_with_parallelism(
        self, keys: list[str], tensors_list: list, parallelisms: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partitions: object = None,
    ) -> list[int]:  # fmt: skip
        what = "batch_upsert_tensor_with_parallelism()"
        return self._put_parallel(what, keys, tensors_list, parallelisms, config, writer_partitions, UPSERT)

    def put_tensor_with_parallelism_from(
        self, key: str, buffer_ptr: int, size: int, parallelism: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partition: object = None,
    ) -> int:  # fmt: skip
        what, memory = "put_tensor_with_parallelism_from()", ([buffer_ptr], [size])
        return self._put_parallel_from(what, [key], *memory, _one(parallelism), config, _one(writer_partition), 0)[0]

    def upsert_tensor_with_parallelism_from(
        self, key: str, buffer_ptr: int, size: int, parallelism: object = None, config: ReplicateConfig = _DEFAULT,
        writer_partition: object = None,
    ) -> int:  # fmt: skip
        what, memory = "upsert_tensor_with_parallelism_from()", ([buffer_ptr], [size])
        return self._put_parallel_from(what, [key], *memory, _one(parallelism), config, _one(writer_partition), UPSERT)[0]

    def batch_put_tensor_with_parallelism_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], parallelisms: object = None,
        config: ReplicateConfig = _DEFAULT, writer_partitions: object = None,
    ) -> list[int]:  # fmt: skip
        what = "batch_put_tensor_with_parallelism_from()"
        return self._put_parallel_from(what, keys, buffer_ptrs, sizes, parallelisms, config, writer_partitions, 0)

    def batch_upsert_tensor_with_parallelism_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], parallelisms: object = None,
        config: ReplicateConfig = _DEFAULT, writer_partitions: object = None,
    ) -> list[int]:  # fmt: skip
        what = "batch_upsert_tensor_with_parallelism_from()"
        return self._put_parallel_from(what, keys, buffer_ptrs, sizes, parallelisms, config, writer_partitions, UPSERT)

    # ---- reading ----

    def _get_parallel(
        self, what: str, keys: list, targets: object, into: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor | None]:
        """Objects as they are in one call, all others in another."""
        keys = layout.texts(keys)
        targets = _column(what, "targets", targets, len(keys))
        if targets is None:
            return [None] * len(keys)
        asked = [_asked(what, key, target) for key, target in zip(keys, targets)]
        found: list = [None] * len(keys)
        stored = [i for i, one in enumerate(asked) if isinstance(one, str)]
        names = [asked[i] for i in stored]
        if into is None:
            got = self.batch_get_tensor(names)
        else:
            got = self.batch_get_tensor_into(names, [into[i][0] for i in stored], [into[i][1] for i in stored])
        for i, tensor in zip(stored, got):
            found[i] = tensor
        pieces = read(self, what, [one if isinstance(one, Want) else None for one in asked], into)
        return [piece if tensor is None else tensor for tensor, piece in zip(found, pieces)]

    def get_tensor_with_parallelism(self, key: str, target: object = None) -> torch.Tensor | None:
        return self._get_parallel("get_tensor_with_parallelism()", [key], _one(target))[0]

    def batch_get_tensor_with_parallelism(self, keys: list[str], targets: object = None) -> list[torch.Tensor | None]:
        return self._get_parallel("batch_get_tensor_with_parallelism()", keys, targets)

    def get_tensor_with_parallelism_into(
        self, key: str, buffer_ptr: int, size: int, target: object = None
    ) -> torch.Tensor | None:
        return self._get_parallel("get_tensor_with_parallelism_into()", [key], _one(target), [(buffer_ptr, size)])[0]

    def batch_get_tensor_with_parallelism_into(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], targets: object = None
    ) -> list[torch.Tensor | None]:
        if not len(keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(keys)
        return self._get_parallel("batch_get_tensor_with_parallelism_into()", keys, targets, list(zip(buffer_ptrs, sizes)))


def _one(given: object) -> list | None:
    return None if given is None else [given]


def _asked(what: str, key: str, target: object) -> Want | str | None:
    """A piece, an object as it is, or nothing that can be."""
    mode = getattr(target, "mode", None) if target is not None else MODES[0]
    if mode not in MODES:
        refuse(f"{what}: a target must be a ReadTarget, not {target!r}")
        return None
    parallelism = getattr(target, "parallelism", None)
    axes: tuple[Axis, ...] | None = () if parallelism is None else layout.axes_of(what, parallelism)
    if axes is None or (mode == "shard" and not axes):
        refuse(f"{what}: a shard needs its parallelism")
        return None
    cut = cut_of(axes)
    if mode == "as_stored" or (mode == "shard" and cut is None):
        return layout.shard_key(key, axes)
    others = tuple(axis for axis in axes if axis is not cut)
    return Want(key, cut if mode == "shard" else None, others, is_bare=not axes)
