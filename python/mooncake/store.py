"""The Store, with the names, arguments and results of upstream's `mooncake.store`.

    store = MooncakeDistributedStore()
    store.setup("10.0.0.1", "P2PHANDSHAKE", 1 << 30, 64 << 20, "tcp", "", "10.0.0.9:50051")
    store.put("key", b"value")
    store.get("key")

A call that fails at run time answers with upstream's code; why `setup()` failed is a warning of the logger "mooncake". An
argument of a wrong type is an exception. Every method may be called from any thread; none holds the GIL while it waits.
"""

from __future__ import annotations

import logging

from mooncake import _mooncake, _store_setup
from mooncake._codes import INTERNAL_ERROR, INVALID_PARAMS
from mooncake._mooncake import BufferHandle
from mooncake._store_host import (
    MooncakeHostMemAllocator,
    bind_to_numa_node,
    get_alloc_func_addr,
    get_free_func_addr,
)
from mooncake._store_layout import ParallelAxis, ReadTarget, TensorParallelism
from mooncake._store_parallel import Parallel
from mooncake._store_segments import Segments
from mooncake._store_setup import Refused, answered, size, text
from mooncake._store_tensors import Tensors, _deserialize_tensor, _serialize_tensor, _tensor_metadata_size  # noqa: F401
from mooncake._store_types import (
    Descriptor,
    DiskDescriptor,
    MemoryDescriptor,
    ObjectDataType,
    QueryTaskResponse,
    ReplicaDescriptor,
    ReplicaStatus,
    ReplicateConfig,
    SoftPinAction,
    TaskStatus,
    TaskType,
)
from mooncake.buffer_pool import (
    BufferLease,
    BufferLeaseView,
    BufferPool,
    RegisteredBufferLease,
    RegisteredBufferLeaseView,
    RegisteredBufferPool,
)

__all__ = [
    "BufferHandle",
    "BufferLease",
    "BufferLeaseView",
    "BufferPool",
    "Descriptor",
    "DiskDescriptor",
    "MemoryDescriptor",
    "MooncakeDistributedStore",
    "MooncakeHostMemAllocator",
    "ObjectDataType",
    "ParallelAxis",
    "QueryTaskResponse",
    "ReadTarget",
    "RegisteredBufferLease",
    "RegisteredBufferLeaseView",
    "RegisteredBufferPool",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
    "TensorParallelism",
    "bind_to_numa_node",
    "get_alloc_func_addr",
    "get_free_func_addr",
]

# Members of the enums, as upstream exports them at module level.
for _kind in (ObjectDataType, ReplicaStatus, SoftPinAction, TaskStatus, TaskType):
    globals().update(_kind.__members__)
    __all__ += _kind.__members__
FAILED = TaskStatus.FAILED  # two enums have one; upstream's is this

_log = logging.getLogger("mooncake")

OK = 0
UPSERT = 1
DEFAULT_BYTES = 16 << 20
DEFAULT_MASTER = "127.0.0.1:50051"
DEFAULT = ReplicateConfig()


