"""Buffers of expert parallelism on tensors of a GPU: through the kernels of mooncake/ep_cuda.h, or, where ranks cannot reach
each other's GPU memory, through the host. Part of mooncake.mooncake_ep_buffer."""

from __future__ import annotations

import functools
import warnings

import torch
import torch.distributed as dist

from mooncake import _mooncake
from mooncake import _ep_core as core
from mooncake._codes import UNSUPPORTED

SLOTS = 4
SLOT_BYTES = 64 << 20  # where the caller did not say
HEAD_BYTES = 1 << 20  # of a slot, beside the rows that a caller thinks of


class Event:
    """What was queued until now, on the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()
        self._event.record()

    def current_stream_wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._event)

    def synchronize(self) -> None:
        self._event.synchronize()


class Lent:
    """Memory of a GPU as others' arrays are told of (numba's __cuda_array_interface__)."""

    def __init__(self, address: int, shape: tuple[int, ...], owner) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<i2", "data": (address, False), "version": 3}
        self.owner = owner


class Place:
    """Where halves on a GPU run. As core.Place."""

    def __init__(self, ep, device: torch.device) -> None:
        self.ep, self.device = ep, device
        self.empty = functools.partial(torch.empty, device=device)

    def stream(self) -> tuple[int, ...]:
        return (torch.cuda.current_stream(self.device).cuda_stream,)

    def finish(self, end, is_async: bool, is_deferred: bool):
        """Kernels are queued at once, or when the hook is called."""
        if is_deferred:
            return Event(), core.Deferred(end)
        end()
        return Event(), core.nothing

    def lent(self, address: int, shape: tuple[int, ...], dtype: torch.dtype, owner) -> torch.Tensor:
        return torch.as_tensor(Lent(address, shape, owner), device=self.device).view(dtype)


def _all_can(group, can: bool) -> bool:
    flag, how = torch.tensor([int(can)]), dist.AllreduceOptions()
    how.reduceOp = dist.ReduceOp.MIN
    group.allreduce([flag], how).wait()
    return bool(flag.item())


class Gpu:
    """A rank's end on its GPU, if all ranks of the group have one that can do it. `place` is None where not; `why` says
    what is missing."""

    def __init__(self, group, num_bytes: int) -> None:
        self.group, self.slot_bytes = group, (num_bytes // SLOTS or SLOT_BYTES) + HEAD_BYTES
        self.place: Place | None = None
        self.why = ""
        self._ep = None

    def update(self) -> None:
        """All ranks of the group."""
        if self._ep is None:
            self._open()
        self.place = None
        if not _all_can(self.group, self._ep is not None):
            self.why = self.why or "a rank has no GPU to run kernels on"
            return self._warn()
        code, text = self._ep.update()
        if code == UNSUPPORTED:
            self.why = text
            return self._warn()
        if code < 0:
            core.fail(code, text)
        self.place = Place(self._ep, torch.device("cuda", self._index))

    def _open(self) -> None:
        code, self.why = _mooncake.ep_cuda_check()
        if code == 0 and not torch.cuda.is_available():
            code, self.why = UNSUPPORTED, "torch sees no GPU"
        if code < 0:
            return
        self._index = torch.cuda.current_device()
        try:
            self._ep, self.why = _mooncake.EpCudaBuffer(self.group._coll, self._index, self.slot_bytes), ""
        except RuntimeError as exc:
            self.why = str(exc)

    def _warn(self) -> None:
        if torch.cuda.is_available():
            warnings.warn(f"mooncake.ep: tensors of GPUs go through the host: {self.why}", stacklevel=4)


# ---- through the host ----


def _to_host(tensor):
    return tensor.cpu() if isinstance(tensor, torch.Tensor) else tensor


def _like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_like(tensor, device=device, memory_format=torch.preserve_format)


def _back(pairs, active, active_host) -> None:
    for theirs, ours in pairs:
        theirs.copy_(ours)
    if active is not None:
        active.copy_(active_host)


def _ended(end, is_deferred: bool):
    if is_deferred:
        return core.EventOverlap(Event()), core.Deferred(end)
    end()
    return core.EventOverlap(Event()), core.nothing


def dispatch_by_host(buffer, x, topk_idx, active_ranks, most, experts, timeout_us, use_fp8, async_finish, hook, **scales):
    """Buffer.dispatch() of copies. The handle is the host's."""
    core.one_of(async_finish, hook)
    active = _to_host(active_ranks)
    recv, counts, handle, _, end_host = buffer.dispatch(
        x.cpu(), _to_host(topk_idx), active, most, experts, timeout_us, use_fp8, False, True, **scales)  # fmt: skip
    ours = [*(recv if use_fp8 else (recv,)), counts]
    theirs = [_like(t, x.device) for t in ours]

    def end() -> None:
        end_host()
        _back(zip(theirs, ours, strict=True), active_ranks, active)

    event, hook = _ended(end, hook)
    return (tuple(theirs[:2]) if use_fp8 else theirs[0]), theirs[-1], handle, event, hook


def combine_by_host(buffer, x, topk_idx, topk_weights, active_ranks, timeout_us, handle, async_finish, hook, out):
    core.one_of(async_finish, hook)
    active = _to_host(active_ranks)
    sums, _, end_host = buffer.combine(
        x.cpu(), _to_host(topk_idx), _to_host(topk_weights), active, timeout_us, handle, False, False, True)  # fmt: skip
    out = _like(sums, x.device) if out is None else core.need("out", out, torch.bfloat16, tuple(sums.shape), x.device)

    def end() -> None:
        end_host()
        _back([(out, sums)], active_ranks, active)

    event, hook = _ended(end, hook)
    return out, event, hook
