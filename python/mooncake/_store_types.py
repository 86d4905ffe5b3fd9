"""What the Store's calls take and give beside bytes: how objects are kept, where they are."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from operator import index


class _Numbered(enum.Enum):
    """int() of a member is its number, as of upstream's."""

    def __int__(self) -> int:
        return self.value

    __index__ = __int__


class ReplicaStatus(_Numbered):
    UNDEFINED = 0
    INITIALIZED = 1
    PROCESSING = 2
    COMPLETE = 3
    REMOVED = 4
    FAILED = 5


class TaskType(_Numbered):
    REPLICA_COPY = 0
    REPLICA_MOVE = 1


class TaskStatus(_Numbered):
    PENDING = 0
    PROCESSING = 1
    FAILED = 2
    SUCCESS = 3


@dataclass(slots=True, frozen=True)
class QueryTaskResponse:
    """A copy or a move, as the master has it."""

    id: tuple[int, int]
    type: TaskType
    status: TaskStatus
    created_at_ms_epoch: int
    last_updated_at_ms_epoch: int
    assigned_client: str  # the segment that makes the replica
    message: str  # why it failed


class SoftPinAction(_Numbered):
    """What a write does with the time for which an object is evicted last."""

    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2


class ObjectDataType(_Numbered):
    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9


def _as_count(value: object) -> int:
    if not hasattr(value, "__index__") or not 0 <= index(value) < 1 << 64:
        raise TypeError("an int that is not negative")
    return index(value)


def _as_flag(value: object) -> bool:
    if not isinstance(value, (int, type(None))):
        raise TypeError("a bool")
    return bool(value)


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a str")
    return value


def _as_texts(value: object) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise TypeError("a list of str")
    return list(value)


def _as_action(value: object) -> SoftPinAction:
    if not isinstance(value, SoftPinAction):
        raise TypeError("a SoftPinAction")
    return value


def _as_type(value: object) -> ObjectDataType:
    if not isinstance(value, ObjectDataType):
        raise TypeError("an ObjectDataType")
    return value


_FIELDS = {
    "replica_num": _as_count, "nof_replica_num": _as_count, "dfs_replica_num": _as_count, "soft_pin_action": _as_action,
    "soft_pin_ttl_ms": lambda value: None if value is None else _as_count(value), "with_hard_pin": _as_flag,
    "preferred_segment": _as_text, "preferred_segments": _as_texts, "preferred_nof_segments": _as_texts,
    "prefer_alloc_in_same_node": _as_flag, "data_type": _as_type,
    "group_ids": lambda value: None if value is None else _as_texts(value),
}  # fmt: skip


@dataclass(slots=True)
class ReplicateConfig:
    """How an object is kept."""

    replica_num: int = 1
    nof_replica_num: int = 0
    dfs_replica_num: int = 0
    soft_pin_action: SoftPinAction = SoftPinAction.PRESERVE
    soft_pin_ttl_ms: int | None = None
    with_hard_pin: bool = False
    preferred_segment: str = ""  # one of them, as older clients say it
    preferred_segments: list[str] = field(default_factory=list)
    preferred_nof_segments: list[str] = field(default_factory=list)
    prefer_alloc_in_same_node: bool = False
    data_type: ObjectDataType = ObjectDataType.UNKNOWN
    group_ids: list[str] | None = None  # one for each key of the call

    def __setattr__(self, name: str, value: object) -> None:
        try:
            value = _FIELDS[name](value) if name in _FIELDS else value
        except TypeError as wanted:
            raise TypeError(f"{name} must be {wanted}, not {value!r}") from None
        object.__setattr__(self, name, value)

    def packed(self) -> tuple | None:
        """What the extension takes; None is all defaults."""
        if self == _DEFAULT:
            return None
        if self.nof_replica_num or self.dfs_replica_num:
            raise ValueError("nof_replica_num and dfs_replica_num are not supported: this build keeps objects in memory and on disks")
        segments = self.preferred_segments or ([self.preferred_segment] if self.preferred_segment else [])
        return (
            self.replica_num, self.data_type.value, self.soft_pin_action.value, self.with_hard_pin, self.prefer_alloc_in_same_node,
            self.soft_pin_ttl_ms or 0, segments, self.group_ids,
        )  # fmt: skip


_DEFAULT = ReplicateConfig()


@dataclass(slots=True, frozen=True)
class Descriptor:
    """Memory of a segment that holds an object."""

    size: int
    buffer_address: int
    transport_endpoint: str


@dataclass(slots=True, frozen=True)
class MemoryDescriptor:
    buffer_descriptor: Descriptor


@dataclass(slots=True, frozen=True)
class DiskDescriptor:
    file_path: str
    object_size: int


class ReplicaDescriptor:
    """Where one copy of an object is."""

    __slots__ = ("_bytes", "_address", "_kind", "_segment")
    _MEMORY, _DISK = 0, 1

    def __init__(self, kind: int, segment: str, address: int, size: int) -> None:
        self._kind, self._segment, self._address, self._bytes = kind, segment, address, size

    def __repr__(self) -> str:
        return f"ReplicaDescriptor({'memory' if self.is_memory_replica() else 'disk'} of {self._segment}, {self._bytes} bytes)"

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus.COMPLETE

    def is_memory_replica(self) -> bool:
        return self._kind == self._MEMORY

    def is_disk_replica(self) -> bool:
        """On a file system that all nodes share: this build has none."""
        return False

    def is_local_disk_replica(self) -> bool:
        return self._kind == self._DISK

    def get_memory_descriptor(self) -> MemoryDescriptor:
        if not self.is_memory_replica():
            raise RuntimeError("not a replica in memory")
        return MemoryDescriptor(Descriptor(self._bytes, self._address, self._segment))

    def get_disk_descriptor(self) -> DiskDescriptor:
        if self.is_memory_replica():
            raise RuntimeError("not a replica on disk")
        return DiskDescriptor(self._segment, self._bytes)
