"""Which piece of a tensor a process has or wants: what callers say, the names of the pieces, and where pieces meet.

A shard lies under a key of its own, named after its place:

    KEY_tp_RANK                                cut by tensor parallelism alone
    KEY__dp_RofN__tp_RofN_sdD__ep_RofN_eidE__pp_RofN_sidS    along several axes, in this order
    KEY__writer_RofN_sdD                       a part of a tensor that several processes write together
    KEY__parallelism_manifest, KEY__writer_manifest          how KEY is cut
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from operator import index
from typing import Any, NamedTuple

from mooncake._store_tensor_format import AXES_MAX, DP, EP, PP, TP, Axis

_log = logging.getLogger("mooncake")

KINDS = {"dp": DP, "tp": TP, "ep": EP, "pp": PP}
MODES = ("as_stored", "shard", "full")
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1


def _int_of(value: object) -> int | None:
    """An int, also one of numpy's; None for anything else, and for what 32 bits cannot hold."""
    value = index(value) if hasattr(value, "__index__") else None
    return value if value is not None and INT_MIN <= value <= INT_MAX else None


@dataclass(slots=True, eq=False)
class ParallelAxis:
    """One axis: rank `rank` of `size` of kind "tp", "dp", "ep" or "pp".

    "tp" needs `split_dim`, the dimension that is cut; "ep" needs `expert_id`, "pp" needs `stage_id`.
    """

    kind: str = ""
    rank: int = 0
    size: int = 1
    split_dim: int | None = None
    expert_id: int | None = None
    stage_id: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "kind":
            if not isinstance(value, str):
                raise TypeError(f"kind must be a str, not {value!r}")
        elif name in ("rank", "size") or value is not None:
            number = _int_of(value)
            if number is None:
                raise TypeError(f"{name} must be an int of 32 bits, not {value!r}")
            value = number
        object.__setattr__(self, name, value)


@dataclass(slots=True, eq=False)
class TensorParallelism:
    """A process's place along each of its axes."""

    axes: list[ParallelAxis] = field(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not all(isinstance(axis, ParallelAxis) for axis in value):
            raise TypeError(f"{name} must be a list of ParallelAxis, not {value!r}")
        object.__setattr__(self, name, list(value))


@dataclass(slots=True, eq=False)
class ReadTarget:
    """What a read asks for: the object as it is, the "shard" of a place, or the "full" tensor."""

    mode: str = "as_stored"
    parallelism: TensorParallelism | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mode":
            if not isinstance(value, str):
                raise TypeError(f"mode must be a str, not {value!r}")
            if value not in MODES:
                raise RuntimeError(f"mode is {value!r}; those there are: {', '.join(MODES)}")
        elif value is not None and not isinstance(value, TensorParallelism):
            raise TypeError(f"{name} must be a TensorParallelism or None, not {value!r}")
        object.__setattr__(self, name, value)


# ---- what callers say ----


def refuse(why: str) -> None:
    _log.warning("%s", why)


def _axis(given: object) -> tuple[Axis | None, str]:
    """What is wrong, if anything. Any object with these attributes will do."""
    kind = getattr(given, "kind", None)
    names = ("rank", "size", "split_dim", "expert_id", "stage_id")
    rank, size, dim, expert, stage = (_int_of(getattr(given, name, None)) for name in names)
    code = KINDS.get(kind.lower()) if isinstance(kind, str) else None
    if code is None:
        return None, f"an axis of kind {kind!r}; those there are: {', '.join(KINDS)}"
    if rank is None or size is None or not 0 <= rank < size:
        return None, f"rank {rank} of {size} along {kind}"
    if (code == TP) != (dim is not None):
        return None, f"split_dim is {dim} along {kind}"
    if (code == EP and expert is None) or (code == PP and stage is None):
        return None, f"an axis of kind {kind} without its {'expert_id' if code == EP else 'stage_id'}"
    return Axis(code, rank, size, dim if code == TP else -1, {EP: expert, PP: stage}.get(code) or 0), ""


def axes_of(what: str, parallelism: object) -> tuple[Axis, ...] | None:
    """The axes of a TensorParallelism; None, and a warning, when they are none."""
    given = getattr(parallelism, "axes", None)
    if not isinstance(given, (list, tuple)) or not 0 < len(given) <= AXES_MAX:
        refuse(f"{what}: a parallelism must have 1 to {AXES_MAX} axes, not {given!r}")
        return None
    axes = []
    for axis, why in map(_axis, given):
        if axis is None:
            refuse(f"{what}: {why}")
            return None
        axes.append(axis)
    if len({axis.kind for axis in axes}) < len(axes):
        refuse(f"{what}: two axes of one kind")
        return None
    return tuple(axes)


def writer_of(what: str, partition: object) -> Axis | None:
    """The place of one of several writers: anything with rank, size and split_dim."""
    rank, size, dim = (_int_of(getattr(partition, name, None)) for name in ("rank", "size", "split_dim"))
    if None in (rank, size, dim) or not 0 <= rank < size or dim < 0:
        refuse(f"{what}: a writer_partition of rank {rank}, size {size}, split_dim {dim}")
        return None
    return Axis(TP, rank, size, dim)


def cut_of(axes: tuple[Axis, ...]) -> Axis | None:
    """The axis of tensor parallelism."""
    return next((axis for axis in axes if axis.kind == TP), None)


# ---- names ----


def texts(keys: list[str]) -> list[str]:
    """Keys, of which names can be made."""
    if isinstance(keys, (str, bytes)):
        raise TypeError("keys must be a list of str")
    names = [key.decode() if isinstance(key, bytes) else key for key in keys]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"key {name!r} must be a str")
    return names


