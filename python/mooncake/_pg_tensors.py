"""Tensors as the numbers that the extension takes: addresses, counts, types. Part of mooncake.pg."""

from __future__ import annotations

import torch
import torch.distributed as dist

# Numbers of mooncake/coll.h.
BARRIER, ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, GATHER, BROADCAST, SCATTER, ALL_TO_ALL = range(9)
SUM, PROD, MIN, MAX, AVG, PREMUL_SUM, BAND, BOR, BXOR = range(9)
BYTE = 0

_REDUCED = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool", "float16", "bfloat16",
            "float32", "float64", "complex64", "complex128")  # fmt: skip
TYPES = {getattr(torch, name): number for number, name in enumerate(_REDUCED, 1)}
_OPS = {"SUM": SUM, "PRODUCT": PROD, "MIN": MIN, "MAX": MAX, "AVG": AVG, "PREMUL_SUM": PREMUL_SUM, "BAND": BAND,
        "BOR": BOR, "BXOR": BXOR}  # fmt: skip
# By torch's own numbers: these enumerations are slow to hash.
_OP_NUMBERS = {getattr(dist.ReduceOp.RedOpType, name).value: number for name, number in _OPS.items()}


def reduction(op) -> tuple[int, float]:
    """(number, factor) of a torch ReduceOp."""
    kind = getattr(op, "op", op)  # PREMUL_SUM comes as an object with its factor
    number = _OP_NUMBERS.get(kind.value)
    if number is None:
        raise ValueError(f"reduction {op} is not one of {', '.join(_OPS)}")
    if number != PREMUL_SUM:
        return number, 0.0
    state = op.__getstate__() if hasattr(op, "__getstate__") else None
    factor = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if isinstance(factor, torch.Tensor):
        factor = factor.item()
    if factor is None:
        raise ValueError("PREMUL_SUM without a factor")
    return number, float(factor)


def common(tensors) -> torch.dtype | None:
    """What is moved, so that ranks can tell whether they move the same; None: just bytes."""
    first = tensors[0].dtype if tensors else None
    return first if first in TYPES and all(t.dtype == first for t in tensors) else None


class Staged:
    """The memory of a call's tensors: theirs where it can be used as it is, else a copy that goes back at the end.

    Tensors that are not contiguous are copied; those on a GPU go through pinned memory of the host.
    """

    __slots__ = ("_back", "_keep")

    def __init__(self):
        self._back: list[tuple[torch.Tensor, torch.Tensor]] = []  # (the caller's, ours)
        self._keep: list[torch.Tensor] = []

    def _host(self, tensor: torch.Tensor, is_read: bool) -> torch.Tensor:
        if not tensor.is_cpu:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return host.copy_(tensor) if is_read else host
        return tensor.contiguous() if is_read else torch.empty(tensor.shape, dtype=tensor.dtype)

    def input(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_contiguous() or not tensor.is_cpu:
            tensor = self._host(tensor, True)
        self._keep.append(tensor)
        return tensor

    def output(self, tensor: torch.Tensor, is_read: bool = False) -> torch.Tensor:
        ours = tensor
        if not tensor.is_contiguous() or not tensor.is_cpu:
            ours = self._host(tensor, is_read)
            self._back.append((tensor, ours))
        self._keep.append(ours)
        return ours

    def finish(self) -> None:
        """The operation has ended: results go where the caller wants them."""
        for theirs, ours in self._back:
            theirs.copy_(ours)
        self._back.clear()


def part(tensor: torch.Tensor, as_bytes: bool) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel() * (tensor.element_size() if as_bytes else 1)


def parts(tensors: list[torch.Tensor], slots: int, as_bytes: bool = True) -> tuple[int, ...]:
    """Address, count, address, count, …; nothing for slots beyond the tensors."""
    flat: list[int] = []
    for tensor in tensors:
        flat += part(tensor, as_bytes)
    return tuple(flat) + (0, 0) * (slots - len(tensors))


def even(tensor: torch.Tensor, ranks: int, slots: int, as_bytes: bool = True) -> tuple[int, ...]:
    """Parts: `ranks` equal pieces of a contiguous tensor; nothing for slots beyond."""
    whole, width = tensor.numel(), tensor.element_size()
    count, rest = divmod(whole, ranks)
    if rest:
        raise ValueError(f"{whole} elements are not divisible by {ranks} ranks")
    return _spread(tensor.data_ptr(), [count] * ranks, width, as_bytes) + (0, 0) * (slots - ranks)


def cut(tensor: torch.Tensor, rows: list[int], slots: int, as_bytes: bool) -> tuple[int, ...]:
    """Parts: pieces of a contiguous tensor along its first dimension, of so many rows each."""
    have = tensor.shape[0] if tensor.dim() else tensor.numel()
    if sum(rows) != have or min(rows, default=0) < 0:
        raise ValueError(f"split sizes {rows} do not add up to the first dimension of {tuple(tensor.shape)}")
    row = tensor.numel() // have if have else 0
    flat = _spread(tensor.data_ptr(), [n * row for n in rows], tensor.element_size(), as_bytes)
    return flat + (0, 0) * (slots - len(rows))


def _spread(at: int, counts: list[int], width: int, as_bytes: bool) -> tuple[int, ...]:
    flat: list[int] = []
    for count in counts:
        flat += (at, count * width if as_bytes else count)
        at += count * width
    return tuple(flat)
