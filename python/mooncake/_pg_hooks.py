"""Hooks around operations and before an abort, by torch 2.15's names. Part of mooncake.pg.

torch calls such hooks for groups that are written in C++; of one in Python it calls the methods and nothing else. A group
without hooks pays nothing for them: its methods are replaced when the first one is registered.
"""

from __future__ import annotations

import enum
import functools
import itertools
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

_NAMES = (
    "SEND", "RECV", "BROADCAST", "ALLREDUCE", "REDUCE", "ALLGATHER", "REDUCE_SCATTER", "ALLTOALL", "BARRIER", "SCATTER",
    "GATHER", "SPLIT", "NEW_WINDOW", "ALLREDUCE_COALESCED", "ALLGATHER_BASE", "ALLGATHER_COALESCED",
    "ALLGATHER_INTO_TENSOR_COALESCED", "REDUCE_SCATTER_BASE", "REDUCE_SCATTER_TENSOR_COALESCED", "ALLTOALL_BASE",
    "UNKNOWN",
)  # fmt: skip

HookOpName = getattr(torch._C._distributed_c10d, "HookOpName", None) or enum.IntEnum("HookOpName", _NAMES, start=0)


@dataclass(frozen=True)
class PreHookArgs:
    """Of an operation that is about to be started; root: of a message its other end, -1: there is none."""

    name: Any
    async_op: bool
    input_tensors: list[torch.Tensor] = field(default_factory=list)
    output_tensors: list[torch.Tensor] = field(default_factory=list)
    root: int = -1
    op_id: int = 0


@dataclass(frozen=True)
class PostHookArgs:
    name: Any
    async_op: bool
    work: dist.Work | None
    op_id: int


# What an operation is called, and which arguments are its inputs and outputs.
_OPERATIONS: dict[str, tuple[str, int | None, int | None]] = {
    "allreduce": ("ALLREDUCE", 0, 0),
    "allreduce_coalesced": ("ALLREDUCE_COALESCED", 0, 0),
    "reduce": ("REDUCE", 0, 0),
    "broadcast": ("BROADCAST", 0, 0),
    "barrier": ("BARRIER", None, None),
    "allgather": ("ALLGATHER", 1, 0),
    "allgather_coalesced": ("ALLGATHER_COALESCED", 1, 0),
    "gather": ("GATHER", 1, 0),
    "scatter": ("SCATTER", 1, 0),
    "reduce_scatter": ("REDUCE_SCATTER", 1, 0),
    "alltoall": ("ALLTOALL", 1, 0),
    "send": ("SEND", 0, None),
    "recv": ("RECV", None, 0),
    "recv_anysource": ("RECV", None, 0),
}
_ALIASES = (
    ("ALLGATHER_BASE", ("all_gather_single", "_allgather_base", "allgather_base", "all_gather_into_tensor")),
    ("ALLGATHER_INTO_TENSOR_COALESCED", ("all_gather_single_coalesced", "allgather_into_tensor_coalesced")),
    ("REDUCE_SCATTER_BASE",
     ("reduce_scatter_single", "_reduce_scatter_base", "reduce_scatter_base", "reduce_scatter_tensor")),
    ("REDUCE_SCATTER_TENSOR_COALESCED", ("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced")),
    ("ALLTOALL_BASE", ("all_to_all_single", "alltoall_base")),
)  # fmt: skip
for _name, _methods in _ALIASES:
    _OPERATIONS |= {method: (_name, 1, 0) for method in _methods}


def _flat(x) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for item in x or () for t in _flat(item)]


def _pre_args(operation, method: str, args, kwargs, op_id: int) -> PreHookArgs:
    name, ins, outs = operation
    opts = next((a for a in (*args, *kwargs.values()) if hasattr(a, "timeout")), None)
    root = int(getattr(opts, "rootRank", -1))
    if method in ("send", "recv"):
        root = int(args[1] if len(args) > 1 else kwargs["dst" if method == "send" else "src"])
    positional = [*args, *kwargs.values()]
    return PreHookArgs(
        getattr(HookOpName, name), bool(getattr(opts, "asyncOp", True)),
        [] if ins is None else _flat(positional[ins]), [] if outs is None else _flat(positional[outs]), root, op_id,
    )  # fmt: skip


class Hooks:
    """Keyed by the caller's numbers; called in their order. Registered while no operation runs."""

    supports_abort_hooks = True
    supports_completion_hooks = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._abort_hooks: dict[int, Any] = {}
        self._is_abort_told = False  # of the group as it is now: every operation fails after a time-out
        self._pre_hooks: dict[int, Any] = {}
        self._post_hooks: dict[int, Any] = {}
        self._op_ids = itertools.count()
        self._within = threading.local()  # operations that are made of others fire once

    def register_abort_hook(self, hook_id: int, hook) -> None:
        """Before this rank aborts, and when an operation has timed out, which ends the group's use."""
        self._abort_hooks[int(hook_id)] = hook

    def unregister_abort_hook(self, hook_id: int) -> None:
        self._abort_hooks.pop(int(hook_id), None)

    def register_pre_hook(self, hook_id: int, hook) -> None:
        """Before each operation and message of this rank. What it raises, the operation's caller gets."""
        self._pre_hooks[int(hook_id)] = hook
        self._hook_in()

    def unregister_pre_hook(self, hook_id: int) -> None:
        self._pre_hooks.pop(int(hook_id), None)
        self._hook_out()

    def register_post_hook(self, hook_id: int, hook) -> None:
        """After each was started."""
        self._post_hooks[int(hook_id)] = hook
        self._hook_in()

    def unregister_post_hook(self, hook_id: int) -> None:
        self._post_hooks.pop(int(hook_id), None)
        self._hook_out()

    def _fire_abort(self) -> None:
        if self._is_abort_told:
            return
        self._is_abort_told = True
        for _, hook in sorted(self._abort_hooks.items()):
            try:
                hook()
            except Exception as exc:  # noqa: BLE001 - the abort has to go on
                warnings.warn(f"an abort hook failed: {exc!r}", RuntimeWarning, 3)

    def _hook_in(self) -> None:
        for method, operation in _OPERATIONS.items():
            if method not in self.__dict__:
                setattr(self, method, self._hooked(getattr(self, method), method, operation))

    def _hook_out(self) -> None:
        if self._pre_hooks or self._post_hooks:
            return
        for method in _OPERATIONS:
            self.__dict__.pop(method, None)

    def _hooked(self, call, method: str, operation):
        @functools.wraps(call)
        def hooked(*args, **kwargs):
            if getattr(self._within, "is_set", False):
                return call(*args, **kwargs)
            before = _pre_args(operation, method, args, kwargs, next(self._op_ids))
            for _, hook in sorted(self._pre_hooks.items()):
                hook(before)
            self._within.is_set = True
            try:
                work = call(*args, **kwargs)
            finally:
                self._within.is_set = False
            after = PostHookArgs(before.name, before.async_op, work, before.op_id)
            for _, hook in sorted(self._post_hooks.items()):
                hook(after)
            return work

        return hooked