def tp_key(key: str, rank: int) -> str:
    return f"{key}_tp_{rank}"


def shard_key(key: str, axes: tuple[Axis, ...]) -> str:
    if len(axes) == 1 and axes[0].kind == TP:
        return tp_key(key, axes[0].rank)
    last = {DP: "", TP: "_sd{0.dim}", EP: "_eid{0.id}", PP: "_sid{0.id}"}
    names = {code: name for name, code in KINDS.items()}
    return key + "".join(f"__{names[a.kind]}_{a.rank}of{a.size}" + last[a.kind].format(a) for a in sorted(axes))


def writer_key(key: str, cut: Axis) -> str:
    return f"{key}__writer_{cut.rank}of{cut.size}_sd{cut.dim}"


def manifest_key(key: str) -> str:
    return f"{key}__parallelism_manifest"


def writer_manifest_key(key: str) -> str:
    return f"{key}__writer_manifest"


# ---- boxes ----


class Box(NamedTuple):
    """A block of a tensor: where it begins and how long it is along each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, of the box alone."""
        steps, step = [], 1
        for length in reversed(self.shape):
            steps.append(step)
            step *= length
        return tuple(reversed(steps))


def box_of(whole: tuple[int, ...], shape: tuple[int, ...], cut: Axis | None) -> Box:
    """The shard of this place; without one, the whole."""
    start = [0] * len(whole)
    if cut is not None:
        start[cut.dim] = cut.rank * shape[cut.dim]
    return Box(tuple(start), shape)


def overlap(a: Box, b: Box) -> Box | None:
    start = tuple(map(max, a.start, b.start))
    ends = (min(s + n, t + m) for s, n, t, m in zip(a.start, a.shape, b.start, b.shape))
    shape = tuple(end - begin for end, begin in zip(ends, start))
    return Box(start, shape) if min(shape, default=1) > 0 else None


class Runs(NamedTuple):
    """How a part lies in two boxes: `count` runs of `length` elements that are together in both."""

    length: int
    count: int
    dims: int  # the leading ones, along which one run follows the other
    span: int  # elements of the source from the first run to the end of the last


def runs_of(part: Box, src: Box, dst: Box) -> Runs:
    length, dims = 1, len(part.shape)
    while dims > 0:
        dims -= 1
        length *= part.shape[dims]
        if not part.shape[dims] == src.shape[dims] == dst.shape[dims]:
            break
    count = 1
    for n in part.shape[:dims]:
        count *= n
    span = 1 + sum((n - 1) * step for n, step in zip(part.shape, src.strides))
    return Runs(length, count, dims, span)


def run_starts(part: Box, src: Box, dst: Box, dims: int) -> list[tuple[int, int]]:
    """Where each run begins in both, in elements."""
    steps = list(zip(src.strides, dst.strides))
    first = [sum((s - b) * step for s, b, step in zip(part.start, box.start, box.strides)) for box in (src, dst)]
    starts = [(first[0], first[1])]
    for n, (fro, to) in zip(part.shape[:dims], steps):
        starts = [(s + i * fro, d + i * to) for s, d in starts for i in range(n)]
    return starts
