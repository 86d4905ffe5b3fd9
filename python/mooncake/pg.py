"""A torch.distributed backend that goes on when ranks die, and takes them back.

Importing it registers the backends "mooncake-cpu" and "mooncake". A rank that dies is left out of what the others
compute, on all of them from the same operation on; `get_active_ranks()` says who is in. A replacement opens the group
with `MooncakeBackendOptions(active_ranks, True)`, calls `join_group()`, and is taken in by `recover_ranks()` of any other.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import warnings
from dataclasses import dataclass, field

try:
    import torch
    import torch.distributed as dist
except ImportError as exc:  # pragma: no cover - depends on what is installed
    raise ImportError("mooncake.pg needs torch: pip install torch") from exc

if not dist.is_available():
    raise ImportError("mooncake.pg needs a torch that was built with distributed")

from mooncake._pg_group import MooncakeProcessGroup, bits, use_ip
from mooncake._pg_work import Work

__all__ = [
    "MooncakeBackendOptions", "ProposalStatus", "ProposeViewUpdateResponse", "SyncAfterFailureResponse", "SyncStatus",
    "ViewUpdateStatus", "activate_ranks", "createMooncakeBackend", "createMooncakeCpuBackend", "deactivate_ranks",
    "extend_group_size_to", "get_active_ranks", "get_current_epoch", "get_failed_ranks_hint", "get_local_success",
    "get_num_synced_ranks", "get_peer_state", "get_preferred_hca", "join_group", "recover_ranks",
    "set_collective_timeout_us", "set_device_filter", "set_fault_reconciliation_window_us", "set_host_ip",
    "set_p2p_timeout_us", "set_transfer_engine", "sync_after_failure",
]  # fmt: skip

_JOIN_NS = 300 * 10**9
_PROPOSE_NS = 20 * 10**9
_settings: dict[str, object] = {"collective_us": 10_000_000, "window_us": 30_000_000}


class ProposalStatus(enum.IntEnum):
    Rejected = 0
    Applied = 1
    AppliedWithDroppedRanks = 2


ViewUpdateStatus = ProposalStatus


class SyncStatus(enum.IntEnum):
    Reconciled = 0
    NoPending = 1
    Rejected = 2


@dataclass(frozen=True)
class ProposeViewUpdateResponse:
    status: ProposalStatus
    new_epoch: int
    dropped_ranks: list[int] = field(default_factory=list)
    reject_reason: str = ""


@dataclass(frozen=True)
class SyncAfterFailureResponse:
    status: SyncStatus
    reject_reason: str = ""


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name)
    return default if text is None else text.strip().lower() in ("1", "true", "yes", "on")


class MooncakeBackendOptions:
    """`(active_ranks: Tensor[, is_extension[, max_group_size]])` or `(max_group_size: int[, is_extension[,
    auto_deactivate_on_failure, auto_sync_on_failure]])`.

    active_ranks: int32 storage in which the group keeps who is active. is_extension: this process joins a group that
    runs. max_group_size: slots; default: the group's size. Operations always go on without the dead. With
    auto_sync_on_failure off, these count as active (in `active_ranks`, and as missing in each operation's hint) until
    sync_after_failure(); with auto_deactivate_on_failure off as well, until deactivate_ranks(). `enable_reconfigure`, an
    attribute as torch 2.15's options have it: the group has no ranks before its first reconfigure().
    """

    def __init__(self, *args, **kwargs):
        args = list(args)
        first_name = "active_ranks" if "active_ranks" in kwargs else "max_group_size"
        first = args.pop(0) if args else kwargs.pop(first_name, None)
        self.active_ranks = first if isinstance(first, torch.Tensor) else None
        names = ["is_extension", "max_group_size"]
        if self.active_ranks is None:
            names = ["is_extension", "auto_deactivate_on_failure", "auto_sync_on_failure"]
            if first is not None and (isinstance(first, bool) or not isinstance(first, int)):
                raise TypeError(f"MooncakeBackendOptions(active_ranks: Tensor | max_group_size: int, ...), not {first!r}")
        if len(args) > len(names):
            raise TypeError(f"MooncakeBackendOptions takes at most {len(names) + 1} arguments")
        given = dict(zip(names, args, strict=False))
        for name in kwargs:
            if name not in names or name in given:
                raise TypeError(f"MooncakeBackendOptions: unexpected argument {name!r}")
        given |= kwargs
        self.is_extension = bool(given.get("is_extension", False))
        self.max_group_size = int(given.get("max_group_size", first if isinstance(first, int) else 0) or 0)
        self.auto_deactivate_on_failure = bool(given.get("auto_deactivate_on_failure", True))
        self.auto_sync_on_failure = bool(given.get("auto_sync_on_failure", True))
        self.enable_reconfigure = False
        if self.auto_sync_on_failure and not self.auto_deactivate_on_failure:
            raise ValueError("auto_sync_on_failure needs auto_deactivate_on_failure")


def _default_options() -> MooncakeBackendOptions:
    return MooncakeBackendOptions(
        0,
        False,
        _flag("MOONCAKE_PG_AUTO_DEACTIVATE_ON_FAILURE", True),
        _flag("MOONCAKE_PG_AUTO_SYNC_ON_FAILURE", True),
    )


def _make(opts, pg_options, devices: str) -> MooncakeProcessGroup:
    options = pg_options if pg_options is not None else _default_options()
    if not isinstance(options, MooncakeBackendOptions):
        raise TypeError(f"pg_options must be mooncake.pg.MooncakeBackendOptions, not {type(options).__name__}")
    return MooncakeProcessGroup(
        opts.store, opts.group_rank, opts.group_size, opts.timeout, opts.group_id, options, devices,
        bool(options.enable_reconfigure or getattr(opts, "enable_reconfigure", False)),
    )  # fmt: skip


def createMooncakeBackend(opts, pg_options=None):
    return _make(opts, pg_options, "cuda")


def createMooncakeCpuBackend(opts, pg_options=None):
    return _make(opts, pg_options, "cpu")


def _register() -> None:
    for name, creator, device in (
        ("mooncake", createMooncakeBackend, "cuda"),
        ("mooncake-cpu", createMooncakeCpuBackend, "cpu"),
    ):
        if name not in dist.Backend.backend_list:
            dist.Backend.register_backend(name, creator, extended_api=True, devices=[device])


_register()


# ---- settings of the process ----


def set_host_ip(ip: str) -> None:
    """Where ranks of other hosts reach this process, instead of MC_COLL_IP or the first interface's address. Before the
    first group."""
    try:
        text = str(ipaddress.ip_address(str(ip)))
    except ValueError as exc:
        raise ValueError(f"set_host_ip: {exc}") from None
    if not use_ip(text):
        warnings.warn(f"set_host_ip({text!r}) comes after the first group and changes nothing", RuntimeWarning, 2)


def set_device_filter(filters) -> None:
    """Kept for callers; groups use shared memory and TCP."""
    _settings["device_filter"] = [str(f) for f in filters]


def set_transfer_engine(engine) -> None:
    """Kept for callers: groups do not need it. None takes it back."""
    if engine is not None and not hasattr(engine, "get_engine_ptr"):
        raise TypeError("set_transfer_engine: a mooncake.engine.TransferEngine that is initialized, or None")
    _settings["engine"] = engine


def get_preferred_hca(location: str = "") -> str:
    """"" : the topology decides."""
    return ""


def _positive_us(name: str, us: int) -> int:
    if int(us) <= 0:
        raise ValueError(f"{name}: {us} is not above 0")
    return int(us)


def set_collective_timeout_us(us: int) -> None:
    """Kept for callers: death is proved at once, and slow ranks are waited for until the group's own timeout."""
    _settings["collective_us"] = _positive_us("set_collective_timeout_us", us)


def set_p2p_timeout_us(us: int) -> None:
    _settings["p2p_us"] = _positive_us("set_p2p_timeout_us", us)


def set_fault_reconciliation_window_us(us: int) -> None:
    if _positive_us("set_fault_reconciliation_window_us", us) <= _settings["collective_us"]:
        raise ValueError(f"the window of {us} us must be longer than the collective timeout of {_settings['collective_us']} us")
    _settings["window_us"] = int(us)


# ---- membership ----


def _group(pg) -> MooncakeProcessGroup:
    if pg is None:
        pg = dist.distributed_c10d._get_default_group()
    if not isinstance(pg, MooncakeProcessGroup):
        raise TypeError(f"not a group of mooncake.pg: {type(pg).__name__}")
    return pg


def _mask(group: MooncakeProcessGroup, ranks) -> int:
    mask = 0
    for rank in ranks:
        if not 0 <= int(rank) < group.slots:
            raise ValueError(f"rank {rank} in a group with {group.slots} slots")
        mask |= 1 << int(rank)
    return mask


def get_active_ranks(pg) -> torch.Tensor:
    """int32[max_group_size], the group's own: it changes with the membership."""
    group = _group(pg)
    group.state()
    return group.active_ranks


def get_num_synced_ranks(pg) -> int:
    """Slots whose process is attached and alive, this one included."""
    group = _group(pg)
    return (group.state()[1] | 1 << group.rank()).bit_count()


def get_peer_state(pg, ranks) -> list[bool]:
    """Is the process of each slot attached and alive, so that it could be active?"""
    group = _group(pg)
    alive = group.state()[1] | 1 << group.rank()
    return [bool(alive >> int(r) & 1) for r in ranks]


def _propose(pg, add, drop) -> ProposeViewUpdateResponse:
    group = _group(pg)
    add_mask, drop_mask = _mask(group, add), _mask(group, drop)
    if not add_mask | drop_mask:
        return ProposeViewUpdateResponse(ProposalStatus.Applied, group.state()[3])
    code, dropped = group.activate(add_mask, drop_mask, _PROPOSE_NS)
    epoch = group.state()[3]
    if code < 0:
        reason = {-4: "not everyone knew everyone in time", -10: "this rank is not active"}.get(code, f"code {code}")
        return ProposeViewUpdateResponse(ProposalStatus.Rejected, epoch, [], reason)
    status = ProposalStatus.AppliedWithDroppedRanks if dropped else ProposalStatus.Applied
    return ProposeViewUpdateResponse(status, epoch, bits(dropped))


def activate_ranks(pg, ranks) -> ProposeViewUpdateResponse:
    """Take ranks in, from an operation on that nobody has begun. One call of any active rank is enough."""
    return _propose(pg, ranks, ())


recover_ranks = activate_ranks


def deactivate_ranks(pg, ranks) -> ProposeViewUpdateResponse:
    """Send living ranks away; they may join_group() again."""
    return _propose(pg, (), ranks)


def join_group(pg) -> None:
    """Wait until another rank activates this one; at most 300 s."""
    _group(pg).join(_JOIN_NS)


def sync_after_failure(pg) -> SyncAfterFailureResponse:
    """Survivors agree within the operation itself. What is left to do where the group does not do it by itself is to take
    the dead out of its active ranks."""
    group = _group(pg)
    if not group.options.auto_deactivate_on_failure:
        return SyncAfterFailureResponse(SyncStatus.Rejected, "this group leaves that to deactivate_ranks()")
    has_dead = group.sync() and not group.options.auto_sync_on_failure
    return SyncAfterFailureResponse(SyncStatus.Reconciled if has_dead else SyncStatus.NoPending)


def get_current_epoch(pg) -> int:
    return _group(pg).state()[3]


def extend_group_size_to(pg, size: int) -> None:
    warnings.warn("extend_group_size_to does nothing; see MooncakeBackendOptions.max_group_size", DeprecationWarning, 2)


# ---- operations ----


def _outcome(work):
    if not isinstance(work, Work):
        raise TypeError(f"not an operation of mooncake.pg: {type(work).__name__}")
    if not work.is_completed():
        raise RuntimeError("the operation has not ended: wait() first")
    return work.outcome


def get_failed_ranks_hint(work) -> torch.Tensor:
    """int32[64]: 1 for each slot that was active and is not in the result."""
    return torch.tensor([_outcome(work).failed >> i & 1 for i in range(64)], dtype=torch.int32)


def get_local_success(work) -> bool:
    """The operation has the input of all who were active."""
    outcome = _outcome(work)
    return outcome.error is None and outcome.failed == 0