class MooncakeDistributedStore(_mooncake.Store, Segments, Tensors, Parallel):
    """A process's connection to the Store: its objects, and the memory it gives to the pool."""

    _http = None  # what serves /health and /metrics
    _dummy_socket = None  # where dummy clients are to be served: only a dict can say it

    # ---- life ----

    @answered
    def setup(
        self,
        local_hostname: str | dict = None,
        metadata_server: str = None,
        global_segment_size: int = DEFAULT_BYTES,
        local_buffer_size: int = DEFAULT_BYTES,
        protocol: str = "tcp",
        rdma_devices: str = "",
        master_server_addr: str = DEFAULT_MASTER,
        engine: object = None,
        enable_ssd_offload: bool = False,
        ssd_offload_path: str = "",
        tenant_id: str = "default",
        enable_client_http_server: bool = False,
        client_http_port: int = 9300,
        config: dict | None = None,
    ) -> int:
        """Connect to the master and give `global_segment_size` bytes to the pool; or `setup(dict)`.

        A dict's `ipc_socket_path` is an abstract Unix socket where this process serves dummy clients as a node does; setup_dummy()
        finds "@mooncake_client_<port>.sock" by its port, any other one by "@name".

        With `enable_ssd_offload` a disk is behind that memory, at `ssd_offload_path`, else MOONCAKE_OFFLOAD_FILE_STORAGE_PATH.
        With `enable_client_http_server` the process answers /health and /metrics on `client_http_port`.
        """
        if isinstance(local_hostname, dict) or config is not None:
            given = _store_setup.from_dict(local_hostname if config is None else config)
            self._dummy_socket = given.pop("ipc_socket_path", None) or None
            return self.setup(**given)
        if local_hostname is None or metadata_server is None:
            raise TypeError("setup() needs local_hostname and metadata_server, or one dict")
        disk = text("ssd_offload_path", ssd_offload_path) if enable_ssd_offload else None
        http_port = _store_setup.port("client_http_port", client_http_port)
        was_open = self.is_open()
        code = self._open(
            text("local_hostname", local_hostname), text("metadata_server", metadata_server), text("protocol", protocol),
            text("rdma_devices", rdma_devices), text("master_server_addr", master_server_addr), text("tenant_id", tenant_id),
            size("global_segment_size", global_segment_size), size("local_buffer_size", local_buffer_size), engine, disk=disk,
        )  # fmt: skip
        if code == OK and enable_client_http_server and not was_open:
            from mooncake import _store_http  # few need it, and http.server takes its time to load

            self._http = _store_http.start(self, http_port)
        return code

    @answered
    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """Connect as the node (mooncake_client) of this host at `server_address` ("host:port", or its socket's "@name") does,
        with no memory in the pool.

        `mem_pool_size` is what alloc_from_mem_pool() may give; staging needs no buffer, so `local_buffer_size` is not taken.
        """
        size("local_buffer_size", local_buffer_size)
        pool, server = size("mem_pool_size", mem_pool_size), text("server_address", server_address)
        return self._open("", "", "", "", "", "", 0, pool, None, node=server)

    @answered
    def init_all(self, arg0: str, arg1: str, arg2: int) -> int:
        """Protocol, devices, bytes for the pool: a store at the default master, for tests."""
        return self._open(
            "", "", text("arg0", arg0), text("arg1", arg1), DEFAULT_MASTER, "default", size("arg2", arg2), DEFAULT_BYTES, None
        )

    def _open(self, name, metadata, protocol, devices, master, tenant, segment, buffer, engine, node=None, disk=None) -> int:
        socket, self._dummy_socket = self._dummy_socket, None
        if self.is_open():
            return OK
        if protocol == "rpc_only":
            protocol, segment, buffer = "tcp", 0, 0
        address = _engine_address(engine)
        if engine is not None and not address:
            raise Refused("the engine that was given is not initialized")
        code, why = self.open(name, metadata, protocol, devices, master, tenant, segment, buffer, address, node, disk, socket)
        if code != OK:
            _log.warning("setup(): %s", why or f"code {code}")
        self._has_disk = code == OK and disk is not None
        return code

    def close(self) -> int:
        """Leave the cluster; the process's own memory leaves the pool with its objects. Again is allowed."""
        http, self._http = self._http, None
        if http:
            http.close()
        self.shut()
        return OK

    def health_check(self) -> int:
        """0 healthy, 1 not set up, 2 the master does not answer."""
        return self.health()

    def get_hostname(self) -> str:
        return self.hostname()

    # ---- memory ----

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        return self.reg(buffer_ptr, size)

    def unregister_buffer(self, buffer_ptr: int) -> int:
        return self.unreg(buffer_ptr)

    def alloc_from_mem_pool(self, arg0: int) -> int:
        return self.alloc(arg0)

    # ---- objects as bytes ----

    def put(self, key: str, value, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_values((key,), (value,), config.packed(), 0)[0]

    def upsert(self, key: str, value, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_values((key,), (value,), config.packed(), UPSERT)[0]

    def put_parts(self, key: str, *args, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_values((key,), (args,), config.packed(), 0)[0] if args else OK

    def upsert_parts(self, key: str, *args, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_values((key,), (args,), config.packed(), UPSERT)[0] if args else OK

    def put_batch(self, keys: list[str], values: list, config: ReplicateConfig = DEFAULT) -> int:
        return _first(self.put_values(keys, values, config.packed(), 0))

    def upsert_batch(self, keys: list[str], values: list, config: ReplicateConfig = DEFAULT) -> int:
        return _first(self.put_values(keys, values, config.packed(), UPSERT))

    def get(self, arg0: str) -> bytes:
        return self.get_bytes((arg0,))[0] or b""

    def get_batch(self, arg0: list[str]) -> list[bytes]:
        return [found or b"" for found in self.get_bytes(arg0)] if arg0 else [b""]

    def get_buffer(self, arg0: str) -> BufferHandle | None:
        return self.get_handles((arg0,))[0]

    def batch_get_buffer(self, arg0: list[str]) -> list[BufferHandle | None]:
        return self.get_handles(arg0)

    # ---- objects in memory ----

    def put_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_memory((key,), (buffer_ptr,), (size,), config.packed(), 0)[0]

    def upsert_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT) -> int:
        return self.put_memory((key,), (buffer_ptr,), (size,), config.packed(), UPSERT)[0]

    def put_from_with_metadata(
        self, key: str, buffer_ptr: int, metadata_buffer_ptr: int, size: int, metadata_size: int,
        config: ReplicateConfig = DEFAULT,
    ) -> int:  # fmt: skip
        """One object: the metadata, then the data."""
        pieces = ([metadata_buffer_ptr, buffer_ptr],), ([metadata_size, size],)
        return self.put_memory((key,), *pieces, config.packed(), 0)[0]

    def batch_put_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        return self.put_memory(keys, buffer_ptrs, sizes, config.packed(), 0)

    def batch_upsert_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        return self.put_memory(keys, buffer_ptrs, sizes, config.packed(), UPSERT)

    def batch_put_from_multi_buffers(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]], config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        return self.put_memory(keys, all_buffer_ptrs, all_sizes, config.packed(), 0)

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        return self.get_memory((key,), (buffer_ptr,), (size,))[0]

    def batch_get_into(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        return self.get_memory(keys, buffer_ptrs, sizes)

    def batch_get_into_multi_buffers(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:  # fmt: skip
        return self.get_memory(keys, all_buffer_ptrs, all_sizes)

    def get_into_ranges(self, buffer_ptrs, all_keys, all_dst_offsets, all_src_offsets, all_sizes) -> list[list[list[int]]]:
        """Pieces of objects into pieces of buffers; bytes or a code of each piece."""
        keys, ptrs, sizes, offsets = [], [], [], []
        if len({len(x) for x in (buffer_ptrs, all_keys, all_dst_offsets, all_src_offsets, all_sizes)}) > 1:
            return [[[INVALID_PARAMS]]]
        for base, names, to, fro, lens in zip(buffer_ptrs, all_keys, all_dst_offsets, all_src_offsets, all_sizes):
            for name, dst, src, size in zip(names, to, fro, lens, strict=True):
                keys += [name] * len(size)
                ptrs += [[base + offset] for offset in dst]
                sizes += [[n] for n in size]
                offsets += [[offset] for offset in src]
        moved = iter(self.ranges(False, keys, ptrs, sizes, offsets))
        return [[[next(moved) for _ in size] for size in lens] for lens in all_sizes]

    # ---- sessions: objects read or written piece by piece ----

    def batch_get_session_start(self, keys: list[str]) -> list[int]:
        return [min(size, 0) for size in self.sizes(keys)]

    def batch_get_into_multi_buffer_ranges(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]], all_src_offsets: list[list[int]]
    ) -> list[int]:
        return self.ranges(False, keys, all_buffer_ptrs, all_sizes, all_src_offsets)

    def batch_get_session_end(self, keys: list[str]) -> int:
        return OK

    def batch_put_session_start(self, keys: list[str], sizes: list[int], config: ReplicateConfig = DEFAULT) -> list[int]:
        return self.put_begin(keys, sizes, config.packed())

    def batch_put_from_multi_buffer_ranges(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]], all_dst_offsets: list[list[int]]
    ) -> list[int]:
        return self.ranges(True, keys, all_buffer_ptrs, all_sizes, all_dst_offsets)

    def batch_put_session_end(self, keys: list[str]) -> list[int]:
        return self.put_end(keys, False)

    def batch_put_session_revoke(self, keys: list[str]) -> list[int]:
        return self.put_end(keys, True)

    # ---- keys ----

    def is_exist(self, arg0: str) -> int:
        return self.exist((arg0,))[0]

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        return self.exist(keys)

    def get_size(self, arg0: str) -> int:
        return self.sizes((arg0,))[0]

    def remove(self, key: str, force: bool = False) -> int:
        """0; -704 it is not there; -706 it was read lately, unless `force`."""
        return self.remove_keys((key,), force)[0]

    def batch_remove(self, keys: list[str], force: bool = False) -> list[int]:
        """remove() of each. (Clients look for the word force here.)"""
        return self.remove_keys(keys, force)

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        return self.remove_like(regex_pattern, force)

    def remove_all(self, force: bool = False) -> int:
        return self.remove_like(None, force)

    def get_replica_desc(self, key: str) -> list[ReplicaDescriptor]:
        return _described(self.replicas((key,)))[0]

    def batch_get_replica_desc(self, keys: list[str]) -> dict[str, list[ReplicaDescriptor]]:
        return {key: found for key, found in zip(keys, _described(self.replicas(keys))) if found}

    def batch_replica_clear(self, keys: list[str], segment_name: str = "") -> list[str]:
        """Free what these objects have in a segment, or all of them; what a reader holds stays. The keys of those that are freed."""
        return [key for key, code in zip(keys, self.clear(keys, segment_name)) if code == OK]

    def create_copy_task(self, key: str, targets: list[str]) -> tuple[tuple[int, int], int]:
        """Have the object copied to these segments; ((0, 0), code) when it cannot be. See `query_task()`."""
        return self.copy_task(key, targets)

    def create_move_task(self, key: str, source: str, target: str) -> tuple[tuple[int, int], int]:
        return self.move_task(key, source, target)

    def query_task(self, task_id: tuple[int, int]) -> tuple[QueryTaskResponse | None, int]:
        """What a copy or a move has come to; (None, -1400) when the master does not know it."""
        found, code = self.task(tuple(task_id))
        if found is None:
            return None, code
        kind, status, *rest = found
        return QueryTaskResponse(tuple(task_id), TaskType(kind), TaskStatus(status), *rest), code


def _engine_address(engine: object) -> int:
    """Of a TransferEngine, or of what its get_engine() gives."""
    if engine is None:
        return 0
    if not hasattr(engine, "get_engine_ptr"):
        raise TypeError(f"setup(): argument 'engine' must be a TransferEngine or its get_engine(), not {type(engine).__name__}")
    return engine.get_engine_ptr()


def _first(codes: list[int]) -> int:
    """The first code that is not 0."""
    return next((code for code in codes if code != OK), OK)


def _described(found: list) -> list[list[ReplicaDescriptor]]:
    """A store that is not open answers with codes instead of lists."""
    return [[ReplicaDescriptor(*replica) for replica in one] if isinstance(one, list) else [] for one in found] or [[]]
