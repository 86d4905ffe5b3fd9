"""torch 2.15's way to change who is in a group, from the list of its ranks to be. Part of mooncake.pg.

Every rank to be gives out a handle, and calls reconfigure() with the handles of all. A list says which rank each gets, so
slots cannot stay as they are: the ranks found a new group among the hubs that they have, without torch's store, and leave
the old one when that has succeeded.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass

import torch.distributed as dist

_VERSION = 1
_NAME_BYTES = 64  # of torch's name in a group's own, which has at most 127


class Unopened:
    """What a group of enable_reconfigure has in the place of a group until the first reconfigure()."""

    def __init__(self, name: str):
        self._name = name

    def state(self) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    def close(self) -> None:
        pass

    abort = close

    def _refuse(self, *args):
        raise dist.DistBackendError(f"group {self._name} has no ranks before reconfigure(): it was made with enable_reconfigure")

    run = start = message = start_message = activate = join = _refuse


@dataclass(frozen=True)
class Handle:
    """A rank to be: where its process is reached, and in which life of which group it is now."""

    group: str
    life: str  # random; over when that process has called reconfigure()
    rank: int  # -1: it is in none yet
    slots: int  # that it wants the group to have at least
    address: str

    def text(self) -> str:
        return json.dumps([_VERSION, self.group, self.life, self.rank, self.slots, self.address])


def new_life() -> str:
    return secrets.token_hex(8)


def parse(text: str) -> Handle:
    try:
        version, group, life, rank, slots, address = json.loads(text)
        if version == _VERSION and [type(x) for x in (group, life, rank, slots, address)] == [str, str, int, int, str]:
            return Handle(group, life, rank, slots, address)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"not a handle of get_reconfigure_handle(): {str(text)[:80]!r}")


@dataclass(frozen=True)
class Plan:
    """The group to found."""

    name: str
    rank: int
    handles: list[Handle]
    slots: int


def _order(handles) -> list[Handle]:
    parsed = [parse(text) for text in handles]
    if isinstance(handles, (set, frozenset)):
        # Ours to choose, and the same on all ranks: who was in keeps its order, then the new ones.
        parsed.sort(key=lambda h: (h.rank < 0, h.rank, h.text()))
    return parsed


def plan(own: Handle, past: set[str], used: set[int], uuid: int, handles, ranks_max: int) -> Plan:
    """ValueError names what is wrong: nothing has been done then.

    past: lives that this process knows to be over. used: numbers that earlier calls had.
    """
    if isinstance(handles, str) or not isinstance(handles, (set, frozenset, list, tuple)):
        raise ValueError(f"handles is a set or a list of strings, not {type(handles).__name__}")
    if uuid in used:
        raise ValueError(f"uuid {uuid} was used for group {own.group} before: each reconfigure() has a new one")
    parsed = _order(handles)
    if len(parsed) > ranks_max:
        raise ValueError(f"{len(parsed)} ranks in a group; at most {ranks_max}")
    for at, handle in enumerate(parsed):
        if handle.group != own.group:
            raise ValueError(f"handle {at} is of group {handle.group}, not of {own.group}")
        if handle.life in past:
            raise ValueError(f"handle {at} is from before the last reconfigure() of group {own.group}: ask that process again")
        if any(handle.address == other.address for other in parsed[:at]):
            raise ValueError(f"handle {at} is of a process that is in the list already")
    if own not in parsed:
        raise ValueError(f"this process's own handle is not among the {len(parsed)} of group {own.group}")
    digest = hashlib.sha256("\n".join(h.text() for h in parsed).encode()).hexdigest()[:16]
    short = own.group.encode()[:_NAME_BYTES].decode(errors="ignore")
    slots = max(len(parsed), *(h.slots for h in parsed))
    return Plan(f"{short}.{uuid}.{digest}", parsed.index(own), parsed, min(slots, ranks_max))
